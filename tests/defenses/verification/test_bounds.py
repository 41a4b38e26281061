"""Bounds hold at every point that is tried, and are no looser than cheaper ones."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import Problem, Strong, ThreatModel
from defenses.graphs.tracing import Program, read_graph
from defenses.nonexpansive.layers import Conv, Flatten, Linear, NormPool, TwoSided
from defenses.verification.balls import Ball
from defenses.verification.bounds import (
    Units,
    bound_units,
    lower_bounds,
    lowest_corner,
    margins,
)
from defenses.verification.slopes import sharpened, tightened

SHAPE, CLASSES, N, POINTS = (2, 6, 6), 4, 3, 6000


class _Of(nn.Module):
    """A network whose forward pass is a function of its layers."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _conv(inputs: int = 2, outputs: int = 3, **how: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **how)


def _headed(*layers: nn.Module, features: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 4))


def _normed() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.running_mean, norm.running_var = torch.randn(3), 0.5 + torch.rand(3)
    return norm


def _stacked(*layers: nn.Module) -> nn.Module:
    """Nonexpansive layers, whose tensors are (networks, images, features)."""
    return _Of(lambda net, x: net.inner(x[None])[0], inner=nn.Sequential(*layers))


def _residual(net: Any, x: Tensor) -> Tensor:
    return torch.relu(net.b(torch.relu(net.a(x))) + net.c(x))


def _extremes(net: Any, x: Tensor) -> Tensor:
    first, second = net.a(x), net.b(x)
    return torch.maximum(first, second) - torch.minimum(first, 0.1 * second)


def _moved(net: Any, x: Tensor) -> Tensor:
    return torch.cat([x.flip(3), x.transpose(2, 3), x.roll(1, 2)], 1)[:, 1:5].relu()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 4)),
    "dense": lambda: _headed(nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), features=20),
    "leaky": lambda: _headed(_conv(), nn.LeakyReLU(0.2), features=108),
    "parametric": lambda: _headed(_conv(), nn.PReLU(3, 0.3), features=108),
    "relu6": lambda: _headed(_conv(), nn.ReLU6(), features=108),
    "hardtanh": lambda: _headed(_conv(), nn.Hardtanh(-0.1, 0.2), features=108),
    "strided": lambda: _headed(_conv(stride=2), nn.ReLU(), features=27),
    "dilated": lambda: _headed(nn.Conv2d(2, 3, 3, dilation=2), nn.ReLU(), features=12),
    "grouped": lambda: _headed(_conv(outputs=4, groups=2), nn.ReLU(), features=144),
    "batch norm": lambda: _headed(_conv(), _normed(), nn.ReLU(), features=108),
    "average pooling": lambda: _headed(_conv(), nn.ReLU(), nn.AvgPool2d(3, 2, 1), features=27),
    "adaptive pooling": lambda: _headed(_conv(), nn.AdaptiveAvgPool2d(2), nn.ReLU(), features=12),
    "max pooling": lambda: _headed(_conv(), nn.MaxPool2d(2), features=27),
    "padded max pooling": lambda: _headed(_conv(), nn.MaxPool2d(3, 2, 1), nn.ReLU(), features=27),
    "dilated max pooling": lambda: _headed(nn.MaxPool2d(2, 1, dilation=2), features=32),
    "ceil max pooling": lambda: _headed(nn.MaxPool2d(4, 3, ceil_mode=True), features=8),
    "residual": lambda: _headed(_Of(_residual, a=_conv(), b=_conv(3), c=_conv()), features=108),
    "same twice": lambda: _headed(
        _Of(lambda n, x: x + n.a(x).relu() - x / 2, a=_conv(2, 2)), features=72
    ),
    "clamped": lambda: _headed(
        _Of(lambda n, x: n.a(x).clamp(-0.2, 0.3).abs(), a=_conv()), features=108
    ),
    "maximum": lambda: _headed(_Of(_extremes, a=_conv(), b=_conv()), features=108),
    "moved": lambda: _headed(_Of(_moved), features=144),
    "upsampled": lambda: _headed(nn.Upsample(scale_factor=2), _conv(), nn.ReLU(), features=432),
    "transposed": lambda: _headed(nn.ConvTranspose2d(2, 3, 2, 2), nn.ReLU(), features=432),
    "nonexpansive": lambda: _stacked(
        Conv(1, 2, 8, 2, 2), TwoSided(), Flatten(), Linear(1, 144, 12), TwoSided(), Linear(1, 24, 4)
    ),
    "norm pooling": lambda: _stacked(
        Conv(1, 2, 4, 3), NormPool(2), Flatten(), Linear(1, 16, 12), TwoSided(), Linear(1, 24, 4)
    ),
}  # fmt: skip
NORMS = {"linf": 0.08, "l2": 0.4}


