"""Data kept from the subtasks, slopes and reliabilities trained on it, and memorization."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses import (
    NBR,
    Batch,
    BeliefEnsemble,
    Checkpoint,
    Fractal,
    Progress,
    fingerprint,
    initialise,
    train,
)
from defenses.fractal.division import OUT
from defenses.fractal.memory import Memory, distances
from defenses.fractal.tuning import train_each
from tests.defenses.fractal.certified import assert_not_contradicted

Digits = tuple[Tensor, Tensor, Tensor, Tensor]
Data = tuple[Tensor, Tensor]

SHAPE, OFFSET = (1, 8, 8), 0.4
OPTIONS: dict[str, Any] = {"epochs": 5, "batch": 64, "learning_rate": 5e-3, "offset": OFFSET}
SMALL = Fractal(**OPTIONS, levels="2+2+2", reserve=0.2, memorise=3)

pytestmark = pytest.mark.usefixtures("at_every_occasion")


@pytest.fixture(scope="module")
def data(digits: Digits) -> Data:
    """The digits 3, 5 and 8, as labels 0 to 2."""
    x, y = digits[:2]
    labels = torch.tensor([3, 5, 8])
    known = torch.isin(y, labels)
    return x[known], labels.eq(y[known][:, None]).int().argmax(1)


def trained(
    recipe: NBR,
    data: Data,
    checkpoint: Path | None = None,
    report: Callable[[Progress], None] | None = None,
) -> BeliefEnsemble:
    model = initialise(recipe, SHAPE, 3, 0)
    held = None if checkpoint is None else Checkpoint(checkpoint, "this")
    train(recipe, model, *data, threat=None, seed=0, checkpoint=held, report=report)
    assert isinstance(model, BeliefEnsemble)
    return model.requires_grad_(False)


def roles_by_epoch(recipe: NBR, data: Data, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The roles (k, n) that each epoch of a training has."""
    found: list[Tensor] = []
    begin = NBR.begin_epoch

    def noted(self: NBR, model: nn.Module, x: Tensor, y: Tensor, epoch: int) -> None:
        begin(self, model, x, y, epoch)
        assert isinstance(model, BeliefEnsemble)
        found.append(model.division.roles.clone())

    monkeypatch.setattr(NBR, "begin_epoch", noted)
    trained(recipe, data)
    assert len(found) == recipe.epochs
    return found


def test_a_memory_is_exact_at_its_centre_and_expands_no_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    memory = Memory(3, SHAPE).double()
    centres = torch.rand(2, *SHAPE, generator=generator, dtype=torch.float64)
    others = torch.rand(20, *SHAPE, generator=generator, dtype=torch.float64)
    memory.keep(0, centres[0], others, 1)
    memory.keep(2, centres[1], others, -1)
    nearest = (others[None] - centres[:, None]).flatten(2).norm(dim=2).amin(1)
    at = memory(centres)
    torch.testing.assert_close(at[0, 0], nearest[0] / 2, rtol=0, atol=1e-15)
    torch.testing.assert_close(at[1, 2], -nearest[1] / 2, rtol=0, atol=1e-15)
    # Half way to the nearest it changes its mind.
    between = (centres + others[distances(centres, others).argmin(1)]) / 2
    assert memory(between)[[0, 1], [0, 2]].abs().max() < 1e-12
    # It says nothing where nothing was kept.
    assert (memory(others)[:, 1] == 0).all()
    for size in (1e-6, 1e-2, 1.0):
        one = torch.rand(500, *SHAPE, generator=generator, dtype=torch.float64)
        step = size * torch.randn(500, *SHAPE, generator=generator, dtype=torch.float64)
        rise = (memory(one + step) - memory(one)).abs()
        assert (rise <= step.flatten(1).norm(dim=1)[:, None] * (1 + 1e-9)).all()
        away = memory(centres + step[:2])
        assert (away[0, 0] - at[0, 0]).abs() <= step[0].norm() * (1 + 1e-9)
    x = centres.clone().requires_grad_()
    (slope,) = torch.autograd.grad(memory(x).sum(), x)
    assert slope.isfinite().all()


