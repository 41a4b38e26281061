"""Attacks on aggregations that are made by hand, so that what each does is known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attacks import PGD, Attack, CarliniWagner, Problem, ThreatModel
from attacks.objectives import decided
from attacks.problem import NotApplicableError
from attacks.wrappers.arms import (
    AverageGradient,
    BestArm,
    HighestArm,
    SoftmaxAttack,
    SoftmaxTop2,
    Top2,
)
from attacks.wrappers.robin import RoBinEvaluation
from attacks.wrappers.wrapper import Wrapper
from tests.attacks.linear import Linear, mid_grey
from tests.attacks.wrappers.arms import Aggregation, Random, breaks, grey, on_pixels

SIX = [BestArm, Top2, SoftmaxAttack, HighestArm, AverageGradient, SoftmaxTop2]
ALL = [*SIX, RoBinEvaluation]
ONE_STEP = PGD(steps=1, step_size=0.01, random_start=False)


SCORES = torch.tensor([1.0, -2.0, 0.5, -0.3], dtype=torch.float64)
SLOPES = SCORES.sigmoid() * torch.tensor([0, 1, 1, 1])
SLOPES[0] = -(-SCORES[0]).sigmoid()
OTHERS = SCORES[1:].softmax(0)
DIRECTIONS = [
    (HighestArm, [-1, 0, 0, 0]),
    (BestArm, [-1, 0, 0, 0]),  # no run breaks the sample, and the first is kept
    (Top2, [SLOPES[0], 0, SLOPES[2], 0]),
    (AverageGradient, SLOPES.tolist()),
    (SoftmaxAttack, [-1, *OTHERS.tolist()]),
    (SoftmaxTop2, [-1, 0, 1, 0]),
]


@pytest.mark.parametrize(("attack", "direction"), DIRECTIONS)
def test_one_step_goes_the_way_that_the_paper_says(
    attack: type[Wrapper], direction: list[float]
) -> None:
    problem = grey(on_pixels(*SCORES.tolist()), 4, 0.01)
    step = attack(ONE_STEP)(problem) - problem.x
    way = torch.tensor(direction, dtype=torch.float64)
    torch.testing.assert_close(step[0], 0.01 * way / way.norm())


@pytest.mark.parametrize("attack", SIX)
def test_confident_arms_keep_a_direction(attack: type[Wrapper]) -> None:
    """In float32, where the slopes of such losses are 0."""
    x = torch.full((2, 3), 0.5)
    model = on_pixels(300.0, -300.0, -400.0)
    problem = Problem(model, x, torch.zeros(2).long(), ThreatModel("l2", 0.01))
    step = attack(ONE_STEP)(problem) - x
    torch.testing.assert_close(step.norm(dim=1), torch.full((2,), 0.01))
    assert (step[:, 0] < 0).all()


def _deaf(x: Tensor) -> Tensor:
    """The label's arm is constant and the second highest stays below it; the third overtakes."""
    near, far = x[:, 0] - 0.5, x[:, 1] - 0.5
    return torch.stack([0 * near, -0.1 + 0.05 * near.tanh(), -0.5 + 10 * far], 1)


def _crowd(x: Tensor) -> Tensor:
    """Arm 1 overtakes the label's when the pixel rises; three others rise when it falls, in vain,
    and have the larger mean gradient, but not the larger softmax-weighted one."""
    rise = x[:, 0] - 0.5
    return torch.stack([0 * rise, -0.5 + 10 * rise, *3 * [-2 - 14 * rise]], 1)


def _blind(x: Tensor) -> Tensor:
    """Only the label's arm depends on the image."""
    return torch.stack([1 - 10 * (x[:, 0] - 0.5), *3 * [0 * x[:, 0]]], 1)


WINNERS = [
    (_deaf, {BestArm, SoftmaxAttack, AverageGradient}),
    (_crowd, {BestArm, SoftmaxAttack, Top2, SoftmaxTop2}),
    (_blind, set(SIX)),
]


@pytest.mark.parametrize("attack", SIX)
@pytest.mark.parametrize(("scores", "winners"), WINNERS)
def test_who_breaks_what(
    attack: type[Wrapper], scores: Callable[[Tensor], Tensor], winners: set[type[Wrapper]]
) -> None:
    problem = grey(Aggregation(scores), 2, 0.11)
    base = PGD(steps=20, random_start=False)
    assert bool(breaks(attack(base), problem)) is (attack in winners)
    minimal = CarliniWagner(steps=50, searches=4)
    assert bool(breaks(attack(minimal), problem)) is (attack in winners)


