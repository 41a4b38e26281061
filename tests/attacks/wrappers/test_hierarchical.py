"""Attacks on hierarchical classifiers that are made by hand."""

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, Attack, CarliniWagner, Problem, ThreatModel
from attacks.objectives import decided
from attacks.problem import NotApplicableError
from attacks.wrappers.robin import RoBinEvaluation
from attacks.wrappers.stages import Hierarchical
from tests.attacks.linear import Linear, mid_grey

BASES: list[Attack] = [PGD(steps=10, random_start=False), CarliniWagner(steps=50, searches=4)]


class TwoStages(nn.Module):
    """Two groups of two classes. Pixel 0 moves the coarse logits and pixel 1 the fine ones, with
    given slopes; both leads are 0.1 at mid-grey."""

    def __init__(self, coarse: float, fine: float) -> None:
        super().__init__()
        self.groups = torch.tensor([0, 0, 1, 1])
        self.coarse, self.fine = coarse, fine

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.coarse * (x[:, 0] - 0.5), self.fine * (x[:, 1] - 0.5)
        zero = torch.zeros_like(first)
        # The other group's logits are high, and must not matter.
        return torch.stack([zero + 0.1, first], 1), torch.stack(
            [zero + 0.1, second, zero + 5, zero + 3], 1
        )

    def forward(self, x: Tensor) -> Tensor:
        coarse, fine = self.stages(x)
        best = self.groups[None] == coarse.argmax(1)[:, None]
        return fine.masked_fill(~best, -100.0)


def _problem(coarse: float, fine: float) -> Problem:
    x = torch.full((3, 2), 0.5, dtype=torch.float64)
    model = TwoStages(coarse, fine)
    assert (model(x).argmax(1) == 0).all()
    return Problem(model, x, torch.zeros(3).long(), ThreatModel("l2", 0.15))


@pytest.mark.parametrize("base", BASES, ids=lambda base: type(base).__name__)
@pytest.mark.parametrize(
    ("coarse", "fine", "winners"),
    [
        (1.0, 0.1, {"first", "first-then-second"}),
        (0.1, 1.0, {"second", "first-then-second"}),
        (1.0, 1.0, {"first", "second", "first-then-second"}),
        (0.1, 0.1, set()),
    ],
)
def test_each_stage_breaks_what_it_can(
    base: Attack, coarse: float, fine: float, winners: set[str]
) -> None:
    problem = _problem(coarse, fine)
    for stage in ("first", "second", "first-then-second"):
        points = Hierarchical(base, stage)(problem)
        broken = problem.model(points).argmax(1) != problem.y
        assert (broken == (stage in winners)).all()
        assert (problem.threat.distance(points, problem.x) <= 0.15 + 1e-9).all()


def test_the_evaluation_of_robin_breaks_what_stages_break_and_what_the_whole_breaks() -> None:
    torch.manual_seed(0)
    model = LinearStages((1, 4, 4))
    x = mid_grey((1, 4, 4), 40) + 0.05 * torch.randn(40, 1, 4, 4)
    problem = Problem(model, x, model(x).argmax(1), ThreatModel("l2", 0.05))
    base = PGD(steps=8, random_start=False)
    broken = [
        model(attack(problem)).argmax(1) != problem.y
        for attack in (RoBinEvaluation(base), base, Hierarchical(base))
    ]
    assert torch.equal(broken[0], broken[1] | broken[2])
    # Its logits hide the classes of other groups, and so the gradient of the first stage.
    assert bool((broken[2] & ~broken[1]).any())


def test_a_minimal_norm_attack_keeps_the_closer_of_both_stages() -> None:
    attack = Hierarchical(CarliniWagner(steps=100, searches=4, minimize=True))
    for slopes, optimum in (((0.5, 1.0), 0.1), ((2.0, 1.0), 0.05)):
        problem = _problem(*slopes)
        distance = problem.threat.distance(attack(problem), problem.x)
        assert (distance >= optimum).all()
        assert (distance <= 1.02 * optimum).all()


def test_a_sample_that_either_stage_gets_wrong_is_broken_by_any() -> None:
    """The second stage is wrong from the start, and an attack on the first sees it."""
    problem = _problem(0.1, 0.1)
    for label in (1, 2, 3):
        wrong = Problem(problem.model, problem.x, problem.y + label, problem.threat)
        for stage in ("first", "second", "first-then-second"):
            calls = torch.zeros(3)
            counted = Problem(
                wrong.model,
                wrong.x,
                wrong.y,
                wrong.threat,
                meter=lambda rows, _, calls=calls: calls.index_add_(0, rows, torch.ones(3)),
            )
            points = Hierarchical(BASES[0], stage)(counted)
            assert (wrong.model(points).argmax(1) != wrong.y).all()
            assert (calls == 2).all()


class LinearStages(Linear):
    """Four classes in groups of one and three: the first two logits are coarse."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, 6)
        self.groups = torch.tensor([1, 0, 1, 1])

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().forward(x)
        return logits[:, :2], logits[:, 2:]

    def forward(self, x: Tensor) -> Tensor:
        coarse, fine = self.stages(x)
        return fine.masked_fill(self.groups[None] != coarse.argmax(1)[:, None], -100.0)


@pytest.mark.parametrize("shape", [(50,), (1, 8, 8)])
@pytest.mark.parametrize("stage", ["first", "second", "first-then-second"])
@pytest.mark.parametrize("base", BASES, ids=lambda base: type(base).__name__)
def test_a_batch_of_one_is_as_the_whole_batch(
    base: Attack, stage: str, shape: tuple[int, ...]
) -> None:
    """A group of a single class has no second stage: those samples stay where they are."""
    model, x = LinearStages(shape), mid_grey(shape, 8)
    problem = Problem(model, x, model(x).argmax(1), ThreatModel("l2", 0.1))
    points = Hierarchical(base, stage)(problem)
    single = problem.y == 1
    assert single.any()
    assert not single.all()
    for i in range(8):
        one = Hierarchical(base, stage)(problem.select(torch.tensor([i])))
        torch.testing.assert_close(one[0], points[i])
    if stage == "second":
        assert torch.equal(points[single], x[single])


def test_the_first_stage_reaches_the_closed_form() -> None:
    """Two coarse logits: the distance to the coarse boundary is known."""
    model, x = LinearStages((50,)), mid_grey((50,), 8)
    problem = Problem(model, x, model(x).argmax(1), ThreatModel("l2", 1.0))
    attack = Hierarchical(CarliniWagner(steps=200, searches=5, minimize=True), "first")
    points = attack(problem)
    coarse = model.stages(x)[0]
    difference = (model.weight[0] - model.weight[1]).norm()
    optimum = (coarse[:, 0] - coarse[:, 1]).abs() / difference
    distance = problem.threat.distance(points, x)
    assert decided(model(points), problem.y).all()
    # Where the fine stage is nearer, the way to the coarse boundary may cross it.
    assert (distance <= 1.01 * optimum).all()


def test_refusals() -> None:
    problem = Problem(
        Linear((50,), 3), mid_grey((50,), 2), torch.zeros(2).long(), ThreatModel("l2", 1.0)
    )
    with pytest.raises(NotApplicableError, match="offers no stages"):
        Hierarchical(PGD())(problem)
    with pytest.raises(ValueError, match="unknown stage"):
        Hierarchical(PGD(), "third")
    with pytest.raises(ValueError, match="cannot be the base"):
        Hierarchical(Hierarchical(PGD()))(_problem(1.0, 1.0))
