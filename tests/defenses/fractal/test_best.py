"""The best of eight fractal structures, trained as one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from defenses import (
    BeliefEnsemble,
    BestFractal,
    Checkpoint,
    Fractal,
    Progress,
    fingerprint,
    initialise,
    train,
)
from defenses.fractal.best import BestEnsemble
from defenses.fractal.division import OUT, depth_of
from defenses.training.saved import load, save

Digits = tuple[Tensor, Tensor, Tensor, Tensor]
Data = tuple[Tensor, Tensor]

SHAPE, OFFSET = (1, 8, 8), 0.4
RECIPE = BestFractal(
    epochs=5, batch=64, learning_rate=5e-3, offset=OFFSET, levels="2+1+2", memorise=1
)
# Of 8 structures of 5 subtasks and a memory each.
TRAINED, ALL = 40, 48

pytestmark = pytest.mark.usefixtures("at_every_occasion")


@pytest.fixture(scope="module")
def data(digits: Digits) -> Data:
    """The digits 3 and 8, as labels 0 and 1."""
    x, y = digits[:2]
    known = (y == 3) | (y == 8)
    return x[known], (y[known] == 8).long()


def trained(data: Data, **options: Any) -> BestEnsemble:
    model = initialise(RECIPE, SHAPE, 2, 0)
    train(RECIPE, model, *data, threat=None, seed=0, **options)
    assert isinstance(model, BestEnsemble)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def model(data: Data) -> BestEnsemble:
    return trained(data)


def eighth(variant: int) -> list[int]:
    return [*range(5 * variant, 5 * variant + 5), TRAINED + variant]


def test_the_chosen_alone_answers(model: BestEnsemble, data: Data) -> None:
    assert model.chosen is not None
    rows, x = eighth(model.chosen), data[0]
    others = torch.ones(ALL, dtype=torch.bool)
    others[rows] = False
    # All networks' outputs, of which the other seven eighths are not to matter.
    outputs = BeliefEnsemble.outputs(model, x)
    assert torch.equal(model.outputs(x)[:, rows], outputs[:, rows])
    assert (model.outputs(x)[:, :TRAINED][:, others[:TRAINED]] == 0).all()
    assert (model.fractions[others] == 0).all()
    assert (model.fractions[rows] > 0).any(1).all()
    frames = [model.frames[model.chosen], model.frames[8 + model.chosen]]
    alone = BeliefEnsemble(frames, 2, model.subtasks, rule=model.rule)
    with torch.no_grad():
        alone.fractions.copy_(model.fractions[rows])
        torch.testing.assert_close(alone.aggregate(outputs[:, rows]), model(x))
    # Bisections begin with other intervals.
    radius = alone.threshold(outputs[:, rows])
    torch.testing.assert_close(radius, model.certified_radius(x), rtol=0, atol=1e-5)


def test_one_image_or_many_give_the_same(model: BestEnsemble, data: Data) -> None:
    x = data[0]
    assert len(x) < model.subtasks.few < 8 * len(x)
    many = x.repeat(8, 1, 1, 1)
    torch.testing.assert_close(model(many)[: len(x)], model(x))


def test_all_eight_structures_are_trained(model: BestEnsemble, data: Data) -> None:
    """Each as its own variant says: other levels, and other parts of the data."""
    frames = [Fractal(levels="2+1+2", variant=v).structure(2) for v in range(8)]
    assert [*model.frames[:8]] == [frame for each in frames for frame in each]
    found: dict[int, Tensor] = {}
    again = initialise(RECIPE, SHAPE, 2, 0)
    assert isinstance(again, BestEnsemble)
    with torch.no_grad():
        for epoch in range(RECIPE.settled):
            RECIPE.begin_epoch(again, *data, epoch)
    roles = again.division.roles
    for variant in range(8):
        mine = roles[5 * variant : 5 * variant + 5].double()
        # Every pair of opposite labels is in one training set of each structure.
        pairs = (mine.T @ mine)[data[1] == 0][:, data[1] == 1]
        assert (pairs == 1).all()
        found[variant] = mine
    assert len({tuple(each.sum(1).tolist()) for each in found.values()}) > 4


def test_variants_exchange_the_parts_of_either_group(data: Data) -> None:
    """Seen where networks, and so the parts, are the same."""
    model = initialise(RECIPE, SHAPE, 2, 0)
    assert isinstance(model, BestEnsemble)
    sides, variants = data[1], (0, 2, 4, 6)
    with torch.no_grad():
        RECIPE.begin_epoch(model, *data, 0)
        for parameter in model.subtasks.parameters():
            for variant in variants[1:]:
                parameter[5 * variant : 5 * variant + 5] = parameter[:5]
        RECIPE.begin_epoch(model, *data, 2)
    depth = {
        variant: depth_of((2, 1, 2), sides, model.division.roles[eighth(variant)[:5]] != OUT)
        for variant in variants
    }
    for variant in variants:
        for side, exchanged in enumerate((bool(variant & 2), bool(variant & 4))):
            one, other = depth[0][sides == side], depth[variant][sides == side]
            assert one.unique().tolist() == [side, side + 2]
            assert torch.equal(other, 2 * side + 2 - one if exchanged else one)


@pytest.mark.parametrize("right", [0, 3, 6])
def test_it_is_the_one_that_keeps_the_most(right: int, data: Data) -> None:
    """Told by outputs that are right for one structure alone."""
    model = initialise(RECIPE, SHAPE, 2, 0)
    assert isinstance(model, BestEnsemble)
    outputs = -model.signs(data[1]).T.float()
    outputs[:, eighth(right)] *= -1
    with torch.no_grad():
        model.choose(outputs, data[1], OFFSET)
    assert model.chosen == right


def test_what_was_chosen_is_saved(model: BestEnsemble, data: Data, tmp_path: Path) -> None:
    save(tmp_path, model, {})
    again = initialise(RECIPE, SHAPE, 2, 1)
    load(tmp_path, again)
    assert isinstance(again, BestEnsemble)
    assert again.chosen == model.chosen
    assert torch.equal(again(data[0]), model(data[0]))


def test_interrupted_and_resumed_is_the_same(
    model: BestEnsemble, data: Data, tmp_path: Path
) -> None:
    def stop(done: Progress) -> None:
        if done.epoch == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(data, checkpoint=Checkpoint(tmp_path / "checkpoint", "this"), report=stop)
    resumed = trained(data, checkpoint=Checkpoint(tmp_path / "checkpoint", "this"))
    assert fingerprint(resumed) == fingerprint(model)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: BestFractal(), "chosen by its offset"),
        (lambda: BestFractal(offset=1.0, variant=2), "leave variant at 0"),
    ],
)
def test_options_that_are_none_get_one_line(make: Callable[[], Fractal], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        make()
