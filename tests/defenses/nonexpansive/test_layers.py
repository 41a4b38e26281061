import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from defenses.nonexpansive.appendix import BoundedScale, Residual, ScaledSigmoid, SubtractMean
from defenses.nonexpansive.layers import (
    Conv,
    Flatten,
    Linear,
    NormPool,
    Pair,
    TwoSided,
    Weighted,
    penalties,
    set_strict,
    weighted,
)
from defenses.nonexpansive.scalings import SCALINGS
from defenses.nonexpansive.stacks import build_stack

STACK = 3
PAIRS = 1000

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "two-sided relu": (TwoSided, (6,)),
    "two-sided tanh": (lambda: TwoSided(torch.tanh), (2, 3, 3)),
    "scaled sigmoid": (lambda: ScaledSigmoid(STACK, 2, 3, 3), (2, 3, 3)),
    "two-sided sigmoid": (lambda: TwoSided(ScaledSigmoid(STACK, 6)), (6,)),
    "pooling": (lambda: NormPool(2), (2, 4, 5)),
    "pooling that overlaps": (lambda: NormPool(3, 2), (2, 6, 7)),
    "pooling of each pixel's neighbours": (lambda: NormPool((3, 2), 1), (2, 4, 4)),
    "pooling with gaps": (lambda: NormPool(2, 3), (2, 6, 7)),
    "a window larger than the image": (lambda: NormPool(5, 2), (2, 3, 4)),
    "residual": (lambda: Residual(STACK, nn.Sequential(Linear(STACK, 6, 3), TwoSided())), (6,)),
    "mean of channels": (SubtractMean, (2, 3, 3)),
    "mean of all": (lambda: SubtractMean((2, 3, 4)), (2, 3, 3)),
    "bounded scale": (lambda: BoundedScale(STACK, 2), (2, 3, 3)),
    "flatten": (Flatten, (2, 3, 3)),
}  # fmt: skip

# Kernel, stride and padding.
WINDOWS: list[tuple[Pair, Pair, Pair]] = [
    (1, 1, 0),
    (2, 2, 0),
    (2, 1, 0),
    (3, 1, 1),
    (3, 2, 1),
    (4, 2, 0),
    (2, 3, 2),
    ((3, 2), (1, 2), (0, 1)),
    (5, 2, 3),
]


def _shaken(module: nn.Module, spread: float = 1.0) -> nn.Module:
    """The module with all parameters drawn anew, in float64 and eval mode."""
    module.double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=spread)
    return module


def _expansion(function: nn.Module, *features: int) -> float:
    """The largest ratio of a distance after and before, over near and far pairs of each network."""
    a = torch.randn(STACK, PAIRS, *features, dtype=torch.float64)
    # Some entries are equal, some far from 0, and some pairs near each other.
    scale = 10 ** torch.empty(1, PAIRS, *[1] * len(features), dtype=torch.float64).uniform_(-2, 1)
    a = a * scale.flip(1)
    b = a + scale * torch.randn_like(a) * (torch.rand_like(a) < 0.5)
    with torch.no_grad():
        after = (function(a) - function(b)).flatten(2).norm(dim=2)
    return float((after / (a - b).flatten(2).norm(dim=2).clamp_min(1e-12)).max())


def _operator_norms(layer: Weighted, *features: int) -> Tensor:
    """Of each network's linear map as a whole, by power iteration on its square."""
    zero = torch.zeros(STACK, 1, *features, dtype=torch.float64)
    point = torch.randn_like(zero)
    with torch.no_grad():
        offset = layer(zero)
    for _ in range(100):
        norm = point.flatten(1).norm(dim=1).reshape(-1, *[1] * (zero.dim() - 1))
        point = (point / norm).requires_grad_()
        moved = layer(point) - offset
        (point,) = torch.autograd.grad(moved.square().sum() / 2, point)
    return moved.detach().flatten(1).norm(dim=1)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_never_expand_a_distance(name: str) -> None:
    make, features = LAYERS[name]
    for spread in (0.1, 1.0, 2.0):
        assert _expansion(_shaken(make(), spread), *features) <= 1 + 1e-9


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 9), (9, 5), (6, 6), (7, 1)])
def test_linear_layers_never_expand_a_distance(scaling: str, inputs: int, outputs: int) -> None:
    for spread in (0.01, 1.0, 10.0):
        layer = _shaken(Linear(STACK, inputs, outputs, scaling), spread)
        assert isinstance(layer, Weighted)
        assert _expansion(layer, inputs) <= 1 + 1e-9
        assert (_operator_norms(layer, inputs) <= 1 + 1e-9).all()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS)
