"""Attacks against the closed-form optimum of a linear classifier."""

import pytest
import torch

from attacks import PGD, Attack, CarliniWagner, Problem, ThreatModel
from attacks.objectives import decided
from attacks.searches.boundary import Boundary
from tests.attacks.linear import Linear, mid_grey

SHAPES = [(50,), (1, 8, 8), (3, 5, 4)]
CLASSES = [2, 10]

# Minimal-norm attacks, and how far from the optimum each may land.
MINIMAL: list[tuple[Attack, float]] = [
    (CarliniWagner(steps=300, searches=3, minimize=True), 1.01),
    (Boundary(steps=3000, minimize=True), 1.05),
]


def _problem(shape: tuple[int, ...], classes: int, n: int, norm: str, eps: float) -> Problem:
    model = Linear(shape, classes)
    x = mid_grey(shape, n)
    return Problem(model, x, model(x).argmax(1), ThreatModel(norm, eps))


@pytest.mark.parametrize(
    ("n", "shape", "classes"),
    [
        pytest.param(n, shape, classes, marks=() if (n, place) == (64, turn) else pytest.mark.slow)
        for n in (1, 3, 64)
        for place, shape in enumerate(SHAPES)
        for turn, classes in enumerate(CLASSES)
    ],
)
@pytest.mark.parametrize(
    ("attack", "most", "norm"),
    [(attack, most, norm) for attack, most in MINIMAL for norm in attack.facts.norms],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_minimal_norm_attacks_land_near_the_optimum(
    attack: Attack, most: float, norm: str, shape: tuple[int, ...], classes: int, n: int
) -> None:
    problem = _problem(shape, classes, n, norm, 1.0)
    points = attack(problem)
    optimum = problem.model.optimum(problem.x, problem.y, norm)
    ratio = problem.threat.distance(points, problem.x) / optimum
    assert decided(problem.model(points), problem.y).all()
    assert ratio.min() >= 1
    assert ratio.max() <= most


@pytest.mark.parametrize("shift", [0.0, 1e3, 1e4])
def test_cw_does_not_mind_a_constant_in_all_logits(shift: float) -> None:
    """In float32, on logits whose leads are of the usual size, about 10."""
    problem = _problem((1, 8, 8), 3, 20, "l2", 1.0)
    x, y = problem.x.float(), problem.y
    model = lambda x: 300 * problem.model(x) + shift  # noqa: E731
    shifted = Problem(model, x, y, problem.threat)
    points = CarliniWagner(steps=200, searches=6, minimize=True)(shifted)
    ratio = problem.threat.distance(points, x) / problem.model.optimum(x, y, "l2")
    assert ratio.median() <= 1.02
    assert decided(model(points), y).all()


def test_cw_does_not_mind_the_size_of_the_logits() -> None:
    """The binary search on c finds its way over eight orders of magnitude."""
    problem = _problem((1, 8, 8), 10, 20, "l2", 1.0)
    optimum = problem.model.optimum(problem.x, problem.y, "l2")
    for scale in (1e-3, 1e4):
        model = lambda x, scale=scale: scale * problem.model(x)  # noqa: E731
        scaled = Problem(model, problem.x, problem.y, problem.threat)
        points = CarliniWagner(steps=500, searches=14, minimize=True)(scaled)
        ratio = problem.threat.distance(points, problem.x) / optimum
        assert ratio.min() >= 1
        assert ratio.max() <= 1.02


def test_cw_moves_pixels_at_the_ends_of_the_box() -> None:
    """Black and white images: only moving inward is allowed, which still crosses the boundary."""
    model = Linear((1, 8, 8), 2)
    x = mid_grey((1, 8, 8), 40, 1.0).round()
    problem = Problem(model, x, model(x).argmax(1), ThreatModel("l2", 8.0))
    points = CarliniWagner(minimize=True)(problem)
    distance = problem.threat.distance(points, x)
    assert decided(model(points), problem.y).all()
    best = torch.full((40,), torch.inf, dtype=torch.float64)
    for j in range(2):
        nearest = _nearest_in_box(model, x, problem.y, j)
        best = torch.where(problem.y == j, best, torch.minimum(best, nearest))
    assert (distance / best).min() >= 1 - 1e-6
    assert (distance / best).max() <= 1.02


def _nearest_in_box(model: Linear, x: torch.Tensor, y: torch.Tensor, j: int) -> torch.Tensor:
    """Distance to where class j overtakes y in the box: clip(x + t w) with the smallest t >= 0
    that crosses, by bisection (the Karush-Kuhn-Tucker conditions of the projection)."""
    w = (model.weight[j] - model.weight[y]).view_as(x)
    low, high = torch.zeros(len(x)).double(), torch.full((len(x),), 1e4).double()
    logits = lambda t: model((x + t.view(-1, 1, 1, 1) * w).clamp(0, 1))  # noqa: E731
    for _ in range(80):
        t = (low + high) / 2
        z = logits(t)
        crossed = z[:, j] >= z.gather(1, y[:, None]).squeeze(1)
        low, high = torch.where(crossed, low, t), torch.where(crossed, t, high)
    moved = (x + high.view(-1, 1, 1, 1) * w).clamp(0, 1) - x
    z = logits(high)
    reached = z[:, j] >= z.gather(1, y[:, None]).squeeze(1) - 1e-9
    return torch.where(reached, moved.flatten(1).norm(dim=1), torch.inf)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("objective", ["cross-entropy", "margin"])
@pytest.mark.parametrize("shape", SHAPES)
def test_pgd_agrees_with_the_closed_form_on_either_side(
    norm: str, objective: str, shape: tuple[int, ...]
) -> None:
    problem = _problem(shape, 2, 64, norm, 1.0)
    optimum = problem.model.optimum(problem.x, problem.y, norm)
    for factor, broken in ((1.01, True), (0.99, False)):
        for i in range(0, 64, 8):
            threat = ThreatModel(norm, factor * float(optimum[i]))
            one = Problem(problem.model, problem.x[i : i + 1], problem.y[i : i + 1], threat)
            attack = PGD(step_size=threat.eps / 10, objective=objective)
            points = threat.enforce(attack(one), one.x)
            assert bool(decided(one.model(points), one.y)) is broken


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("objective", ["cross-entropy", "margin", "dlr"])
def test_pgd_on_ten_classes_never_claims_the_impossible(norm: str, objective: str) -> None:
    """And breaks all samples well beyond their boundary; near it, it may climb toward a class that
    is not the nearest."""
    problem = _problem((1, 8, 8), 10, 64, norm, 1.0)
    optimum = problem.model.optimum(problem.x, problem.y, norm)
    eps = float(optimum.median())
    batch = Problem(problem.model, problem.x, problem.y, ThreatModel(norm, eps))
    points = batch.threat.enforce(PGD(objective=objective)(batch), batch.x)
    broken = decided(problem.model(points), problem.y)
    assert not broken[optimum > eps].any()
    # Under L1, where steps follow one pixel, the other classes' weights count for more.
    far = (3 if norm == "l1" else 2) * optimum < eps
    assert broken[far].all()
    assert far.sum() > 5


def test_pgd_counts_every_iterate() -> None:
    """A step that overshoots a thin slab: broken on the way, not at the end."""
    model = lambda x: torch.stack([torch.zeros(len(x)), 0.1 - (x[:, 0] - 0.6).abs()], 1)  # noqa: E731
    x = torch.full((3, 1), 0.45)
    problem = Problem(model, x, torch.zeros(3).long(), ThreatModel("linf", 0.5))
    attack = PGD(steps=10, step_size=0.15, random_start=False, objective="margin")
    assert decided(model(attack(problem)), problem.y).all()


def test_pgd_works_on_nothing_that_is_decided() -> None:
    """Samples that are broken at the start cost one pass; the others all of them."""
    model = Linear((50,), 2)
    x = mid_grey((50,), 64)
    y = model(x).argmax(1)
    y[:40] = 1 - y[:40]
    calls = torch.zeros(64)
    problem = Problem(
        model,
        x,
        y,
        ThreatModel("l2", 1e-9),
        meter=lambda rows, _: calls.index_add_(0, rows, torch.ones(len(rows))),
    )
    PGD(steps=20, restarts=2)(problem)
    assert (calls[:40] == 1).all()
    assert (calls[40:] == 2 * 21).all()
