"""A smoothed attack passes what stops its base, and is never weaker on what does not."""

import pytest
import torch
from torch import Tensor, nn

from attacks import APGD, PGD, Attack, CarliniWagner, Problem, ThreatModel
from attacks.libraries.foolbox import Foolbox
from attacks.objectives import decided
from attacks.wrappers.smoothed import Smoothed
from tests.attacks.linear import Linear, mid_grey


class Dead(nn.Module):
    """A unit that is off at the image and whose turning on decides, 0.2 away."""

    def forward(self, x: Tensor) -> Tensor:
        lead = torch.relu(x.flatten(1).mean(1) - 0.6) - 0.05
        return torch.stack([torch.zeros_like(lead), lead], 1)


BASES: list[Attack] = [
    PGD(steps=40, random_start=False),
    APGD(steps=40),
    Foolbox("LinfPGD", {"steps": 40, "random_start": False}),
]


@pytest.mark.parametrize("base", BASES, ids=["pgd", "apgd", "foolbox"])
def test_it_passes_what_stops_its_base(base: Attack) -> None:
    x, y = torch.full((3, 1, 4, 4), 0.4), torch.zeros(3).long()
    problem = Problem(Dead(), x, y, ThreatModel("linf", 0.26))
    points = problem.threat.project(Smoothed(base)(problem), x)
    assert decided(Dead()(points), y).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_linear_model_is_broken_as_by_the_base(norm: str) -> None:
    model, x = Linear((40,), 5), mid_grey((40,), 20)
    y = model(x).argmax(1)
    eps = float(model.optimum(x, y, norm).median())
    problem = Problem(model, x, y, ThreatModel(norm, eps))
    base = PGD(steps=20)
    alone, around = (decided(model(attack(problem)), y) for attack in (base, Smoothed(base)))
    assert (around >= alone).all()


def test_the_closer_of_both_runs_counts() -> None:
    model, x = Linear((40,), 5), mid_grey((40,), 10)
    y = model(x).argmax(1)
    problem = Problem(model, x, y, ThreatModel("l2", 1.0))
    base = CarliniWagner(steps=60, searches=3, minimize=True)
    distances = [problem.threat.distance(of(problem), x) for of in (base, Smoothed(base))]
    assert (distances[1] <= distances[0] * 1.02).all()


def test_temperatures_that_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="hot must be at least cold"):
        Smoothed(PGD(), hot=0.1, cold=1.0)