@pytest.mark.parametrize("filters", [1, 20])
def test_convolutions_never_expand_a_distance(
    scaling: str, kernel: Pair, stride: Pair, padding: Pair, filters: int
) -> None:
    layer = _shaken(Conv(STACK, 2, filters, kernel, stride, padding, scaling))
    assert isinstance(layer, Weighted)
    assert _expansion(layer, 2, 6, 7) <= 1 + 1e-9
    assert (_operator_norms(layer, 2, 6, 7) <= 1 + 1e-9).all()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_whole_networks_never_expand_a_distance(scaling: str, arch: str) -> None:
    for outputs in (1, 4):
        network = _shaken(build_stack(arch, (2, 6, 7), STACK, outputs, 0.5, scaling))
        assert _expansion(network, 2, 6, 7) <= 1 + 1e-9


def test_convolutions_that_keep_all_distance() -> None:
    """As many filters as a patch has entries, which none shares: an isometry."""
    layer = _shaken(Conv(STACK, 2, 8, 2, 2))
    x = torch.randn(STACK, 5, 2, 6, 8, dtype=torch.float64)
    y = layer(x) - layer(torch.zeros_like(x))
    torch.testing.assert_close(y.flatten(2).norm(dim=2), x.flatten(2).norm(dim=2))


@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS)
def test_convolutions_are_torchs(kernel: Pair, stride: Pair, padding: Pair) -> None:
    layer = Conv(STACK, 2, 4, kernel, stride, padding)
    nn.init.normal_(layer.bias)
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    for shared in (True, False):
        x = torch.randn(1 if shared else STACK, 5, 2, 6, 7)
        y = layer(x)
        for i, weight in enumerate(layer.effective()):
            filters, bias = weight.reshape(4, 2, *sides), layer.bias[i]
            wanted = nn.functional.conv2d(x[0 if shared else i], filters, bias, stride, padding)
            torch.testing.assert_close(y[i], wanted)
            (alone,) = layer.run(x[:1] if shared else x[i : i + 1], weight[None], bias[None])
            torch.testing.assert_close(alone, wanted)


def test_layers_by_hand() -> None:
    x = torch.tensor([3.0, -4.0]).reshape(1, 1, 2)
    assert TwoSided()(x).tolist() == [[[3, 0, 0, 4]]]
    assert TwoSided(torch.tanh)(x)[0, 0, 2:].tolist() == pytest.approx(
        [math.tanh(3) - 3, math.tanh(-4) + 4]
    )
    # Of slope 1 at 0.
    small = torch.tensor([[[1e-3]]])
    assert (ScaledSigmoid(1, 1)(small) - 0.5).item() == pytest.approx(1e-3, rel=1e-4)
    image = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]).reshape(1, 1, 1, 2, 3)
    # The second window reaches over the edge.
    assert NormPool(2)(image).flatten().tolist() == pytest.approx([5, 2])
    # An entry is in at most two windows.
    halves = [5 / 2**0.5, (16 + 4) ** 0.5 / 2**0.5]
    assert NormPool(2, (2, 1))(image).flatten().tolist() == pytest.approx(halves)
    # t^2 = 1 / 2, and a branch that halves.
    residual = Residual(1, nn.Sequential(Linear(1, 1, 1)))
    nn.init.zeros_(residual.odds)
    set_strict(residual, False)
    nn.init.constant_(weighted(residual)[0].weight, 0.5)
    assert residual(torch.ones(1, 1, 1)).item() == pytest.approx(0.5 + 0.5 * 0.5)
    scale = BoundedScale(1, 2)
    scale.factor.data = torch.tensor([[-4.0, 2.0]])
    assert scale(torch.ones(1, 1, 2)).tolist() == [[[-1, 0.5]]]
    assert SubtractMean()(x).tolist() == [[[3.5, -3.5]]]


def test_pooling_has_a_finite_gradient_at_0() -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(1, 1, 1, 4, 4, dtype=dtype, requires_grad=True)
        (gradient,) = torch.autograd.grad(NormPool(2)(x).sum(), x)
        assert (gradient == 0).all()


