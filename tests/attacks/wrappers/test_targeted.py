"""Targeted runs against the closed form, and on models where the right target is known."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacks import PGD, Attack, CarliniWagner, Problem, ThreatModel
from attacks.objectives import decided, targeted_dlr
from attacks.searches.square import Square
from attacks.targets import by_distance, by_logit
from attacks.wrappers.targeted import Targeted
from tests.attacks.linear import Linear, mid_grey

SHAPES = [(50,), (1, 8, 8)]


def _problem(shape: tuple[int, ...], classes: int, norm: str, eps: float) -> Problem:
    model, x = Linear(shape, classes), mid_grey(shape, 6)
    return Problem(model, x, model(x).argmax(1), ThreatModel(norm, eps))


def _at(problem: Problem, i: int, eps: float) -> Problem:
    """One sample under a budget of its own."""
    threat = ThreatModel(problem.threat.norm, eps)
    return Problem(problem.model, problem.x[i : i + 1], problem.y[i : i + 1], threat)


def _breaks(attack: Attack, problem: Problem) -> bool:
    points = problem.threat.enforce(attack(problem), problem.x)
    return bool(decided(problem.model(points), problem.y).any())


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("objective", ["margin", "dlr"])
@pytest.mark.parametrize("shape", SHAPES)
def test_pgd_agrees_with_the_closed_form_on_either_side(
    norm: str, objective: str, shape: tuple[int, ...]
) -> None:
    """Of ten classes: without targets, PGD may climb toward one that is not the nearest."""
    problem = _problem(shape, 10, norm, 1.0)
    optimum = problem.model.optimum(problem.x, problem.y, norm)
    # The ratio's denominator turns its gradient away, less and less as the target comes closer.
    base = PGD(steps=10 if objective == "margin" else 30, random_start=False)
    for i in range(3):
        for factor, broken in ((1.01, True), (0.99, False)):
            one = _at(problem, i, factor * float(optimum[i]))
            assert _breaks(Targeted(base, objective=objective), one) is broken


def _two_ways(x: Tensor) -> Tensor:
    """Class 1 is behind by less and cannot catch up; class 2 overtakes at distance 0.1."""
    return torch.stack(
        [0 * x[:, 0], -0.1 + 0.05 * (x[:, 0] - 0.5).tanh(), 10 * (x[:, 1] - 0.5) - 1], 1
    )


@pytest.mark.parametrize("objective", ["margin", "dlr"])
def test_it_goes_for_the_highest_classes_first_and_for_as_many_as_asked(objective: str) -> None:
    x = torch.full((2, 2), 0.5, dtype=torch.float64)
    problem = Problem(_two_ways, x, torch.zeros(2).long(), ThreatModel("l2", 0.101))
    assert by_logit(problem).tolist() == [[1, 2]] * 2
    for base in (PGD(steps=10, random_start=False), CarliniWagner(steps=50, searches=4)):
        assert not _breaks(Targeted(base, 1, objective), problem)
        assert _breaks(Targeted(base, 2, objective), problem)
        assert _breaks(Targeted(base, 9, objective), problem)


def test_targeted_cross_entropy_finds_the_way_that_its_gradient_allows() -> None:
    x = torch.full((1, 2), 0.5, dtype=torch.float64)
    model = lambda x: torch.stack([0 * x[:, 0], x[:, 0] - 0.55, x[:, 1] - 0.55], 1)  # noqa: E731
    problem = Problem(model, x, torch.tensor([0]), ThreatModel("l2", 0.01))
    base = PGD(steps=1, step_size=0.01, random_start=False)
    step = (Targeted(base, objective="cross-entropy")(problem) - x)[0]
    # d log(p / (1 - p)): 1 for the target's logit, minus the softmax of the others'.
    way = torch.tensor([1.0, -torch.tensor([0.0, -0.05]).softmax(0)[1]], dtype=torch.float64)
    torch.testing.assert_close(step, 0.01 * way / way.norm(), rtol=1e-6, atol=1e-9)


def test_the_ratio_is_that_of_the_paper() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0, 2.0]])
    assert targeted_dlr(logits, torch.tensor([0]), torch.tensor([2])).item() == pytest.approx(-0.4)
    few = logits[:, :3]
    assert targeted_dlr(few, torch.tensor([0]), torch.tensor([2])).item() == -1


def test_cw_keeps_the_closest_of_its_targets() -> None:
    problem = _problem((50,), 4, "l2", 1.0)
    attack = Targeted(CarliniWagner(steps=200, searches=5, minimize=True))
    optimum = problem.model.optimum(problem.x, problem.y, "l2")
    ratio = problem.threat.distance(attack(problem), problem.x) / optimum
    assert ratio.min() >= 1
    assert ratio.max() <= 1.01


@pytest.mark.parametrize("objective", ["margin", "cross-entropy", "dlr"])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_of_one_is_as_the_whole_batch(
    objective: str, classes: int, shape: tuple[int, ...]
) -> None:
    """Each target draws its own noise, named by the sample and not by the batch."""
    problem = _problem(shape, classes, "l2", 0.05)
    problem.y[0] = (problem.y[0] + 1) % classes
    attack = Targeted(PGD(steps=3), 3, objective)
    points = attack(problem)
    assert decided(problem.model(points), problem.y)[0]
    for i in range(6):
        one = attack(problem.select(torch.tensor([i])))
        torch.testing.assert_close(one[0], points[i])


def test_each_target_draws_its_own_noise_and_the_first_that_of_the_base() -> None:
    seeds = []

    class Spy(PGD):
        def __call__(self, problem: Problem) -> Tensor:
            seeds.append(problem.seed)
            return super().__call__(problem)

    problem = _problem((50,), 4, "l2", 1e-6)
    for seed in (0, 2**63 - 1):
        Targeted(Spy(steps=1))(Problem(problem.model, problem.x, problem.y, problem.threat, seed))
    assert (seeds[0], seeds[3]) == (0, 2**63 - 1)
    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_broken_sample_leaves_and_passes_bound_the_work() -> None:
    problem = _problem((50,), 10, "l2", 1e-6)
    y = problem.y.clone()
    y[:4] = (y[:4] + 1) % 10
    calls = torch.zeros(6)
    counted = Problem(
        problem.model,
        problem.x,
        y,
        problem.threat,
        meter=lambda rows, _: calls.index_add_(0, rows, torch.ones(len(rows))),
    )
    attack = Targeted(PGD(steps=4, restarts=2), 5)
    attack(counted)
    # A look at the clean image, one at the start, and one at what came of it.
    assert (calls[:4] == 3).all()
    assert (calls[4:] == attack.facts.passes).all()


def test_refusals() -> None:
    problem = _problem((50,), 3, "l2", 1.0)
    with pytest.raises(ValueError, match="at least 1"):
        Targeted(PGD(), 0)
    with pytest.raises(ValueError, match="unknown objective"):
        Targeted(PGD(), objective="hinge")
    with pytest.raises(ValueError, match="cannot be the base"):
        Targeted(Targeted(PGD()))(problem)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_by_distance_the_nearest_boundary_comes_first(norm: str) -> None:
    """On a linear model distances are exact, whatever the logits say."""
    model, x = Linear((12,), 6), mid_grey((12,), 30)
    model.weight[1:] *= torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0])[:, None]
    y = model(x).argmax(1)
    problem = Problem(model, x, y, ThreatModel(norm, 1.0))
    classes, distance = by_distance(problem, 5)
    assert torch.allclose(distance[:, 0], model.optimum(x, y, norm))
    assert (distance.diff(dim=1) >= 0).all()
    assert not torch.equal(classes, by_logit(problem))
    eps = float(distance[:, 0].max()) * 1.01
    one = replace(problem, threat=ThreatModel(norm, eps, -9.0, 9.0))
    steps = PGD(steps=40, random_start=False)
    assert _breaks(Targeted(steps, 1, ranking="distance"), one)


def test_where_there_are_no_gradients_targets_are_ranked_by_logits() -> None:
    """A base that needs none works on, though a ranking by distance takes some."""
    model, x = Linear((1, 8, 8), 3), mid_grey((1, 8, 8), 6)
    y = model(x).argmax(1)
    problem = Problem(lambda points: model(points).detach(), x, y, ThreatModel("linf", 0.2))
    by_rank = [
        Targeted(Square(steps=20), 1, ranking=ranking)(problem) for ranking in ("logit", "distance")
    ]
    assert torch.equal(*by_rank)


def test_an_unknown_ranking_is_refused() -> None:
    with pytest.raises(ValueError, match="targeted: unknown ranking 'slope': use logit or"):
        Targeted(PGD(), ranking="slope")  # type: ignore[arg-type]