def _network(name: str) -> nn.Module:
    torch.manual_seed(sorted(NETWORKS).index(name))
    return NETWORKS[name]().double().eval().requires_grad_(False)


def _images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(N, *SHAPE, dtype=torch.float64, generator=generator)
    return torch.where(x > 0.7, x.round(), x)  # some in the corners of the box


def _points(ball: Ball, count: int) -> Tensor:
    """Random points (count, n, *shape) of balls, half of them as far out as they can be."""
    x = ball.x[:, 0]
    shape = (count, *x.shape)
    if ball.norm == "linf":
        step = ball.eps * (2 * torch.rand(shape, dtype=x.dtype) - 1)
        step[: count // 2] = ball.eps * step[: count // 2].sign()
    else:
        step = torch.randn(shape, dtype=x.dtype)
        length = ball.eps * torch.rand(count, len(x), dtype=x.dtype)
        length[: count // 2] = ball.eps
        step *= (length / step.flatten(2).norm(dim=2))[..., None, None, None]
    return (x + step).clamp(0, 1)


def _known(network: nn.Module, norm: Any, **how: Any) -> tuple[Units, Tensor, Tensor]:
    x = _images()
    threat = ThreatModel(norm, NORMS[norm])
    units = bound_units(read_graph(network, SHAPE), Ball.around(x[:, None], threat), **how)
    return units, x, network(x).argmax(1)


# Each network under one of the norms, in turn; under the other it is slow.
_CASES = [
    pytest.param(name, norm, marks=[] if (place + turn) % 2 == 0 else pytest.mark.slow)
    for place, name in enumerate(NETWORKS)
    for turn, norm in enumerate(NORMS)
]


@pytest.mark.parametrize(("name", "norm"), _CASES)
def test_bounds_hold_everywhere_and_the_finer_ones_are_no_looser(name: str, norm: Any) -> None:
    """Over all networks, the slow ones among them, that is more than a million points."""
    network = _network(name)
    units, x, y = _known(network, norm)
    last, rows = len(units.graph.nodes), margins(y, CLASSES, torch.float64)
    every = torch.eye(CLASSES, dtype=torch.float64).view(1, CLASSES, 1, CLASSES)
    rows = torch.cat([rows, every.expand(N, -1, -1, -1), -every.expand(N, -1, -1, -1)], 1)
    rough = Program(network, SHAPE).graph(dtype=torch.float32)
    tight = tightened(units, rough, 3)
    by = {
        "crown": lower_bounds(units, last, rows),
        "tightened": lower_bounds(tight, last, rows),
        "parallel": lower_bounds(_known(network, norm, choice="parallel")[0], last, rows),
        "alpha": sharpened(units, rows, rough)[0],
    }
    intervals = _known(network, norm, refined=False)[0]
    by["interval"] = torch.where(
        rows[:, :, 0] > 0, rows[:, :, 0] * intervals.low[last], rows[:, :, 0] * intervals.high[last]
    ).sum(2)
    # Random points, an attack's, and the corners that bounds are attained at.
    points = [_points(units.ball, POINTS)]
    strong = Strong()(Problem(network, x, y, ThreatModel(norm, NORMS[norm])))
    corners = [lowest_corner(units, rows[:, i : i + 1])[1][:, 0] for i in range(rows.shape[1])]
    points.append(torch.stack([strong, *corners]))
    for some in points:
        logits = network(some.flatten(0, 1)).view(len(some), N, 1, CLASSES)
        values = (rows[:, :, 0] * logits).sum(3)
        for kind, bound in by.items():
            assert bool((values >= bound - 1e-12 * values.abs()).all()), kind
    assert bool((by["alpha"] >= by["crown"]).all())
    # Of linear networks under L-infinity all are exact.
    if name == "linear" and norm == "linf":
        exact = (rows[:, :, 0] * network(points[1].flatten(0, 1)).view(-1, N, 1, CLASSES)).sum(3)
        assert torch.allclose(exact.amin(0), by["crown"])
    # Inside, too, nothing leaves its bounds, which are within the intervals.
    for number in units.low:
        assert bool((tight.low[number] >= units.low[number]).all())
        assert bool((tight.high[number] <= units.high[number]).all())
    values_inside = units.graph.forward(points[0][0][:, None])
    for number, value in enumerate(values_inside):
        assert bool((value >= units.low[number]).all()), number
        assert bool((value <= units.high[number]).all()), number
        assert bool((units.low[number] >= intervals.low[number] - 1e-9).all())
        assert bool((units.high[number] <= intervals.high[number] + 1e-9).all())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_is_the_network(name: str) -> None:
    network, x = _network(name), _images()
    assert torch.allclose(read_graph(network, SHAPE).forward(x[:, None])[-1][:, 0], network(x))


def test_the_least_over_a_ball_in_a_box_is_nearly_attained_and_never_undercut() -> None:
    torch.manual_seed(0)
    for eps in (0.05, 0.5, 2.0, 20.0):
        for norm in NORMS:
            x = torch.rand(4, 1, 30, dtype=torch.float64)
            weights = torch.randn(4, 5, 1, 30, dtype=torch.float64) ** 3
            ball = Ball.around(x, ThreatModel(norm, eps))
            least = ball.least(weights)
            for i in range(5):
                point = ball.corner(weights[:, i])
                assert bool((point >= 0).all())
                assert bool((point <= 1).all())
                value = (weights[:, i] * point).flatten(1).sum(1)
                assert bool((value >= least[:, i] - 1e-12).all())
                assert torch.allclose(value, least[:, i], rtol=1e-4, atol=1e-6)


def test_bounds_are_differentiable_by_the_weights_of_the_network() -> None:
    network = _network("strided").requires_grad_()
    program = Program(network, SHAPE)
    x = _images()
    y = network(x).argmax(1)

    def worst() -> Tensor:
        ball = Ball.around(x[:, None], ThreatModel("linf", 0.01))
        units = bound_units(program.graph(network), ball, "parallel")
        return lower_bounds(units, len(units.graph.nodes), margins(y, CLASSES, torch.float64)).sum()

    before = worst()
    before.backward()  # type: ignore[no-untyped-call]
    slope = 0.0
    with torch.no_grad():
        for parameter in network.parameters():
            assert parameter.grad is not None
            slope += float(parameter.grad.square().sum())
            parameter += 1e-6 * parameter.grad
        assert float(worst() - before) == pytest.approx(1e-6 * slope, rel=0.02)


def test_float32_weights_give_the_bounds_of_float64() -> None:
    network = _network("residual")
    units, x, y = _known(network, "linf")
    small = read_graph(copy.deepcopy(network).float(), SHAPE)
    ball = Ball.around(x[:, None].float(), ThreatModel("linf", NORMS["linf"]))
    rows = margins(y, CLASSES, torch.float64)
    coarse = lower_bounds(bound_units(small, ball), len(small.nodes), rows.float())
    assert torch.allclose(coarse.double(), lower_bounds(units, len(small.nodes), rows), atol=2e-2)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (torch.sigmoid, "its operation sigmoid is not supported"),
        (lambda x: x.softmax(1), "its operation softmax is not supported"),
        (lambda x: x * x.mean(), "its operation mul is not supported"),
        (lambda x: 1 / (1 + x), "its operation reciprocal is not supported"),
        (lambda x: x**3, "its operation pow has an exponent other than 2 and 0.5"),
        (nn.LeakyReLU(2.0), "the slope of its leaky_relu must lie in [0, 1]"),
        (lambda x: x[:, :, None], "it gives (4, 1) for an image, not logits"),
        (torch.ones_like, "it does not give one tensor that depends on the image"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(
    function: Callable[[Tensor], Tensor], line: str
) -> None:
    network = _Of(lambda net, x: function(x.flatten(1)[:, :4]))
    with pytest.raises(ValueError, match=re.escape(line)):
        read_graph(network, SHAPE)


def test_a_network_that_looks_at_numbers_is_refused() -> None:
    def looks(net: nn.Module, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] if x.sum() > 0 else -x.flatten(1)[:, :4]

    def leaves(net: nn.Module, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy().reshape(len(x), -1)[:, :4])

    for function in (looks, leaves):
        with pytest.raises(ValueError, match="what it computes cannot be traced"):
            read_graph(_Of(function), SHAPE)