def _changes() -> dict[str, Callable[[Linear], Linear]]:
    def loaded(layer: Linear) -> Linear:
        layer.load_state_dict(Linear(2, 4, 3).state_dict())
        return layer

    def assigned(layer: Linear) -> Linear:
        layer.load_state_dict(Linear(2, 4, 3).state_dict(), assign=True)
        return layer

    def in_place(layer: Linear) -> Linear:
        with torch.no_grad():
            layer.weight.mul_(2)
        return layer

    def trained(layer: Linear) -> Linear:
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        layer.train()(torch.rand(1, 5, 4)).sum().backward()
        optimizer.step()
        return layer.eval()

    def trained_in_eval_mode(layer: Linear) -> Linear:
        layer.weight.grad = torch.ones_like(layer.weight)
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
        return layer

    def copied_and_changed(layer: Linear) -> Linear:
        with torch.no_grad():
            layer.weight.mul_(2)
        return copy.deepcopy(layer)

    def changed_after_a_copy(layer: Linear) -> Linear:
        other = copy.deepcopy(layer)
        return in_place(other)

    def raw(layer: Linear) -> Linear:
        layer.strict = False
        return layer

    def strict_again(layer: Linear) -> Linear:
        layer.strict = False
        layer.effective()
        layer.strict = True
        return layer

    return {
        "load": loaded,
        "assign": assigned,
        "in place": in_place,
        "train": trained,
        "train in eval mode": trained_in_eval_mode,
        "copy after a change": copied_and_changed,
        "change of a copy": changed_after_a_copy,
        "double": lambda layer: layer.double(),
        "half and back": lambda layer: layer.bfloat16().float(),
        "raw": raw,
        "strict again": strict_again,
    }


@pytest.mark.parametrize("name", _changes())
def test_what_eval_mode_keeps_follows_every_change(name: str) -> None:
    layer = Linear(2, 4, 3).eval()
    layer.effective()
    layer = _changes()[name](layer)
    raw = layer.weight.detach().double()
    wanted = SCALINGS["cayley"](raw) if layer.strict else raw
    for _ in range(2):
        torch.testing.assert_close(layer.effective(), wanted.to(layer.weight.dtype))


def test_eval_mode_makes_weights_once_and_without_gradients() -> None:
    layer = Linear(2, 4, 3).eval()
    with torch.inference_mode():
        layer(torch.rand(1, 5, 4))
    kept = layer.effective()
    assert layer.effective() is kept
    assert not kept.requires_grad
    assert list(layer.state_dict()) == ["weight", "bias"]
    x = torch.rand(1, 5, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    layer.train()(x).sum().backward()
    assert layer.weight.grad is not None


def test_eval_mode_is_nonexpansive_to_the_rounding_of_its_weights() -> None:
    """Made in float64: orthonormal to a single rounding, which in float32 it is not."""
    made = Linear(1, 300, 200).eval().effective()[0].double()
    torch.testing.assert_close(made @ made.T, torch.eye(200).double(), atol=1e-7, rtol=0)


def test_penalties_are_summed_over_layers_and_networks() -> None:
    network = nn.Sequential(Linear(2, 2, 2, "bound"), TwoSided(), Conv(2, 1, 1, 1, scaling="bound"))
    for layer, size in zip(weighted(network), (2.0, 3.0), strict=True):
        layer.weight.data = size * torch.eye(layer.weight.shape[-1]).expand_as(layer.weight).clone()
    # Two networks: two rows of 4 - 1, and one of 9 - 1.
    assert penalties(network).item() == pytest.approx(2 * (2 * 3 + 8))
    x = torch.ones(1, 1, 2)
    assert network[0](x).flatten().tolist() == pytest.approx([1, 1, 1, 1])
    set_strict(network, False)
    assert network[0](x).flatten().tolist() == pytest.approx([2, 2, 2, 2])
    network.eval()
    assert network[0](x).flatten().tolist() == pytest.approx([2, 2, 2, 2])
    set_strict(network, True)
    assert network[0](x).flatten().tolist() == pytest.approx([1, 1, 1, 1])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_networks_of_zero_weights_have_finite_gradients(scaling: str) -> None:
    network = build_stack("conv", (1, 8, 8), 2, scaling=scaling)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    x = torch.zeros(1, 3, 1, 8, 8, requires_grad=True)
    gradients = torch.autograd.grad(network(x).sum(), [x, *network.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="bound, almost-orthogonal, cayley"):
        Linear(1, 2, 2, "spectral")
    with pytest.raises(ValueError, match="use one of mlp, deep, conv"):
        build_stack("lenet5", (1, 8, 8), 1)
    with pytest.raises(ValueError, match="too small"):
        build_stack("conv", (1, 3, 8), 1)
    with pytest.raises(ValueError, match="widen"):
        build_stack("mlp", (1, 8, 8), 1, widen=0.0)
