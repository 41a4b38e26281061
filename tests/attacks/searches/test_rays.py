"""RayS sees decisions alone, and comes near the boundary of linear models all the same."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks import Problem, ThreatModel
from attacks.objectives import decided
from attacks.searches.rays import RayS
from tests.attacks.linear import Linear, metered, mid_grey


@pytest.mark.parametrize("classes", [2, 5])
def test_it_comes_near_the_boundary(classes: int) -> None:
    shape = (16,)
    model, x = Linear(shape, classes), mid_grey(shape, 10)

    def decisions(points: Tensor) -> Tensor:
        return functional.one_hot(model(points).argmax(1), classes).to(points.dtype)

    y = model(x).argmax(1)
    problem = Problem(decisions, x, y, ThreatModel("linf", 0.3))
    points = RayS(minimize=True)(problem)
    found = decided(decisions(points), y)
    assert found.double().mean() >= 0.9
    ratio = problem.threat.distance(points, x) / model.optimum(x, y, "linf")
    assert (ratio[found] >= 1 - 1e-4).all()
    assert ratio[found].median() < 1.3


def test_it_stops_within_eps_and_at_its_queries() -> None:
    model, x = Linear((16,), 2), mid_grey((16,), 10)
    y = model(x).argmax(1)
    for attack in (RayS(steps=300), RayS(steps=300, minimize=True)):
        problem, calls = metered(Problem(model, x, y, ThreatModel("linf", 0.4)))
        assert decided(model(attack(problem)), y).any()
        assert (calls <= (attack.facts.passes or 0)).all()


def test_it_begins_with_the_signs_toward_a_start() -> None:
    """Which are the best there are here; its bisections end at 1/256 of the box."""
    model, x = Linear((16,), 2), mid_grey((16,), 10)
    y = model(x).argmax(1)
    best = (model.weight[1 - y] - model.weight[y]).sign()
    problem = Problem(model, x, y, ThreatModel("linf", 1.0), start=x + best)
    points = RayS(steps=1, minimize=True)(problem)
    distance = problem.threat.distance(points, problem.x)
    assert torch.allclose(distance, model.optimum(x, y, "linf").double(), atol=1 / 256)


def test_zero_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RayS(steps=0)


def test_no_sample_decides_when_another_is_given_up() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    x = torch.rand(6, 1, 8, 8)
    problem = Problem(model, x, model(x).argmax(1), ThreatModel("linf", 0.05))
    with torch.no_grad():
        points = RayS(steps=600)(problem)
        alone = [RayS(steps=600)(problem.select(torch.tensor([i]))) for i in range(6)]
    assert torch.equal(points, torch.cat(alone))
