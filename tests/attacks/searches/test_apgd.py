"""Auto-PGD: closed forms, and what its step sizes do."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacks import APGD, Problem, ThreatModel
from attacks.objectives import decided, margin
from attacks.searches.apgd import _checkpoints, _State
from tests.attacks.linear import Linear, mid_grey

SHAPES = [(50,), (1, 8, 8), (3, 5, 4)]
NORMS = ["l2", "linf", "l1"]
# How many times a budget must exceed the distance for the class that is climbed not to matter.
FAR = {"l2": 2, "linf": 2, "l1": 3}
BUDGETS = {"l2": 0.4, "linf": 0.05, "l1": 2.0}
BIAS = torch.zeros(2, dtype=torch.float64, requires_grad=True)


def _problem(shape: tuple[int, ...], classes: int, n: int, norm: str, eps: float) -> Problem:
    model = Linear(shape, classes)
    x = mid_grey(shape, n)
    return Problem(model, x, model(x).argmax(1), ThreatModel(norm, eps))


def _broken(attack: APGD, problem: Problem) -> Tensor:
    points = problem.threat.enforce(attack(problem), problem.x)
    return decided(problem.model(points), problem.y)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("objective", ["cross-entropy", "margin", "dlr"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_agrees_with_the_closed_form_on_either_side(
    norm: str, objective: str, shape: tuple[int, ...]
) -> None:
    problem = _problem(shape, 2, 40, norm, 1.0)
    optimum = problem.model.optimum(problem.x, problem.y, norm)
    attack = APGD(steps=20, objective=objective)
    for factor, broken in ((1.001, True), (0.999, False)):
        for i in range(0, 40, 8):
            one = problem.select(torch.tensor([i]))
            one = replace(one, threat=ThreatModel(norm, factor * float(optimum[i])))
            assert bool(_broken(attack, one)) is broken


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("objective", ["cross-entropy", "margin", "dlr"])
def test_on_ten_classes_it_never_claims_the_impossible(norm: str, objective: str) -> None:
    """And breaks all samples well beyond their boundary; near it, it may climb toward a class that
    is not the nearest."""
    problem = _problem((1, 8, 8), 10, 64, norm, 1.0)
    optimum = problem.model.optimum(problem.x, problem.y, norm)
    eps = float(optimum.median())
    broken = _broken(
        APGD(steps=30, objective=objective), replace(problem, threat=ThreatModel(norm, eps))
    )
    assert not broken[optimum > eps].any()
    assert broken[FAR[norm] * optimum < eps].all()
    assert (2 * optimum < eps).sum() > 5


def test_checkpoints_are_those_of_the_paper() -> None:
    """22, 19, 16, ... percent of the steps after one another, and never less than 6."""
    assert sorted(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(_checkpoints(1000)) == [220, 410, 570, 700, 800, 870, 930, 990]


@pytest.mark.parametrize(
    ("rises", "kept", "improved", "halves"),
    [
        (20, True, True, False),
        (15, True, True, False),  # three of four are enough
        (14, True, True, True),
        (14, False, True, True),
        (20, True, False, True),
        (20, False, False, False),  # the size was halved at the last checkpoint
    ],
)
def test_a_step_size_is_halved_on_either_condition(
    rises: int, kept: bool, improved: bool, halves: bool
) -> None:
    """In a window of 20 steps; beside a sample that keeps its own."""
    problem = _problem((3,), 2, 2, "l2", 0.5)
    state = _State.begin(problem, problem.x, margin)
    away = state.points + 0.1
    state.points, state.previous = away, away - 0.1
    state.rises = torch.tensor([float(rises), 20.0])
    state.kept = torch.tensor([kept, True])
    state.best_value = state.checked + torch.tensor([float(improved), 1.0])
    state.check(20)
    assert state.size.tolist() == [0.5 if halves else 1.0, 1.0]
    assert torch.equal(state.points[0], problem.x[0] if halves else away[0])
    assert torch.equal(state.points[1], away[1])
    assert state.kept.tolist() == [not halves, True]
    assert state.rises.sum() == 0


def _ridge(x: Tensor) -> Tensor:
    """The highest lead, -1, is where pixel 0 is 0.537; steps that are too long go to and fro."""
    lead = -1 - (x[:, 0] - 0.537).abs()
    return torch.stack([torch.zeros_like(lead), lead], 1)


def test_steps_become_short_enough_to_stay_on_a_ridge() -> None:
    """Each checkpoint halves them; 100 steps have 8."""
    x = torch.full((1, 1), 0.5, dtype=torch.float64)
    visited: list[float] = []

    def model(points: Tensor) -> Tensor:
        visited.append(points.item())
        return _ridge(points)

    problem = Problem(model, x, torch.tensor([0]), ThreatModel("linf", 0.25))
    point = APGD(objective="margin")(problem).item()
    assert point == pytest.approx(0.537, abs=0.25 / 2**8)
    strides = torch.tensor(visited).diff().abs()
    assert strides[:20].max() > 0.25
    for checkpoint in (22, 41, 57, 70, 80, 87, 93):
        # What is left of the momentum may add to the first two.
        assert strides[checkpoint + 2 : checkpoint + 6].max() < strides[: checkpoint - 1].max()
    assert strides[-4:].max() <= 0.25 / 2**6


def _bumpy(x: Tensor) -> Tensor:
    """Four classes, many local maxima."""
    generator = torch.Generator().manual_seed(5)
    first = torch.randn(8, 24, generator=generator, dtype=torch.float64) * 4
    second = torch.randn(24, 4, generator=generator, dtype=torch.float64)
    return (x.flatten(1) @ first).sin() @ second


def _hard(norm: str, n: int = 40) -> Problem:
    x = mid_grey((1, 2, 4), n, 0.9)
    eps = {"l2": 0.12, "linf": 0.05, "l1": 0.3}[norm]
    return Problem(_bumpy, x, _bumpy(x).argmax(1), ThreatModel(norm, eps))


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_only_help(norm: str) -> None:
    problem = _hard(norm, 200)
    one, four = (_broken(APGD(steps=8, restarts=n), problem) for n in (1, 4))
    assert four[one].all()
    assert four.sum() > one.sum()
    assert torch.equal(APGD(steps=8, restarts=4)(problem)[one], APGD(steps=8)(problem)[one])


# Under L1 the first steps go to wider budgets, so that more of them need not end higher.
@pytest.mark.parametrize("norm", NORMS[:2])
def test_more_steps_never_lower_the_value(norm: str) -> None:
    problem = _hard(norm)
    values = [
        margin(_bumpy(APGD(steps=n, objective="margin").maximise(problem)), problem.y)
        for n in (1, 4, 100)
    ]
    # All begin with the same step.
    assert (values[2] >= values[0]).all()
    assert (values[2] > values[1]).double().mean() > 0.5


@pytest.mark.parametrize("norm", NORMS)
def test_maximise_goes_on_past_the_first_misclassification(norm: str) -> None:
    problem = _hard(norm)
    attack = APGD(steps=30, objective="margin")
    stopped, furthest = (f(problem) for f in (attack, attack.maximise))
    first, highest = (margin(_bumpy(points), problem.y) for points in (stopped, furthest))
    broken = first > 0
    assert 5 < broken.sum() < 40
    assert (highest >= first - 1e-9).all()
    assert (highest[broken] > first[broken] + 0.1).double().mean() > 0.5
    torch.testing.assert_close(stopped[~broken], furthest[~broken], rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_it_begins_at_the_start(norm: str) -> None:
    """One that is broken costs a pass; one beyond the ball is brought into it."""
    problem = _problem((1, 8, 8), 2, 10, norm, BUDGETS[norm])
    weight = problem.model.weight
    way = (weight[1 - problem.y] - weight[problem.y]).view_as(problem.x)
    calls = torch.zeros(10)
    one = lambda rows, _: calls.index_add_(0, rows, torch.ones(len(rows)))  # noqa: E731
    begun = replace(problem, start=problem.x + 100 * way, meter=one)
    points = APGD(steps=5, restarts=2)(begun)
    assert (calls == 1).all()
    assert torch.equal(points, problem.threat.project(begun.start, problem.x))
    assert decided(problem.model(points), problem.y).all()


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_decided_costs_nothing_more(norm: str) -> None:
    problem = _problem((50,), 2, 30, norm, 1e-9)
    problem.y[:10] = 1 - problem.y[:10]
    calls = torch.zeros(30)
    one = lambda rows, _: calls.index_add_(0, rows, torch.ones(len(rows)))  # noqa: E731
    attack = APGD(steps=20, restarts=2)
    attack(replace(problem, meter=one))
    assert (calls[:10] == 1).all()
    assert (calls[10:] == attack.facts.passes).all()


@pytest.mark.parametrize("norm", NORMS)
def test_no_sample_minds_the_others(norm: str) -> None:
    problem = _hard(norm)
    attack = APGD(steps=40, restarts=2, objective="dlr")
    points = attack(problem)
    for order in (torch.arange(40).flip(0), torch.tensor([7]), torch.tensor([2, 31, 4])):
        some = attack(problem.select(order))
        torch.testing.assert_close(some, points[order], rtol=0, atol=1e-9)


@pytest.mark.parametrize("last", [torch.Tensor.detach, lambda logits: logits.detach() + BIAS])
def test_a_model_without_gradients_is_refused_in_one_line(last: Callable[..., Tensor]) -> None:
    """None at all, or none that reach the images."""
    problem = _problem((50,), 2, 3, "l2", 0.1)
    blind = replace(problem, model=lambda x: last(problem.model(x)))
    with pytest.raises(ValueError, match=r"^the model gives no gradients: use strong, smoothed:"):
        APGD()(blind)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"restarts": 0}, {"objective": "hinge"}])
def test_hyperparameters_out_of_range_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="apgd: "):
        APGD(**bad)
