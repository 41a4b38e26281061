"""The geometry of the norms, and the noise that depends on nothing but the sample."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from attacks import Problem, ThreatModel, noise

SHAPES = [(7,), (1, 5, 4), (3, 6, 6)]
THREATS = [ThreatModel("l2", 0.7), ThreatModel("linf", 0.2), ThreatModel("l1", 1.5)]


def _images(shape: tuple[int, ...], n: int = 50, dtype: torch.dtype = torch.float32) -> Tensor:
    """Half of the pixels at exactly 0 or 1, as in MNIST."""
    x = torch.rand(n, *shape, dtype=dtype)
    return torch.where(torch.rand_like(x) < 0.5, x.round(), x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_enforced_points_are_inside_without_tolerance(
    threat: ThreatModel, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = _images(shape, 500, dtype)
    for scale in (0.001, 0.01, 1.0, 100.0):
        points = threat.enforce(x + scale * torch.randn_like(x), x)
        assert points.dtype == dtype
        assert threat.distance(points, x).max() <= threat.eps
        assert points.min() >= 0
        assert points.max() <= 1


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_points_inside_are_left_alone(threat: ThreatModel) -> None:
    x = _images((3, 6, 6))
    inside = threat.enforce(x + 0.01 * torch.randn_like(x), x)
    assert torch.equal(threat.enforce(inside, x), inside)
    assert torch.allclose(threat.project(inside, x), inside, atol=1e-6)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_projection_stays_inside_up_to_rounding(threat: ThreatModel) -> None:
    x = _images((1, 5, 4), 500)
    points = threat.project(x + torch.randn_like(x), x)
    assert threat.distance(points, x).max() <= threat.eps * (1 + 1e-5)
    assert torch.equal(points, threat.clamp(points))


def test_l2_projection_spends_what_the_box_leaves() -> None:
    """Scaling to the ball and clipping alone leaves a good part of the budget of an image whose
    pixels are at 0 or 1 unused."""
    threat = ThreatModel("l2", 2.0)
    x = _images((1, 28, 28))
    step = 5 * torch.randn_like(x)
    naive = threat.clamp(x + step * (2.0 / threat.length(step)).view(-1, 1, 1, 1))
    assert threat.distance(naive, x).mean() < 0.9 * 2.0
    assert threat.distance(threat.project(x + step, x), x).min() > 0.98 * 2.0


def test_l2_projection_nears_the_euclidean_one() -> None:
    """Against the exact projection on ball and box, by bisection on its multiplier."""
    threat = ThreatModel("l2", 0.7)
    x = _images((1, 5, 4), 200, torch.float64)
    far = x + torch.randn_like(x)
    low, high = torch.zeros(200, 1, 1, 1).double(), torch.ones(200, 1, 1, 1).double()
    for _ in range(60):
        middle = (low + high) / 2
        inside = threat.length(threat.clamp(x + middle * (far - x)) - x) <= 0.7
        low, high = (
            torch.where(inside.view_as(low), middle, low),
            torch.where(inside.view_as(low), high, middle),
        )
    exact = threat.clamp(x + low * (far - x))
    worse = threat.length(threat.project(far, x) - far) / threat.length(exact - far)
    assert worse.max() < 1.02


def test_ascent_is_the_steepest_unit_step() -> None:
    gradient = torch.randn(20, 3, 4, 4)
    for threat in THREATS:
        step = threat.ascent(gradient)
        assert torch.allclose(threat.length(step), torch.ones(20))
    l2, linf, l1 = (threat.ascent(gradient) for threat in THREATS)
    gain = (gradient * l2).flatten(1).sum(1)
    assert torch.allclose(gain, gradient.flatten(1).norm(dim=1), rtol=1e-5)
    gain = (gradient * linf).flatten(1).sum(1)
    assert torch.allclose(gain, gradient.flatten(1).abs().sum(1), rtol=1e-5)
    gain = (gradient * l1).flatten(1).sum(1)
    assert torch.allclose(gain, gradient.flatten(1).abs().amax(1), rtol=1e-5)
    for threat, step in zip(THREATS, (l2, linf, l1), strict=True):
        gain = (gradient * step).flatten(1).sum(1)
        assert torch.allclose(gain, threat.dual_length(gradient), rtol=1e-5)


@pytest.mark.parametrize("eps", [0.3, 1.5, 6.0, 50.0])
def test_l1_projection_is_the_euclidean_one(eps: float) -> None:
    """Of points in the box: the same is taken from the perturbation of each pixel, by sorting."""
    threat = ThreatModel("l1", eps)
    x = _images((3, 6, 6), 100, torch.float64)
    points = threat.clamp(x + torch.randn_like(x))
    delta = (points - x).flatten(1)
    sizes = delta.abs().sort(1, descending=True).values
    count = torch.arange(1, sizes.shape[1] + 1)
    taken = (sizes.cumsum(1) - eps) / count
    last = (sizes > taken).sum(1, keepdim=True) - 1
    taken = taken.gather(1, last).clamp_min(0)
    exact = x + (delta.sign() * (delta.abs() - taken).clamp_min(0)).view_as(x)
    assert torch.allclose(threat.project(points, x), exact, atol=1e-9)


def test_l1_steps_gain_the_most_that_ball_and_box_allow() -> None:
    """The largest value of a linear function on ball and box, by linear programming."""
    x = _images((9,), 20, torch.float64)
    gradient = torch.randn_like(x)
    gradient[:, 4] = 0
    for eps in (0.2, 1.5, 30.0):
        threat = ThreatModel("l1", eps, lower=-0.1, upper=1.2)
        points = threat.advance(x, gradient, 2 * eps, x)
        assert threat.distance(points, x).max() <= eps * (1 + 1e-12)
        for image, slope, point in zip(x, gradient, points, strict=True):
            # What is added to each pixel, and what is taken from it.
            cost = torch.cat([-slope, slope]).numpy()
            rooms = [(0, room) for room in torch.cat([1.2 - image, image + 0.1]).numpy()]
            best = optimize.linprog(cost, np.ones((1, 18)), [eps], bounds=rooms)
            assert abs(float(slope @ (point - image)) + best.fun) < 1e-9


def test_l1_steps_take_the_room_that_is_left_at_the_point() -> None:
    threat, x = ThreatModel("l1", 1.0), torch.tensor([[0.5, 0.5, 0.5, 0.0]])
    points = torch.tensor([[0.9, 0.5, 0.5, 0.0]])
    gradient = torch.tensor([[3.0, -2.0, 1.0, -9.0]])
    sizes = torch.tensor([[0.3]])
    assert torch.allclose(
        threat.advance(points, gradient, sizes, x), torch.tensor([[1.0, 0.3, 0.5, 0.0]])
    )
    assert torch.equal(threat.advance(points, gradient, 0 * sizes, x), points)


def test_l1_edge_keeps_the_direction_and_spends_the_budget() -> None:
    threat, x = ThreatModel("l1", 1.5), _images((3, 6, 6), 100, torch.float64)
    direction = torch.randn_like(x)
    delta = threat.edge(x, direction) - x
    assert (threat.length(delta) - 1.5).abs().max() < 0.05
    free = (delta + x > 0) & (delta + x < 1)
    ratio = torch.where(free, delta / direction, torch.nan).flatten(1)
    middle = ratio.nanmedian(1, keepdim=True).values
    assert ((ratio - middle).abs() < 1e-3 * middle)[free.flatten(1)].all()


def test_ascent_keeps_tiny_gradients_and_zero_ones() -> None:
    """Squares of 1e-30 underflow in float32."""
    gradient = torch.randn(4, 6)
    direction = ThreatModel("l2", 1.0).ascent(gradient)
    assert torch.allclose(ThreatModel("l2", 1.0).ascent(1e-30 * gradient), direction, atol=1e-5)
    for threat in THREATS:
        assert torch.equal(threat.ascent(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_edges_spend_the_budget_where_pixels_are_frozen() -> None:
    x = torch.rand(20, 30)
    frozen = torch.arange(30) >= 3
    for norm, eps in (("l2", 0.3), ("l1", 0.3)):
        threat = ThreatModel(norm, eps, -9.0, 9.0).around(x, frozen)  # type: ignore[arg-type]
        delta = threat.edge(x, torch.randn_like(x)) - x
        assert (threat.length(delta) > 0.99 * eps).all()
        assert (delta[:, frozen] == 0).all()


def test_l2_random_starts_are_uniform_in_the_ball() -> None:
    """The part of the budget that is used, to the power of the dimension, is uniform in (0, 1)."""
    threat = ThreatModel("l2", 0.1)
    x = torch.full((4000, 5), 0.5)
    starts = threat.random_start(x, 0, torch.arange(4000), 0)
    filled = (threat.distance(starts, x) / 0.1) ** 5
    assert stats.kstest(filled.numpy(), "uniform").pvalue > 0.01
    mean = ((starts - x) / 0.1).mean(0)
    assert mean.abs().max() < 4 * math.sqrt(1 / 7 / 4000)  # E[x_i^2] = 1 / (d + 2)


def test_l1_random_starts_are_uniform_in_the_ball() -> None:
    """The part of the budget that is used, to the power of the dimension, is uniform in (0, 1), and
    each pixel's part of it has the distribution of one of five random parts."""
    threat = ThreatModel("l1", 0.1)
    x = torch.full((4000, 5), 0.5)
    starts = threat.random_start(x, 0, torch.arange(4000), 0)
    reach = threat.distance(starts, x)
    assert stats.kstest(((reach / 0.1) ** 5).numpy(), "uniform").pvalue > 0.01
    parts = (starts - x).double().abs() / reach[:, None]
    for part in parts.T:
        assert stats.kstest(part.numpy(), stats.beta(1, 4).cdf).pvalue > 0.01
    assert (starts > x).double().mean(0).sub(0.5).abs().max() < 4 * 0.5 / math.sqrt(4000)


