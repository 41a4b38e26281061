"""The boundary attack: it needs decisions alone, and no sample minds another."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacks import Problem, ThreatModel
from attacks.objectives import decided
from attacks.searches.boundary import Boundary
from tests.attacks.linear import Linear, metered, mid_grey

SHAPES = [(50,), (1, 8, 8), (3, 5, 4)]


class Decisions(torch.nn.Module):
    """A linear model that tells its decisions alone, so that it has no gradient."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.linear = Linear(shape, classes)
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        decisions = self.linear(x).argmax(1)
        return torch.nn.functional.one_hot(decisions, self.classes).double()


def _problem(shape: tuple[int, ...], classes: int, n: int, eps: float = 1.0) -> Problem:
    model = Decisions(shape, classes)
    x = mid_grey(shape, n)
    return Problem(model, x, model(x).argmax(1), ThreatModel("l2", eps))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_does_not_mind_its_batch(shape: tuple[int, ...]) -> None:
    problem = _problem(shape, 10, 12, eps=0.02)
    attack = Boundary(200)
    whole = attack(problem)
    for order in (torch.arange(12).flip(0), torch.tensor([7]), torch.tensor([2, 9, 4])):
        assert torch.allclose(attack(problem.select(order)), whole[order], rtol=0, atol=1e-9)


def test_seeds_differ() -> None:
    problem = _problem((50,), 2, 3)
    other = Problem(problem.model, problem.x, problem.y, problem.threat, seed=1)
    attack = Boundary(20, minimize=True)
    assert not torch.allclose(attack(problem), attack(other), atol=1e-3)


def _island() -> tuple[Problem, Tensor]:
    """All points are of class 0, but for a small ball around sample 1, the centre (1, *shape)."""
    x = mid_grey((1, 6, 6), 3, spread=0.9)
    centre = x[1:2].clone()

    def model(points: Tensor) -> Tensor:
        inside = (points - centre).flatten(1).norm(dim=1) < 0.3
        return torch.nn.functional.one_hot(inside.long(), 2).double()

    return Problem(model, x, model(x).argmax(1), ThreatModel("l2", 0.1)), centre


def test_a_sample_without_a_start_is_left_out() -> None:
    problem, _ = _island()
    points = Boundary(100, minimize=True)(problem)
    broken = decided(problem.model(points), problem.y)
    assert broken.tolist() == [False, True, False]
    assert torch.equal(points[[0, 2]], problem.x[[0, 2]])
    assert 0.3 <= problem.threat.distance(points, problem.x)[1] <= 0.301


def test_a_start_is_used_where_it_is_misclassified() -> None:
    """Only from its start does a sample find the island; a start of no use is replaced."""
    problem, centre = _island()
    start = problem.x.clone()
    start[0] = centre[0]
    with_start = Problem(problem.model, problem.x, problem.y, problem.threat, start=start)
    points = Boundary(300, minimize=True)(with_start)
    broken = decided(problem.model(points), problem.y)
    assert broken.tolist() == [True, True, False]
    optimum = problem.threat.distance(centre, problem.x[:1])[0] - 0.3
    assert 1 <= problem.threat.distance(points, problem.x)[0] / optimum <= 1.02


def test_points_lie_in_the_box_and_more_steps_come_closer() -> None:
    """Images of black and white pixels: many are stopped by the box."""
    shape = (1, 8, 6)
    model = Decisions(shape, 10)
    x = mid_grey(shape, 30, 1.0).round()
    problem = Problem(model, x, model(x).argmax(1), ThreatModel("l2", 1e-6))
    before = torch.full((30,), torch.inf).double()
    for steps in (1, 100, 600):
        points = Boundary(steps)(problem)
        assert points.min() >= 0
        assert points.max() <= 1
        assert decided(model(points), problem.y).all()
        distance = problem.threat.distance(points, x)
        assert distance.median() < 0.9 * before.median()
        before = distance


def test_what_is_decided_costs_nothing_more() -> None:
    problem = _problem((50,), 2, 30, eps=0.02)
    problem.y[:10] = 1 - problem.y[:10]
    counted, calls = metered(problem)
    attack = Boundary(300)
    points = attack(counted)
    assert torch.equal(points[:10], problem.x[:10])
    assert (calls[:10] == 1).all()
    broken = problem.threat.distance(points, problem.x) <= 0.02
    optimum = problem.model.linear.optimum(problem.x, problem.y, "l2")
    assert broken[10:][optimum[10:] < 0.01].all()
    assert (calls[~broken] == attack.facts.passes - 1).all()
    assert (calls[broken] < attack.facts.passes - 1).all()
    assert calls[10:][optimum[10:] < 0.005].median() < 100


@pytest.mark.parametrize("minimize", [False, True])
def test_a_batch_that_is_misclassified_comes_back_at_once(minimize: bool) -> None:
    problem = _problem((3, 5, 4), 10, 4)
    problem.y[:] = (problem.y + 1) % 10
    counted, calls = metered(problem)
    assert torch.equal(Boundary(minimize=minimize)(counted), problem.x)
    assert (calls == 1).all()


def test_it_finds_what_lies_within_eps() -> None:
    """In float32, as the evaluator has it: what it stops at holds without any tolerance."""
    problem = _problem((1, 8, 8), 2, 40)
    optimum = problem.model.linear.optimum(problem.x, problem.y, "l2")
    x, eps = problem.x.float(), float(optimum.median())
    narrow = Problem(problem.model, x, problem.y, ThreatModel("l2", eps))
    points = Boundary(600)(narrow)
    assert points.dtype == torch.float32
    inside = narrow.threat.distance(points, x) <= eps
    assert not inside[optimum > eps * 1.001].any()
    assert inside[optimum < eps * 0.9].all()


def test_a_hopeless_sample_is_given_up_and_a_near_one_is_not() -> None:
    """Unless asked to minimize."""
    problem = _problem((1, 8, 8), 2, 40)
    optimum = problem.model.linear.optimum(problem.x, problem.y, "l2")
    eps = float(optimum.median())
    counted, calls = metered(replace(problem, threat=ThreatModel("l2", eps)))
    points = Boundary(2000)(counted)
    broken = problem.threat.distance(points, problem.x) <= eps
    assert broken[optimum < 0.97 * eps].all()
    assert (optimum > 2 * eps).any()
    assert (calls[optimum > 2 * eps] < 1200).all()
    counted, calls = metered(replace(problem, threat=ThreatModel("l2", 1e-9)))
    Boundary(600, minimize=True)(counted)
    assert (calls > 600).all()


def test_steps_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Boundary(steps=0)