def test_best_arm_of_a_minimal_norm_attack_keeps_the_closest() -> None:
    """One arm overtakes at 0.1, a higher one at 0.2."""
    model = Aggregation(
        lambda x: torch.stack([0 * x[:, 0], 5 * x[:, 0] - 3.5, 20 * x[:, 1] - 12], 1)
    )
    problem = grey(model, 2, 0.3)
    for minimize, most in ((True, 0.102), (False, 0.3)):
        attack = BestArm(CarliniWagner(steps=100, searches=4, minimize=minimize))
        distance = float(problem.threat.distance(attack(problem), problem.x))
        assert 0.1 <= distance <= most


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(
    "base",
    [PGD(steps=4), PGD(steps=3, restarts=2, objective="margin"), CarliniWagner(20, 2)],
    ids=lambda base: type(base).__name__,
)
def test_best_arm_breaks_all_that_highest_arm_breaks(base: Attack, classes: int, seed: int) -> None:
    """Misclassified samples among them; and it breaks some more."""
    model = Random(seed, classes, (1, 4, 4))
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    y = model(x).argmax(1)
    y[::7] = (y[::7] + 1) % classes
    problem = Problem(model, x, y, ThreatModel("l2", 0.15))
    highest, best = HighestArm(base)(problem), BestArm(base)(problem)
    broken, also = (
        (model(p).argmax(1) != y) & (problem.threat.distance(p, x) <= 0.15 + 1e-6)
        for p in (highest, best)
    )
    assert also[broken].all()
    assert 0 < broken.sum() < 40
    if base.facts.family == "fixed-budget":
        torch.testing.assert_close(best[broken], highest[broken], rtol=0, atol=0)


class LinearArms(Linear):
    def arms(self, x: Tensor) -> Tensor:
        return self(x)


@pytest.mark.parametrize("attack", ALL)
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("shape", [(50,), (1, 8, 8)])
def test_a_batch_of_one_is_as_the_whole_batch(
    attack: type[Wrapper], classes: int, shape: tuple[int, ...]
) -> None:
    model, x = LinearArms(shape, classes), mid_grey(shape, 6)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % classes
    for base in (PGD(steps=5), CarliniWagner(steps=10, searches=2)):
        whole = Problem(model, x, y, ThreatModel("l2", 0.1), seed=3)
        points = attack(base)(whole)
        for i in range(6):
            one = attack(base)(whole.select(torch.tensor([i])))
            torch.testing.assert_close(one[0], points[i])


@pytest.mark.parametrize("attack", ALL)
def test_misclassified_samples_stay_so(attack: type[Wrapper]) -> None:
    model, x = LinearArms((50,), 10), mid_grey((50,), 8)
    y = model(x).argmin(1)
    for base in (PGD(steps=5), CarliniWagner(steps=10, searches=2)):
        problem = Problem(model, x, y, ThreatModel("l2", 1e-3))
        assert decided(model(attack(base)(problem)), y).all()


@pytest.mark.parametrize("attack", SIX)
def test_a_model_without_arms_is_refused_before_any_work(attack: type[Wrapper]) -> None:
    def never(rows: Tensor, logits: Tensor) -> None:
        raise AssertionError("worked")

    x = mid_grey((50,), 2)
    problem = Problem(Linear((50,), 3), x, torch.zeros(2).long(), ThreatModel("l2", 1.0))
    with pytest.raises(NotApplicableError, match="offers no arms"):
        attack(PGD())(Problem(problem.model, x, problem.y, problem.threat, meter=never))
    with pytest.raises(ValueError, match="cannot be the base"):
        BestArm(attack(PGD()))(grey(on_pixels(1.0, 0.0), 2, 0.1))


@pytest.mark.parametrize("attack", SIX[1:])
@pytest.mark.parametrize("base", [PGD(steps=7, restarts=2), CarliniWagner(30, 3)])
def test_passes_bound_the_work(attack: type[Wrapper], base: Attack) -> None:
    model, x = LinearArms((50,), 3), mid_grey((50,), 5)
    calls = torch.zeros(5)
    problem = Problem(
        model,
        x,
        model(x).argmax(1),
        ThreatModel("l2", 1e-6),
        meter=lambda rows, _: calls.index_add_(0, rows, torch.ones(len(rows))),
    )
    attack(base)(problem)
    assert 0 < calls.max() <= attack(base).facts.passes
