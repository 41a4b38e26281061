"""DDN: on linear models it ends at the boundary; on masked ones it gets there all the same."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacks import Problem, ThreatModel
from attacks.objectives import decided
from attacks.searches.ddn import DDN
from attacks.threat import Norm
from tests.attacks.linear import Linear, mid_grey

NORMS: tuple[Norm, ...] = ("l2", "linf")


def _problem(norm: Norm, shape: tuple[int, ...], classes: int, eps: float = 1.0) -> Problem:
    model, x = Linear(shape, classes), mid_grey(shape, 12)
    return Problem(model, x, model(x).argmax(1), ThreatModel(norm, eps))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("shape", [(40,), (3, 6, 6)])
def test_it_ends_at_the_nearest_boundary(norm: Norm, classes: int, shape: tuple[int, ...]) -> None:
    problem = _problem(norm, shape, classes)
    optimum = problem.model.optimum(problem.x, problem.y, norm)
    points = DDN(minimize=True)(problem)
    assert decided(problem.logits(points), problem.y).all()
    ratio = problem.threat.distance(points, problem.x) / optimum
    assert (ratio > 1 - 1e-4).all()
    assert (ratio < 1.02).all()


@pytest.mark.parametrize("norm", NORMS)
def test_without_minimize_it_ends_within_eps_for_fewer_passes(norm: Norm) -> None:
    problem = _problem(norm, (40,), 10)
    optimum = problem.model.optimum(problem.x, problem.y, norm)
    eps = float(optimum.median())
    passes = []
    for attack in (DDN(minimize=True), DDN()):
        count: list[int] = []
        meter = lambda rows, _, count=count: count.append(len(rows))  # noqa: E731
        tight = replace(problem, threat=ThreatModel(norm, eps * 1.02), meter=meter)
        points = attack(tight)
        distance = problem.threat.distance(points, problem.x)
        assert ((distance <= eps * 1.02) & (distance > 0))[optimum <= eps].all()
        passes.append(sum(count))
    assert passes[1] < 0.8 * passes[0]
    assert passes[0] <= 12 * (DDN().facts.passes or 0)


def test_a_staircase_does_not_stop_it() -> None:
    problem = _problem("l2", (40,), 3)
    model = problem.model
    steps = replace(problem, model=lambda x: model((x * 32).round() / 32))
    optimum = model.optimum(problem.x, problem.y, "l2")
    points = DDN(minimize=True)(steps)
    assert decided(steps.logits(points), steps.y).all()
    assert (problem.threat.distance(points, problem.x) < 1.1 * optimum + 0.05).all()


@pytest.mark.parametrize("norm", NORMS)
def test_what_cannot_be_broken_comes_back_as_it_is(norm: Norm) -> None:
    def certain(x: Tensor) -> Tensor:
        return torch.stack([1 + 0 * x[:, 0], 0 * x[:, 0]], 1)

    x = torch.rand(4, 5)
    problem = Problem(certain, x, torch.zeros(4).long(), ThreatModel(norm, 0.5))
    assert DDN(steps=30, minimize=True)(problem).equal(x)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 20"):
        DDN(steps=10)
