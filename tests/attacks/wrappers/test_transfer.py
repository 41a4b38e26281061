"""Points crafted on one model and brought to another."""

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, Attack, CarliniWagner, Problem, ThreatModel
from attacks.objectives import decided
from attacks.problem import NotApplicableError
from attacks.searches.square import Square
from attacks.wrappers.arms import BestArm
from attacks.wrappers.targeted import Targeted
from attacks.wrappers.transfer import Seeded, Transfer
from tests.attacks.linear import Linear, mid_grey

CW = CarliniWagner(steps=100, searches=4, minimize=True)
SMALL = CarliniWagner(steps=20, searches=3, minimize=True)
SHAPES = [(50,), (1, 8, 8)]


def _problem(shape: tuple[int, ...], classes: int, eps: float, **peers: nn.Module) -> Problem:
    model, x = Linear(shape, classes), mid_grey(shape, 8)
    y = model(x).argmax(1)
    return Problem(model, x, y, ThreatModel("l2", eps), peers={"itself": model, **peers})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [2, 10])
def test_transfer_from_the_target_itself_is_the_base(shape: tuple[int, ...], classes: int) -> None:
    problem = _problem(shape, classes, 0.05)
    problem.y[0] = (problem.y[0] + 1) % classes
    for base in (PGD(steps=5), PGD(steps=5, random_start=False, objective="margin")):
        points = Transfer(base, "itself")(problem)
        assert torch.equal(points, base.maximise(problem))
    for base in (SMALL, Targeted(SMALL, 1)):
        assert torch.equal(Transfer(base, "itself")(problem), base(problem))


class Permuted(Linear):
    """The same boundaries under other names: a targeted attack on it must ask for its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).roll(1, dims=1)


@pytest.mark.parametrize("base", [PGD(steps=20), CW, Targeted(PGD(steps=20))])
def test_targeted_transfer_goes_to_the_second_highest_class_of_the_target(base: Attack) -> None:
    problem = _problem((50,), 5, 3.0, other=Permuted((50,), 5))
    second = problem.model(problem.x).topk(2).indices[:, 1]
    attack = Transfer(base, "other", targeted=True)
    if isinstance(base, Targeted):
        with pytest.raises(ValueError, match="cannot be the base"):
            attack(problem)
        return
    points = attack(problem)
    moved = (points != problem.x).any(1)
    assert moved.any()
    assert (problem.peers["other"](points).argmax(1) == second)[moved].all()
    untargeted = problem.peers["other"](Transfer(base, "other")(problem)).argmax(1)
    assert (untargeted != second).any()


class Line(nn.Module):
    """Two classes, the boundary at pixel 0 = `at`."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([0 * x[:, 0], x[:, 0] - self.at], 1)


def _lines(eps: float) -> Problem:
    x = torch.full((2, 3), 0.5, dtype=torch.float64)
    y = torch.zeros(2).long()
    return Problem(Line(0.7), x, y, ThreatModel("l2", eps), peers={"near": Line(0.6)})


@pytest.mark.parametrize("base", [CW, CarliniWagner(steps=100, searches=3), PGD(steps=5),
                                  Targeted(PGD(steps=5, random_start=False))])  # fmt: skip
def test_points_go_beyond_the_source_s_boundary(base: Attack) -> None:
    """The source breaks at 0.1, the target at 0.2 on the same way."""
    problem = _lines(0.25)
    points = Transfer(base, "near")(problem)
    assert decided(problem.model(points), problem.y).all()
    assert (problem.threat.distance(points, problem.x) <= 0.25 + 1e-9).all()
    short = Transfer(base, "near")(_lines(0.15))
    assert not decided(problem.model(short), problem.y).any()
    if base.facts.family == "minimal-norm":
        assert torch.equal(short, problem.x)


def test_a_stretched_point_uses_the_budget_that_the_box_leaves() -> None:
    """Pixel 0 can only rise to 1, so pixel 1 takes the rest."""

    class Sum(nn.Module):
        def __init__(self, at: float) -> None:
            super().__init__()
            self.at = at

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([0 * x[:, 0], x.sum(1) - self.at], 1)

    x = torch.tensor([[0.95, 0.5]], dtype=torch.float64)
    problem = Problem(
        Sum(1.7), x, torch.tensor([0]), ThreatModel("l2", 0.25), peers={"near": Sum(1.5)}
    )
    points = Transfer(CW, "near")(problem)
    assert decided(problem.model(points), problem.y).all()
    assert problem.threat.distance(points, x).item() == pytest.approx(0.25, rel=1e-2)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_image_that_the_source_misclassifies_has_no_way_to_be_stretched(norm: str) -> None:
    """At any eps, in float32: it comes back as it is, not as NaN."""
    x = torch.full((2, 3), 0.5)
    peers = {"near": Line(0.4)}
    for eps in (0.1, 2.0, 100.0):
        problem = Problem(Line(0.7), x, torch.zeros(2).long(), ThreatModel(norm, eps), peers=peers)
        for base in (Square(steps=5), SMALL):
            assert torch.equal(Transfer(base, "near")(problem), x)


class Saturated(nn.Module):
    """Right by a sigmoid that is flat, in float32, from 0.2 from its boundary; at mid-grey the
    boundary is 0.3 away, for every slope."""

    def __init__(self, slope: float = 100.0) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        rise = ((x.flatten(1) - 0.5) / x[0].numel() ** 0.5).sum(1)
        right = (self.slope * (0.3 - rise)).sigmoid()
        return torch.stack([right, torch.full_like(right, 0.5)], 1)

    def surrogate(self) -> nn.Module:
        return Saturated(5.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 3])
