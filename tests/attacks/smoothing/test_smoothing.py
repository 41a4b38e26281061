"""Smoothing leaves all values as they are, and gives gradients where operations have none."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from attacks.smoothing import Cooling, Smoothing

Step = Callable[[Tensor], Tensor]

# Rectifiers and the like, in each form in which networks use them.
ELEMENTWISE: dict[str, Step] = {
    "relu": functional.relu,
    "torch.relu": torch.relu,
    "relu method": lambda z: z.relu(),
    "relu in place": lambda z: (z * 1).relu_(),
    "relu in place, its result unused": lambda z: _unused(z * 1),
    "F.relu in place": lambda z: functional.relu(z * 1, inplace=True),
    "F.relu in place, by place": lambda z: functional.relu(z * 1, True),
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": lambda z: nn.ReLU(inplace=True)(z * 1),
    "relu6": nn.ReLU6(),
    "leaky relu": nn.LeakyReLU(0.02),
    "leaky relu, in place": lambda z: functional.leaky_relu(z * 1, 0.02, True),
    "prelu": nn.PReLU(),
    "prelu by channel": nn.PReLU(3),
    "rrelu": nn.RReLU().eval(),
    "threshold": nn.Threshold(0.1, 0.0),
    "hardtanh": nn.Hardtanh(),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardswish": nn.Hardswish(),
    "softshrink": nn.Softshrink(),
    "hardshrink": nn.Hardshrink(),
    "elu": nn.ELU(),
    "selu": nn.SELU(),
    "celu": nn.CELU(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "softplus": nn.Softplus(),
    "sigmoid": torch.sigmoid,
    "nn.Sigmoid": nn.Sigmoid(),
    "tanh": lambda z: z.tanh(),
    "tanh in place": lambda z: (z * 1).tanh_(),
    "erf": torch.erf,
    "clamp": lambda z: z.clamp(-1, 1),
    "clamp by name": lambda z: torch.clamp(z, min=-1, max=1),
    "clamp in place": lambda z: (z * 1).clamp_(-1, 1),
    "clamp_min": lambda z: z.clamp_min(0.1),
    "clamp_max": lambda z: z.clamp_max(0.1),
    "clip": lambda z: torch.clip(z, -1, None),
    "clamp by tensors": lambda z: z.clamp(torch.zeros(4), torch.ones(4)),
    "abs": torch.abs,
    "abs operator": abs,
    "maximum": lambda z: torch.maximum(z, z.flip(-1) * 0.5),
    "minimum": lambda z: z.minimum(z.flip(-1) * 0.5),
    "max of two": lambda z: torch.max(z, z.flip(-1) * 0.5),
    "amax": lambda z: z.amax(-1),
    "amin over two": lambda z: z.amin((2, 3), keepdim=True),
    "max": lambda z: z.max(-1).values,
    "max, kept": lambda z: z.max(2, keepdim=True)[0],
    "min": lambda z: torch.min(z, dim=1).values,
    "softmax": lambda z: z.softmax(1),
    "nn.Softmax": nn.Softmax(-1),
}
POOLS: dict[str, tuple[Step, tuple[int, ...]]] = {
    "1": (nn.MaxPool1d(2), (2, 7)),
    "1, stride 1": (nn.MaxPool1d(3, 1, padding=1), (2, 7)),
    "2": (nn.MaxPool2d(2), (2, 6, 6)),
    "2, overlapping": (nn.MaxPool2d(3, 2, padding=1), (2, 7, 6)),
    "2, dilated": (nn.MaxPool2d(2, 1, dilation=2), (2, 6, 6)),
    "2, ceil": (nn.MaxPool2d(2, ceil_mode=True), (2, 5, 7)),
    "2, with places": (lambda z: nn.MaxPool2d(2, return_indices=True)(z)[0], (2, 6, 6)),
    "2, of torch": (lambda z: torch.max_pool2d(z, (2, 3), (2, 3)), (2, 6, 6)),
    "3": (nn.MaxPool3d(2), (2, 4, 4, 4)),
    "adaptive 1": (nn.AdaptiveMaxPool1d(3), (2, 7)),
    "adaptive 2": (nn.AdaptiveMaxPool2d((2, 3)), (2, 7, 5)),
    "adaptive 3": (nn.AdaptiveMaxPool3d(1), (2, 3, 4, 4)),
}
# What has no gradient at all.
FLAT: dict[str, Step] = {
    "round": torch.round,
    "round to places": lambda z: torch.round(z, decimals=1),
    "round in place": lambda z: (z * 1).round_(),
    "floor": lambda z: z.floor(),
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "floor division": lambda z: z // 0.3,
    "sign": torch.sign,
    "quantiser": lambda z: (8 * z).round() / 8,
    "comparison": lambda z: (z > 0.1).float(),
    "comparison to double": lambda z: (z <= 0.1).to(torch.float64),
    "comparison, turned": lambda z: (~(z > 0)).float(),
    "comparisons": lambda z: ((z > 0) & (z < 1)).float(),
    "masked": lambda z: 2.0 * (z >= 0.1),
    "where": lambda z: torch.where(z > 0, 1.0, -1.0),
    "masked_fill": lambda z: torch.ones_like(z).masked_fill(z > 0, 3.0),
    "whole numbers": lambda z: (10 * z).to(torch.int64).float() / 10,
    "bytes": lambda z: (255 * z.clamp(0, 1)).byte().float() / 255,
    "decision": lambda z: functional.one_hot(z.flatten(1).argmax(1), 48).float(),
    "decision in the last dimension": lambda z: functional.one_hot(z.argmax(-1), 4).float(),
}
TEMPERATURE, TINY = 1.0, 1e-6


def _unused(z: Tensor) -> Tensor:
    z.relu_()
    return z


def _inputs(*shape: int, n: int = 4) -> Tensor:
    return 2 * torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


def _slope(step: Step, x: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Values, and the gradient of their sum of random weights (the same for each sample)."""
    x = x.clone().requires_grad_()
    with Smoothing(temperature, len(x)):
        value = step(x)
    weights = torch.randn(value.shape[1:], generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((value * weights).sum(), x)
    return value.detach(), gradient


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_values_stay_and_gradients_become_their_own_as_it_cools(name: str) -> None:
    step, x = ELEMENTWISE[name], _inputs(3, 4, 4)
    plain = x.clone().requires_grad_()
    known = step(plain)
    weights = torch.randn(known.shape[1:], generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad((known * weights).sum(), plain)
    for temperature in (TEMPERATURE, TINY):
        value, gradient = _slope(step, x, temperature)
        assert value.equal(known)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)
    warm = _slope(step, x, TEMPERATURE)[1]
    assert not torch.allclose(warm, expected, atol=1e-3)
    assert (warm != 0).double().mean() > 0.99


@pytest.mark.parametrize("name", POOLS)
def test_pooling(name: str) -> None:
    step, shape = POOLS[name]
    x = _inputs(*shape)
    plain = x.clone().requires_grad_()
    known = step(plain)
    weights = torch.randn(known.shape[1:], generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad((known * weights).sum(), plain)
    value, cold = _slope(step, x, TINY)
    assert value.equal(known)
    torch.testing.assert_close(cold, expected)
    value, warm = _slope(step, x, TEMPERATURE)
    assert value.equal(known)
    # Each window hands out what it is given.
    torch.testing.assert_close(warm.sum(), expected.sum())
    assert (warm != 0).sum() > 1.5 * (expected != 0).sum()


@pytest.mark.parametrize("name", FLAT)
def test_what_has_no_gradient_gets_one(name: str) -> None:
    step, x = FLAT[name], _inputs(3, 4, 4)
    known = step(x)
    value, gradient = _slope(step, x, TEMPERATURE)
    assert value.equal(known)
    assert value.dtype == known.dtype
    assert (gradient != 0).double().mean() > 0.5


@pytest.mark.parametrize("name", [*ELEMENTWISE, *FLAT])
def test_a_sample_is_smoothed_the_same_in_any_company(name: str) -> None:
    step, x = (ELEMENTWISE | FLAT)[name], _inputs(3, 4, 4)
    together = _slope(step, x, TEMPERATURE)[1]
    for i in range(len(x)):
        alone = _slope(step, x[i : i + 1], TEMPERATURE)[1]
        torch.testing.assert_close(alone[0], together[i])


@pytest.mark.parametrize("name", ["relu", "leaky relu", "abs", "maximum", "amax", "max"])
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_it_has_no_scale(name: str, factor: float) -> None:
    step, x = ELEMENTWISE[name], _inputs(3, 4, 4)
    torch.testing.assert_close(
        _slope(step, factor * x, TEMPERATURE)[1], _slope(step, x, TEMPERATURE)[1]
    )


@pytest.mark.parametrize("layout", ["rows of a sample", "sequence first"])
def test_samples_are_told_apart_in_other_layouts(layout: str) -> None:
    def step(x: Tensor) -> Tensor:
        n = len(x)
        if layout == "sequence first":
            return torch.relu(x.movedim(0, 1)).movedim(1, 0)
        return torch.relu(x.reshape(n * 6, 5)).view(n, 6, 5)

    x = _inputs(6, 5) * torch.tensor([1.0, 10.0, 100.0, 1e3])[:, None, None]
    together = _slope(step, x, TEMPERATURE)[1]
    for i in range(len(x)):
        torch.testing.assert_close(_slope(step, x[i : i + 1], TEMPERATURE)[1][0], together[i])


class Network(nn.Module):
    """Convolution, rectifier in place, pooling and a head, whose first part may be recomputed."""

    def __init__(self, recomputed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.head = nn.Linear(36, 3)
        self.recomputed = recomputed

    def forward(self, x: Tensor) -> Tensor:
        run = (
            partial(checkpoint, self.first, use_reentrant=False) if self.recomputed else self.first
        )
        logits: Tensor = self.head(run(x).flatten(1))
        return logits


def test_an_exported_network_is_smoothed_as_the_network_is() -> None:
    network, x = Network().eval().requires_grad_(False), _inputs(1, 8, 8)
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(
        _slope(exported, x, TEMPERATURE)[1], _slope(network, x, TEMPERATURE)[1]
    )


@pytest.mark.filterwarnings("ignore")  # torch deprecates scripts
@pytest.mark.parametrize("kind", ["scripted", "smooth"])
def test_it_says_where_nothing_can_be_smoothed(kind: str) -> None:
    x = _inputs(1, 8, 8).requires_grad_()
    plain: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    network = torch.jit.trace(Network().eval(), x) if kind == "scripted" else plain
    cooling = Cooling(1.0, 0.1, 5)
    with cooling.step(x):
        network(x)
    assert cooling.softened == 0


def test_recomputed_parts_keep_their_gradients() -> None:
    network, x = Network(recomputed=True).eval().requires_grad_(False), _inputs(1, 8, 8)
    value, gradient = _slope(network, x, TEMPERATURE)
    assert value.equal(Network().eval()(x))
    torch.testing.assert_close(gradient, _slope(network, x, TINY)[1])


def test_forwards_without_gradients_are_left_alone() -> None:
    cooling, x = Cooling(1.0, 0.1, 2), _inputs(5)
    with torch.no_grad(), cooling.step(x):
        assert torch.relu(x).equal(x.clamp_min(0))
    assert cooling.softened == 0


def test_numbers_of_python_stay_numbers() -> None:
    """Models may look at their inputs, as asserts do."""

    def model(x: Tensor) -> Tensor:
        assert x.min() >= 0
        if x.sum() > 1e6 or bool((x > 2).any()) or int(x.max()) > 3:
            x = x / 255
        return torch.relu(x - float(x.mean()))

    x = torch.rand(4, 3, requires_grad=True)
    with Smoothing(1.0, 4) as smoothing:
        value = model(x)
    assert torch.equal(value, torch.relu(x - float(x.mean())))
    assert smoothing.smoothed["relu"] == 1
    assert not {"bool", "float", "int"} & smoothing.smoothed.keys()