@pytest.mark.parametrize(
    "recipe",
    [NBR(**OPTIONS, reserve=0.2), Fractal(**OPTIONS, levels="2+2+2", every=1, reserve=0.2), SMALL],
    ids=["nbr", "fractal", "fractal with memory"],
)
def test_what_is_reserved_is_in_no_training_set(
    recipe: NBR, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = data[1]
    reserved = recipe.reserved(y)
    assert reserved.sum() == len(y) // 5
    # Spread evenly: among any ten samples in a row there are two.
    assert (reserved.unfold(0, 10, 1).sum(1) == 2).all()
    for roles in roles_by_epoch(recipe, data, monkeypatch):
        assert (roles[:, reserved] == OUT).all()
        # Of the others, each is contrasted with some.
        memorised = (~(roles != OUT).any(0) & ~reserved).sum()
        assert memorised <= 3 * recipe.memorise


def test_without_a_reserve_all_samples_are_trained_on(data: Data) -> None:
    assert not NBR(**OPTIONS).reserved(data[1]).any()


def test_fractions_are_of_what_is_not_reserved(data: Data) -> None:
    assert (trained(NBR(**OPTIONS, reserve=0.3), data).fractions == 1).all()


def test_every_pair_that_is_not_reserved_is_contrasted_once(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Fractal(**OPTIONS, levels="2+2+2", reserve=0.2)
    roles = roles_by_epoch(recipe, data, monkeypatch)[-1] != OUT
    kept = ~recipe.reserved(data[1])
    for frame, (first, second) in enumerate([(0, 1), (0, 2), (1, 2)]):
        mine = roles[6 * frame : 6 * frame + 6].double()
        pairs = mine.T @ mine
        one, other = ((data[1] == label) & kept for label in (first, second))
        assert (pairs[one][:, other] == 1).all()


def test_trained_slopes_and_reliabilities_lower_the_loss_and_stay_in_range(data: Data) -> None:
    plain = trained(Fractal(**OPTIONS, levels="2+2+2"), data)
    outputs, y = plain.outputs_of(data[0]), data[1]
    offset = outputs.new_full((len(y),), OFFSET)

    def loss() -> float:
        return float(nn.functional.cross_entropy(plain.worst_case(outputs, y, offset), y))

    before, weights = loss(), fingerprint(plain.subtasks)
    plain.reliability.fill_(1.0)
    with torch.no_grad():
        train_each(plain, outputs, y, OFFSET)
    assert loss() < 0.9 * before
    assert (plain.slope > 0).all()
    assert ((plain.reliability > 0) & (plain.reliability <= 1)).all()
    assert len(plain.slope.unique()) > 6
    assert fingerprint(plain.subtasks) == weights


def test_a_reserve_is_what_they_are_trained_on(data: Data) -> None:
    recipe = NBR(**OPTIONS, reserve=0.2)
    model = trained(recipe, data)
    mine = recipe.reserved(data[1])
    slope, reliability = model.slope.clone(), model.reliability.clone()
    model.slope.fill_(recipe.slope)
    model.reliability.fill_(recipe.reliability)
    with torch.no_grad():
        train_each(model, model.outputs_of(data[0][mine]), data[1][mine], OFFSET)
    assert torch.equal(model.slope, slope)
    assert torch.equal(model.reliability, reliability)
    assert len(slope.unique()) == 3


def test_the_hardest_samples_become_memories(data: Data) -> None:
    x, y = data
    recipe = NBR(**OPTIONS, memorise=4, frames="0-1,0+1-2")
    model = initialise(recipe, SHAPE, 3, 0)
    assert isinstance(model, BeliefEnsemble)
    assert model.memory is not None
    with torch.no_grad():
        recipe.begin_epoch(model, x, y, 0)
        assert (model.outputs(x)[:, 2:] == 0).all()
        plain = BeliefEnsemble(model.frames[:2], 3, model.subtasks, rule="sum").eval()
        assert torch.equal(model(x), plain(x))
        margins = model.signs(y)[:2] * model.outputs_of(x)[:, :2].T
        recipe.begin_epoch(model, x, y, recipe.settled)
    groups = [(y == 0, y == 1), (y < 2, y == 2)]
    for frame, (first, second) in enumerate(groups):
        places = slice(4 * frame, 4 * frame + 4)
        centres = model.memory.centres[places]
        known = (distances(centres, x) == 0).int().argmax(1)
        inside = first | second
        hardest = margins[frame].masked_fill(~inside, torch.inf).sort().values[:4]
        torch.testing.assert_close(margins[frame][known].sort().values, hardest)
        assert (model.division.roles[frame, known] == OUT).all()
        assert (model.division.roles[frame] != OUT).sum() == inside.sum() - 4
        for place, i in zip(range(4 * frame, 4 * frame + 4), known.tolist(), strict=True):
            own, other = (first, second) if first[i] else (second, first)
            sign = 1 if first[i] else -1
            nearest = (x[other] - x[i]).flatten(1).norm(dim=1).amin()
            torch.testing.assert_close(model.memory.radii[place], nearest / 2)
            assert model.memory.signs[place] == sign
            expected = torch.tensor([1 / own.sum(), 1.0])
            torch.testing.assert_close(
                model.fractions[2 + place], expected if sign > 0 else expected.flip(0)
            )
            assert model.frames[2 + place].first == model.frames[frame].first
            assert model.outputs(x[i : i + 1])[0, 2 + place] * sign > 0


def test_a_memory_brings_its_sample_back(data: Data) -> None:
    """What all subtasks get wrong is right, or less wrong, where it is known by heart."""
    x, y = data[0][data[1] < 2], data[1][data[1] < 2]
    model = initialise(NBR(**OPTIONS, memorise=6, rule="minimum"), SHAPE, 2, 0)
    train(NBR(**OPTIONS, memorise=6, rule="minimum"), model, x, y, threat=None, seed=0)
    assert isinstance(model, BeliefEnsemble)
    assert model.memory is not None
    known = (distances(model.memory.centres, x) == 0).int().argmax(1)
    without = BeliefEnsemble(model.frames[:1], 2, model.subtasks).eval()
    with torch.no_grad():
        without.fractions.copy_(model.fractions[:1])

    def lead(logits: Tensor) -> Tensor:
        rows = torch.arange(len(known))
        return logits[rows, y[known]] - logits[rows, 1 - y[known]]

    assert (lead(model(x[known])) > lead(without(x[known]))).all()
    far = (distances(model.memory.centres, x) > model.memory.radii[:, None]).all(0)
    agreed = model(x[far]).argmax(1) == without(x[far]).argmax(1)
    assert agreed.double().mean() > 0.98


@pytest.mark.parametrize("rule", [pytest.param("sum", marks=pytest.mark.slow), "minimum"])
def test_no_strong_attack_contradicts_the_certificate(
    rule: Any, data: Data, digits: Digits
) -> None:
    model = trained(NBR(**OPTIONS, memorise=3, reserve=0.2, rule=rule), data)
    x, eps = digits[2][torch.isin(digits[3], torch.tensor([3, 5, 8]))][:25], 0.4
    assert_not_contradicted(model, x, eps)


def test_interrupted_and_resumed_is_the_same(data: Data, tmp_path: Path) -> None:
    whole = trained(SMALL, data)

    def stop(done: Progress) -> None:
        # After the training sets have settled, and memories are filled.
        if done.epoch == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(SMALL, data, tmp_path / "checkpoint", stop)
    resumed = trained(SMALL, data, tmp_path / "checkpoint")
    assert fingerprint(resumed) == fingerprint(whole)
    assert resumed.memory is not None
    assert (resumed.memory.signs != 0).all()


def test_a_plain_ensemble_has_no_more_weights_than_it_needs(data: Data) -> None:
    names = initialise(NBR(**OPTIONS), SHAPE, 3, 0).state_dict()
    own = {name for name in names if not name.startswith("subtasks.")}
    assert own == {"slope", "reliability", "fractions", "division._extra_state"}


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: NBR(offset=1.0, reserve=1.0), r"reserve must be in \[0, 1\)"),
        (lambda: NBR(offset=1.0, memorise=-1), "memorise at least 0"),
        (lambda: NBR(reserve=0.1), "reserve needs an offset"),
        (lambda: NBR(offset=1.0, memorise=1, epochs=1), "give 2 epochs or more"),
    ],
)
def test_options_that_are_none_get_one_line(make: Callable[[], NBR], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        make()


@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_is_of_outputs_moved_against_the_label(data: Data, balanced: bool) -> None:
    x, y = data[0][:40].double(), data[1][:40]
    recipe = NBR(offset=OFFSET, hard_offset=0.1, sharpness=2.0, balanced=balanced)
    model = initialise(recipe, SHAPE, 3, 0).double()
    assert isinstance(model, BeliefEnsemble)
    roles = torch.randint(0, 3, (3, 40), generator=torch.Generator().manual_seed(0)).byte()
    model.divide(roles * (model.signs(y) != 0), y)
    index = torch.arange(40)
    loss = recipe.loss(model, Batch(x, y, index, None, 0, 0, 1.0))
    outputs, expected = model.outputs(x), torch.zeros((), dtype=torch.float64)
    for k, (first, second) in enumerate([(0, 1), (0, 2), (1, 2)]):
        groups = {1: y == first, -1: y == second}
        share = {
            sign: float((roles[k] > 0)[group].double().mean()) for sign, group in groups.items()
        }
        for sign, group in groups.items():
            weight = 2 * share[-sign] / (share[1] + share[-1]) if balanced else 1.0
            for offset, role in ((OFFSET, 1), (0.1, 2)):
                margins = sign * outputs[group & (roles[k] == role), k] - offset
                expected = expected + weight * ((-2 * margins).exp() + 1).log().sum() / 2
    torch.testing.assert_close(loss, expected / 40, rtol=1e-6, atol=0)


def test_a_memory_of_nothing_costs_no_radius(data: Data) -> None:
    x, recipe = data[0][:20].double(), NBR(offset=OFFSET)
    plain, spare = (
        initialise(replace(recipe, memorise=count), SHAPE, 3, 0).double() for count in (0, 4)
    )
    assert isinstance(plain, BeliefEnsemble)
    assert isinstance(spare, BeliefEnsemble)
    torch.testing.assert_close(spare(x), plain(x))
    torch.testing.assert_close(spare.certified_radius(x), plain.certified_radius(x))
