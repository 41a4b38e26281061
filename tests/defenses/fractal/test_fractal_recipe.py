"""Training fractal classifiers: divisions, resuming, divergence and refusals."""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import ThreatModel
from defenses import (
    NBR,
    BeliefEnsemble,
    Checkpoint,
    Fractal,
    Progress,
    TrainingError,
    fingerprint,
    initialise,
    train,
)
from defenses.fractal.belief import Frame
from defenses.fractal.division import OUT, depth_of
from defenses.fractal.nbr import parse_frames
from defenses.nonexpansive.scalings import cayley
from defenses.training import loop as training

Digits = tuple[Tensor, Tensor, Tensor, Tensor]
Report = Callable[[Progress], None]

SHAPE = (1, 8, 8)
SMALL = Fractal(
    epochs=10, batch=64, offset=0.3, hard_offset=0.1, levels="2+3+2", frames="0-1,0-2,1-2",
    replaced="0-1,0-2", widen=0.1,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("at_every_occasion")


@pytest.fixture(scope="module")
def few(digits: Digits) -> tuple[Tensor, Tensor]:
    chosen = digits[1] < 3
    return digits[0][chosen][:150], digits[1][chosen][:150]


@dataclass(frozen=True, kw_only=True)
class Keeping(Fractal):
    """Keeps its division when it is done."""

    def finish(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        pass


def trained(
    recipe: NBR,
    data: tuple[Tensor, Tensor],
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> BeliefEnsemble:
    model = initialise(recipe, SHAPE, 3, seed=1)
    held = None if checkpoint is None else Checkpoint(checkpoint, "this")
    train(recipe, model, *data, threat=None, seed=1, checkpoint=held, report=report)
    assert isinstance(model, BeliefEnsemble)
    return model


@pytest.mark.parametrize("variant", range(8))
@pytest.mark.parametrize("levels", ["3", "2+2", "2+2+2", "2+1+2+2+2"])
def test_every_division_of_a_training_contrasts_every_pair_once(
    variant: int, levels: str, few: tuple[Tensor, Tensor]
) -> None:
    x, y = few
    recipe = replace(SMALL, variant=variant, levels=levels, epochs=10, every=1)
    model = recipe.build(SHAPE, 3)
    assert isinstance(model, BeliefEnsemble)
    seen, depths = list[Tensor](), dict[Frame, Tensor]()
    for epoch in range(10):
        with torch.no_grad():
            for parameter in model.subtasks.parameters():
                parameter.normal_()
            model.train().eval()
            recipe.begin_epoch(model, x, y, epoch)
        roles = model.division.roles
        seen.append(roles.clone())
        for frame, rows in zip(model.frames, model.rows, strict=True):
            members, signs = roles[rows] != OUT, model.signs(y)[rows.start]
            assert not members[:, signs == 0].any()
            pairs = members[:, signs > 0].int().T @ members[:, signs < 0].int()
            # Until the third epoch each level is a structure by itself.
            alone = epoch < 3 and sum(frame.levels) > 1
            assert (pairs == (sum(1 for size in frame.levels if size) if alone else 1)).all()
            # Samples move between the subtasks of a level, not between levels.
            if not alone and epoch >= 3:
                depth = depth_of(frame.levels, (signs < 0).long(), members)
                assert torch.equal(depth, depths.setdefault(frame, depth))
            groups = torch.stack([signs > 0, signs < 0]).float()
            expected = members.float() @ groups.T / groups.sum(1)
            torch.testing.assert_close(model.fractions[rows], expected)
    changes = [not torch.equal(one, other) for one, other in itertools.pairwise(seen)]
    # Members settle at three fifths; then samples that are difficult are marked once.
    assert all(changes[2:6])
    assert not any(changes[6:])


def test_a_saved_model_holds_no_training_samples(few: tuple[Tensor, Tensor]) -> None:
    model = trained(replace(SMALL, epochs=3), few)
    assert not any(value.numel() >= len(few[1]) * 3 for value in model.buffers())
    assert model.state_dict()["division._extra_state"].numel() == 0


@pytest.mark.parametrize("where", [(1, 2), (2, 1), (4, 1), (5, 2), (8, 3), (10, 3)])
def test_interrupted_and_resumed_has_the_same_weights_and_division(
    where: tuple[int, int], few: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    def interrupt(progress: Progress) -> None:
        if (progress.epoch, progress.step) == where:
            raise KeyboardInterrupt

    recipe, checkpoint = Keeping(**asdict(SMALL)), tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, few, checkpoint, interrupt)
    seen: list[int] = []
    resumed = trained(recipe, few, checkpoint, lambda progress: seen.append(progress.epoch))
    assert min(seen) == where[0]
    whole = trained(recipe, few)
    assert whole.division.roles.shape == (15, 150)
    assert torch.equal(resumed.division.roles, whole.division.roles)
    assert torch.equal(resumed.fractions, whole.fractions)
    assert fingerprint(resumed) == fingerprint(whole)


@pytest.mark.parametrize("changes", [{"learning_rate": 1e30}, {"offset": float("inf")}])
@pytest.mark.parametrize("every", [0.0, 1e9])
def test_training_that_diverges_stops_with_a_line(
    changes: dict[str, Any],
    every: float,
    few: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "READ_SECONDS", every)
    with pytest.raises(TrainingError, match=r"^.*: lower learning_rate$"):
        trained(replace(SMALL, **changes), few)


def test_weights_too_large_to_be_scaled_are_no_error_of_their_own() -> None:
    """A singular matrix would raise; NaN ends training with its line."""
    weight = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [1e6, 1e6]]], requires_grad=True)
    scaled = cayley(weight)
    assert scaled.isnan().any()
    scaled.sum().backward()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("4", "a frame is written as 4-9 or 1+7+9-3+5+8, not '4'"),
        ("4-9-1", "a frame is written as 4-9 or 1+7+9-3+5+8, not '4-9-1'"),
        ("", "a frame is written as 4-9 or 1+7+9-3+5+8, not ''"),
        ("0-1,", "a frame is written as 4-9 or 1+7+9-3+5+8, not ''"),
        ("a-b", "a frame is written as 4-9 or 1+7+9-3+5+8, not 'a-b'"),
        ("0-1+", "a frame is written as 4-9 or 1+7+9-3+5+8, not '0-1+'"),
        ("0-10", "frame 0-10: labels are the numbers from 0 to 9"),
        ("0-0+1", "a frame needs two groups without a common label"),
    ],
)
def test_frames_that_are_none_get_one_line(text: str, line: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        parse_frames(text, 10)
    assert str(error.value).startswith(line)


def test_frames_are_read() -> None:
    frames = parse_frames("1+7+9-3+5+8,4-9", 10)
    assert [(frame.first, frame.second) for frame in frames] == [
        ((1, 7, 9), (3, 5, 8)),
        ((4,), (9,)),
    ]
    assert len(NBR().structure(10)) == 45


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"levels": "4+0+4"}, "each level needs at least one subtask, not '4+0+4'"),
        ({"levels": "4,4"}, "levels are numbers as in 4+4+4, not '4,4'"),
        ({"levels": ""}, "levels are numbers as in 4+4+4, not ''"),
        ({"variant": 8}, "variant is from 0 to 7, every at least 1"),
        ({"every": 0}, "variant is from 0 to 7, every at least 1"),
    ],
)
def test_structures_that_are_none_get_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        Fractal(**options)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"replaced": "2-1"}, "replaced (2,)-(1,) is none of the frames"),
        (
            {"frames": "0-1"},
            "label 2 is in no frame, so nothing speaks against it: add one with it",
        ),
    ],
)
def test_frames_that_do_not_fit_the_labels_get_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        Fractal(offset=1.0, **options).build(SHAPE, 3)
    assert str(error.value) == line


def test_without_an_offset_it_is_the_eps_of_an_l2_run(few: tuple[Tensor, Tensor]) -> None:
    recipe = replace(SMALL, offset=None, hard_offset=None)
    threat = ThreatModel("l2", 0.75)
    roles = torch.tensor([0, 1, 2], dtype=torch.uint8)
    assert recipe.offsets(recipe.trains_against(threat), roles).tolist() == [0, 0.75, 0.75]
    for other in (None, ThreatModel("linf", 0.1)):
        with pytest.raises(ValueError, match=r"^give an offset: there is no L2 eps"):
            recipe.trains_against(other)