def test_linf_random_starts_are_uniform_in_the_ball() -> None:
    threat = ThreatModel("linf", 0.1)
    x = torch.full((4000, 5), 0.5)
    offset = (threat.random_start(x, 0, torch.arange(4000), 0) - x) / 0.1
    assert stats.kstest(offset.flatten().numpy(), "uniform", args=(-1, 2)).pvalue > 0.01


@pytest.mark.parametrize(
    ("kind", "distribution"), [("uniform", stats.uniform), ("normal", stats.norm)]
)
def test_noise_has_its_distribution_and_streams_are_independent(
    kind: str, distribution: stats.rv_continuous
) -> None:
    draw = getattr(noise, kind)
    index = torch.arange(300)
    draws = [draw(seed, index, stream, (99,)) for seed in (0, 1) for stream in (0, 1)]
    for values in draws:
        assert stats.kstest(values.flatten().numpy(), distribution.cdf).pvalue > 0.01
    together = torch.cat([values.flatten()[None] for values in draws])
    assert (torch.corrcoef(together) - torch.eye(4)).abs().max() < 0.03
    across = torch.corrcoef(draws[0]) - torch.eye(300)
    assert across.abs().max() < 6 / math.sqrt(99)


def test_noise_depends_on_seed_index_and_stream_alone() -> None:
    index = torch.tensor([5, 0, 7])
    all_ = noise.normal(3, torch.arange(10), 2, (1, 4, 4))
    assert torch.equal(noise.normal(3, index, 2, (1, 4, 4)), all_[index])
    problem = Problem(lambda x: x, torch.rand(10, 1, 4, 4), torch.zeros(10).long(), THREATS[0], 3)
    chosen = problem.select(index)
    assert torch.equal(chosen.normal(2), problem.normal(2)[index])
    assert torch.equal(chosen.random_start(1), problem.random_start(1)[index])
    assert torch.equal(chosen.select(torch.tensor([False, True, True])).rows, index[1:])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("l0", 1.0), "norm"),
        (("l2", 0.0), "eps"),
        (("l2", -1.0), "eps"),
        (("l2", math.nan), "eps"),
        (("l2", 1.0, 1.0, 0.0), "empty"),
        (("l2", 1.0, 0.0, math.inf), "finite"),
    ],
)
def test_bad_threats_are_refused(arguments: tuple[str, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ThreatModel(*arguments)
