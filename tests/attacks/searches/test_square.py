"""The Square attack: it needs scores alone, and no sample minds another."""

import pytest
import torch

from attacks import Problem, ThreatModel
from attacks.objectives import decided, margin
from attacks.searches.square import Square, _eta, _sides
from tests.attacks.linear import Linear, metered, mid_grey

SHAPES = [(50,), (1, 9, 5), (3, 5, 8)]
NORMS = ["l2", "linf", "l1"]
BUDGETS = {"l2": 0.4, "linf": 0.05, "l1": 2.0}


def _problem(shape: tuple[int, ...], classes: int, n: int, norm: str, eps: float) -> Problem:
    model = Linear(shape, classes)
    x = mid_grey(shape, n)
    return Problem(model, x, model(x).argmax(1), ThreatModel(norm, eps))


@pytest.mark.parametrize("shape", SHAPES)
def test_in_linf_it_breaks_what_can_be_broken(shape: tuple[int, ...]) -> None:
    """And nothing else: single pixels at plus or minus eps are the optimum of a linear model."""
    problem = _problem(shape, 2, 20, "linf", 1.0)
    optimum = problem.model.optimum(problem.x, problem.y, "linf")
    eps = float(optimum.median())
    narrow = Problem(problem.model, problem.x, problem.y, ThreatModel("linf", eps))
    broken = decided(problem.model(Square(1500)(narrow)), problem.y)
    assert not broken[optimum > eps].any()
    assert broken[optimum < 0.95 * eps].all()
    assert (optimum < 0.95 * eps).sum() > 5


@pytest.mark.parametrize("shape", SHAPES)
def test_in_l2_it_breaks_what_lies_well_within(shape: tuple[int, ...]) -> None:
    """Bumps cannot follow random weights, so that it takes a multiple of the optimum."""
    problem = _problem(shape, 2, 20, "l2", 1.0)
    optimum = problem.model.optimum(problem.x, problem.y, "l2")
    eps = float(optimum.median())
    narrow = Problem(problem.model, problem.x, problem.y, ThreatModel("l2", eps))
    broken = decided(problem.model(Square(500)(narrow)), problem.y)
    assert not broken[optimum > eps].any()
    assert broken[2 * optimum < eps].all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("shape", SHAPES)
def test_points_lie_in_the_ball_and_the_box(
    shape: tuple[int, ...], classes: int, norm: str
) -> None:
    """At the ends of the box, where clipping takes most; the L2 budget is spent all the same."""
    eps = 0.7 if norm == "l2" else 0.1
    model = Linear(shape, classes)
    x = mid_grey(shape, 10, 1.0).round()
    y = model(x).argmax(1)
    problem = Problem(model, x, y, ThreatModel(norm, eps))
    points = Square(60)(problem)
    distance = problem.threat.distance(points, x)
    assert distance.max() <= eps * (1 + 1e-9)
    assert distance.min() >= eps * 0.98
    assert points.min() >= 0
    assert points.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_does_not_mind_its_batch(shape: tuple[int, ...], norm: str) -> None:
    problem = _problem(shape, 10, 12, norm, 0.02 if norm == "l2" else 0.004)
    attack = Square(100, restarts=2)
    whole = attack(problem)
    for order in (torch.arange(12).flip(0), torch.tensor([7]), torch.tensor([2, 9, 4])):
        assert torch.allclose(attack(problem.select(order)), whole[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_the_margin_only_rises(norm: str) -> None:
    """One query is the start of every run of the same seed."""
    problem = _problem((3, 5, 8), 10, 20, norm, 1e-4)
    start, end = (margin(problem.model(Square(n)(problem)), problem.y) for n in (1, 200))
    assert (end >= start).all()
    assert (end > start).double().mean() > 0.9


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_decided_costs_nothing_more(norm: str) -> None:
    problem = _problem((1, 8, 8), 2, 30, norm, 1e-9)
    problem.y[:10] = 1 - problem.y[:10]
    counted, calls = metered(problem)
    attack = Square(20, restarts=2)
    points = attack(counted)
    assert torch.equal(points[:10], problem.x[:10])
    assert (calls[:10] == 1).all()
    assert (calls[10:] == attack.facts.passes).all()
    wide, calls = metered(_problem((1, 8, 8), 2, 30, norm, 0.5))
    assert decided(wide.model(attack(wide)), wide.y).all()
    assert calls.median() < 10


@pytest.mark.parametrize("norm", NORMS)
def test_it_climbs_stairs(norm: str) -> None:
    """Scores without a gradient."""
    problem = _problem((1, 8, 8), 2, 10, norm, BUDGETS[norm])
    model = lambda x: (problem.model(x) * 50).floor()  # noqa: E731
    y = model(problem.x).argmax(1)
    stairs = Problem(model, problem.x, y, problem.threat)
    assert decided(model(Square(500)(stairs)), y).all()


@pytest.mark.parametrize("norm", NORMS)
def test_it_begins_at_the_start(norm: str) -> None:
    """One that is broken costs a query; one beyond the ball is brought into it."""
    problem = _problem((1, 8, 8), 2, 10, norm, BUDGETS[norm])
    weight = problem.model.weight
    way = (weight[1 - problem.y] - weight[problem.y]).view_as(problem.x)
    begun = Problem(
        problem.model, problem.x, problem.y, problem.threat, start=problem.x + 100 * way
    )
    counted, calls = metered(begun)
    points = Square(50)(counted)
    assert (calls == 2).all()
    assert decided(problem.model(points), problem.y).all()
    assert problem.threat.distance(points, problem.x).max() <= problem.threat.eps * (1 + 1e-9)


def test_restarts_work_on_what_is_left() -> None:
    problem = _problem((1, 8, 8), 2, 30, "linf", 0.004)
    one, two = (decided(problem.model(Square(15, restarts=n)(problem)), problem.y) for n in (1, 8))
    assert two[one].all()
    assert two.sum() > one.sum()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("sides", [(1, 1), (1, 7), (6, 1), (3, 3), (4, 5)])
def test_windows_have_norm_one_and_two_signs(sides: tuple[int, int], order: int) -> None:
    for eta in _eta(order, *sides, torch.float32, torch.device("cpu")):
        assert eta.shape == sides
        assert eta.norm(order).item() == pytest.approx(1)
        assert (eta.min() < 0 < eta.max()) == (max(sides) > 1)


def test_windows_keep_their_area_where_a_square_does_not_fit() -> None:
    assert _sides(28, 28, 0.8) == (25, 25)
    assert _sides(1, 100, 0.3) == (1, 30)
    assert _sides(100, 2, 0.3) == (30, 2)
    assert _sides(8, 8, 1e-6) == (1, 1)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"restarts": 0}, {"p": 0.0}, {"p": 1.5}])
def test_hyperparameters_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="square: "):
        Square(**bad)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4, 5)])
def test_signals_and_volumes_are_broken_too(shape: tuple[int, ...], norm: str) -> None:
    problem = _problem(shape, 2, 4, norm, 1.0)
    points = Square(steps=200)(problem)
    assert points.shape == problem.x.shape
    assert bool((problem.threat.distance(points, problem.x) <= 1.0 + 1e-5).all())
    assert bool((problem.model(points).argmax(1) != problem.y).all())