def test_a_seed_gets_around_a_vanishing_gradient(shape: tuple[int, ...], n: int) -> None:
    x = torch.full((n, *shape), 0.5)
    problem = Problem(Saturated(), x, torch.zeros(n).long(), ThreatModel("l2", 0.32))
    for base in (CW, CarliniWagner(steps=100, searches=4)):
        points = Seeded(base)(problem)
        assert decided(problem.model(points), problem.y).all()
        distance = problem.threat.distance(points, x)
        assert (distance >= 0.3 - 1e-6).all()
        assert (distance <= 0.32).all()
    assert not decided(problem.model(PGD(random_start=False)(problem)), problem.y).any()
    for attack in (Transfer(PGD()), Seeded(PGD(random_start=False)), Transfer(CW)):
        assert decided(problem.model(attack(problem)), problem.y).all()


def test_a_peer_lends_its_surrogate() -> None:
    """As for competitors of the fractal model: the same seeds."""
    x = torch.full((2, 50), 0.5)
    y = torch.zeros(2).long()
    plain = lambda x: Saturated()(x)  # noqa: E731
    problem = Problem(plain, x, y, ThreatModel("l2", 0.32), peers={"fractal": Saturated()})
    points = Seeded(CW, "fractal")(problem)
    assert decided(plain(points), y).all()


def test_the_base_is_started_from_what_it_found_on_the_source() -> None:
    starts = []

    class Spy(PGD):
        def __call__(self, problem: Problem) -> Tensor:
            starts.append((problem.model, problem.start))
            return super().__call__(problem)

    problem = _lines(0.15)
    base = Spy(steps=5)
    Seeded(base, "near")(problem)
    (source, nothing), (target, start) = starts
    assert (source, nothing, target) == (problem.peers["near"], None, problem.model)
    assert decided(source(start), problem.y).all()


def test_a_seed_that_is_closer_than_what_comes_of_it_is_kept() -> None:
    class Far(PGD):
        """Ignores starts, and returns the far end of the ball."""

        def __call__(self, problem: Problem) -> Tensor:
            if problem.start is None:
                return super().__call__(problem)
            return self.maximise(problem)

    problem = _lines(0.4)
    problem.peers["near"].at = 0.71
    points = Seeded(Far(steps=50, random_start=False, step_size=0.01), "near")(problem)
    assert decided(problem.model(points), problem.y).all()
    assert (problem.threat.distance(points, problem.x) < 0.23).all()


@pytest.mark.parametrize("attack", [Transfer(PGD(steps=4), "near"), Transfer(CW, "near"),
                                    Transfer(PGD(steps=4), "near", True), Seeded(CW, "near"),
                                    Seeded(PGD(steps=4), "near")])  # fmt: skip
@pytest.mark.parametrize("eps", [0.05, 0.3])
def test_passes_bound_the_work_on_both_models(attack: Attack, eps: float) -> None:
    problem = _lines(eps)
    calls = torch.zeros(2)
    counted = Problem(
        problem.model,
        problem.x,
        problem.y,
        problem.threat,
        meter=lambda rows, _: calls.index_add_(0, rows, torch.ones(len(rows))),
        peers=problem.peers,
    )
    attack(counted)
    assert 0 < calls.max() <= attack.facts.passes
    if attack == Transfer(PGD(steps=4), "near"):
        assert (calls == 4).all()  # all of them on the source


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [2, 10])
def test_a_batch_of_one_is_as_the_whole_batch(shape: tuple[int, ...], classes: int) -> None:
    problem = _problem(shape, classes, 0.05, other=Permuted(shape, classes))
    problem.y[:2] = (problem.y[:2] + 1) % classes
    for base in (PGD(steps=4), SMALL, Targeted(PGD(steps=3), 2)):
        attacks = [Transfer(base, "other"), Seeded(base, "other")]
        if not isinstance(base, Targeted):
            attacks.append(Transfer(base, "other", targeted=True))
        for attack in attacks:
            points = attack(problem)
            for i in range(0, 8, 3):
                one = attack(problem.select(torch.tensor([i])))
                torch.testing.assert_close(one[0], points[i])


@pytest.mark.parametrize("attack", [Transfer, Seeded])
def test_refusals(attack: type[Transfer] | type[Seeded]) -> None:
    problem = _lines(0.1)
    with pytest.raises(ValueError, match=r"no other model 'far' .*use one of near"):
        attack(PGD(), "far")(problem)
    with pytest.raises(ValueError, match="there is none"):
        attack(PGD(), "far")(Problem(problem.model, problem.x, problem.y, problem.threat))
    with pytest.raises(ValueError, match="cannot be the base"):
        Targeted(attack(PGD(), "near"))(problem)
    with pytest.raises(NotApplicableError, match="offers no arms"):
        attack(BestArm(PGD()), "near")(problem)


@pytest.mark.parametrize("attack", [Transfer(PGD()), Transfer(CW), Seeded(CW), Seeded(PGD())])
def test_a_model_without_a_surrogate_is_smoothed(attack: Attack) -> None:
    x = torch.full((3, 50), 0.5)
    y = torch.zeros(3).long()
    saturated = lambda x: Saturated()(x)  # noqa: E731
    problem = Problem(saturated, x, y, ThreatModel("l2", 0.32))
    assert not decided(saturated(PGD(random_start=False)(problem)), y).any()
    assert decided(saturated(attack(problem)), y).all()
