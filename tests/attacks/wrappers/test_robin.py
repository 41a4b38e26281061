"""RoBin's evaluation: softmax, top-2 and best-arm, and the base alone where there are no arms."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attacks import PGD, Attack, CarliniWagner, Problem, ThreatModel
from attacks.objectives import decided
from attacks.wrappers.arms import BestArm, SoftmaxAttack, Top2
from attacks.wrappers.robin import RoBinEvaluation
from attacks.wrappers.targeted import Targeted
from attacks.wrappers.wrapper import Wrapper
from tests.attacks.linear import Linear, metered, mid_grey
from tests.attacks.wrappers.arms import Aggregation, Random, breaks, grey, on_pixels

PARTS = [SoftmaxAttack, Top2, BestArm]


def _joint(x: Tensor) -> Tensor:
    """The label's arm has to fall and the third to rise; the second stays below."""
    fall, near, far = (x[:, :3] - 0.5).unbind(1)
    return torch.stack([-fall, -0.1 + 0.005 * (200 * near).tanh(), -0.11 + far], 1)


def _misled(x: Tensor) -> Tensor:
    """The label's arm has to fall and the second to rise, and where it does, three others fall,
    which stay below but draw the softmax the other way."""
    fall, rise = (x[:, :2] - 0.5).unbind(1)
    return torch.stack([-fall, -0.1 + rise, *3 * [-0.2 - 0.05 * (20 * rise).tanh()]], 1)


def _opposed(x: Tensor) -> Tensor:
    """The label's arm has to fall, and the second, which falls with it, is steeper at first."""
    rise = x[:, 0] - 0.5
    return torch.stack([rise, -0.15 + 0.05 * (60 * rise).tanh()], 1)


@pytest.mark.parametrize(
    ("scores", "eps", "winner"),
    [(_joint, 0.09, SoftmaxAttack), (_misled, 0.09, Top2), (_opposed, 0.25, BestArm)],
)
def test_it_breaks_what_only_one_of_its_parts_breaks(
    scores: Callable[[Tensor], Tensor], eps: float, winner: type[Wrapper]
) -> None:
    problem = grey(Aggregation(scores), 3, eps)
    base = PGD(steps=40, step_size=0.01, random_start=False)
    assert [part for part in PARTS if breaks(part(base), problem)] == [winner]
    assert breaks(RoBinEvaluation(base), problem)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("minimize", [None, False, True])
def test_it_breaks_what_any_of_its_parts_breaks_and_no_more(
    classes: int, minimize: bool | None
) -> None:
    """Bases that draw no noise; where they minimise, the closest point counts."""
    model, eps = Random(classes, classes, (1, 4, 4)).double(), 0.1
    x = torch.rand(60, 1, 4, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    y[::9] = (y[::9] + 1) % classes
    problem = Problem(model, x, y, ThreatModel("l2", eps))
    base: Attack = PGD(steps=5, random_start=False)
    if minimize is not None:
        base = CarliniWagner(steps=15, searches=2, minimize=minimize)
    reach = []
    for attack in (RoBinEvaluation, *PARTS):
        points = attack(base)(problem)
        distance = problem.threat.distance(points, x)
        reach.append(torch.where(decided(model(points), y), distance, torch.inf))
    least = torch.stack(reach[1:]).amin(0)
    assert torch.equal(reach[0] <= eps + 1e-9, least <= eps + 1e-9)
    assert 7 <= int((least <= eps + 1e-9).sum()) < 60
    if minimize:
        torch.testing.assert_close(reach[0], least)


@pytest.mark.parametrize("base", [PGD(steps=4, restarts=2), CarliniWagner(20, 2)])
def test_it_on_a_model_without_arms_is_its_base(base: Attack) -> None:
    model, x = Linear((50,), 5), mid_grey((50,), 9)
    runs = []
    for attack in (base, RoBinEvaluation(base)):
        problem, calls = metered(Problem(model, x, model(x).argmax(1), ThreatModel("l2", 0.1), 3))
        runs.append((attack(problem), calls))
    assert all(map(torch.equal, *runs))


def test_it_does_not_nest_with_others_that_choose_what_their_base_sees() -> None:
    problem = grey(on_pixels(1.0, 0.0, 0.0), 3, 0.1)
    for attack in (
        RoBinEvaluation(BestArm(PGD())),
        Targeted(RoBinEvaluation(PGD()), classes=2),
    ):
        with pytest.raises(ValueError, match="cannot be the base"):
            attack(problem)
