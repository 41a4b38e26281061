"""What cuts the gradient and keeps the shape counts as the identity; values stay the model's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import BPDA, PGD, Problem, Smoothed, ThreatModel
from attacks.objectives import decided
from attacks.smoothing.through import StraightThrough


class _Levels(torch.autograd.Function):
    """Eighths, with no gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return (z * 8).round() / 8

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor | None:
        return None


class _Zero(_Levels):
    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor | None:
        return 0 * gradient[0]


class _Undefined(_Levels):
    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor | None:
        return torch.nan * gradient[0]


class _Threefold(_Levels):
    """Has a gradient, which is to be kept."""

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor | None:
        return 3 * gradient[0]


def _without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        return (x * 8).round() / 8


def _in_inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return (x * 8).round() / 8


def _by_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.round(x.detach().cpu().numpy() * 8) / 8)


def _one_by_one(x: Tensor) -> Tensor:
    """Each image by itself, as a library of images has it."""
    images = [torch.as_tensor(np.round(np.asarray(image.detach()) * 8) / 8) for image in x]
    return torch.stack(images)


CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "custom": _Levels.apply,
    "zero": _Zero.apply,
    "nan": _Undefined.apply,
    "no_grad": _without_gradients,
    "inference": _in_inference,
    "numpy": _by_numpy,
    "lists": lambda x: (torch.tensor(x.tolist(), dtype=x.dtype) * 8).round() / 8,
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
    "in place": lambda x: x.detach().mul(8).round_().div_(8),
    "one by one": _one_by_one,
}  # type: ignore[dict-item]


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_passes_the_gradient_of_the_identity(name: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 3), torch.rand(5, 6, requires_grad=True)
    with StraightThrough(temperature=0.1, points=x):
        value = layer(CUTS[name](x))
    with torch.no_grad():
        assert torch.equal(value, layer(CUTS[name](x)))
    (gradient,) = torch.autograd.grad(value[:, 0].sum(), x)
    assert torch.allclose(gradient, layer.weight[0].expand(5, 6), atol=1e-6)


@pytest.mark.parametrize("name", CUTS)
def test_models_behind_a_cut_are_broken(name: str) -> None:
    """As far as the one without it; by gradients of the model as it is they are not at all."""
    torch.manual_seed(1)
    x, weight = torch.rand(12, 1, 4, 4), torch.randn(16, 3)
    model = lambda x: CUTS[name](x).flatten(1) @ weight  # noqa: E731
    y = model(x).argmax(1)
    problem = Problem(model, x, y, ThreatModel("l2", 1.0))
    points = BPDA(PGD(steps=20, objective="margin"))(problem)
    assert decided(model(points), y).double().mean() > 0.9
    if name not in ("detach", "data"):
        assert _levels_apart(points, x) > 0


def _levels_apart(points: Tensor, x: Tensor) -> int:
    return int(((points * 8).round() != (x * 8).round()).sum())


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("name", CUTS)
def test_so_does_a_cut_of_features(name: str, n: int) -> None:
    """Which have another shape than the images."""
    torch.manual_seed(0)
    first, layer, x = nn.Linear(6, 4), nn.Linear(4, 3), torch.rand(n, 6, requires_grad=True)
    with StraightThrough(temperature=0.1, points=x):
        value = layer(CUTS[name](first(x)))
    (gradient,) = torch.autograd.grad(value[:, 0].sum(), x, allow_unused=True)
    if name == "one by one":  # which comes back by rows that are nobody's
        return
    expected = (layer.weight[0] @ first.weight).expand(n, 6)
    assert torch.allclose(gradient, expected, atol=1e-6)


class _Product(torch.autograd.Function):
    """Of two inputs of one shape."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return gradient[0] * b, gradient[0] * a


def test_a_custom_function_of_two_inputs_keeps_its_gradients() -> None:
    x = torch.rand(4, 3, requires_grad=True)
    with StraightThrough(temperature=0.1, points=x):
        value = _Product.apply(2 * x, x * x) + 0 * x
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.allclose(gradient, 6 * x.detach() ** 2, atol=1e-5)


class _Both(torch.autograd.Function):
    """Two outputs of one node, of which one has a shape of its own."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (z * 8).round() / 8, 5 * z, z.sum(1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> None:
        return None


def test_values_of_several_outputs_are_the_functions_own() -> None:
    def model(x: Tensor) -> Tensor:
        first, second, third = _Both.apply(x)
        return first + 2 * second * third

    x = torch.rand(4, 3, requires_grad=True)
    with StraightThrough(temperature=0.1, points=x):
        value = model(x)
    assert torch.equal(value, model(x))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.abs().min() > 0


def test_what_is_cut_may_be_changed_in_place() -> None:
    def model(x: Tensor) -> Tensor:
        cut = x.detach().clone()
        square = cut**2
        cut.mul_(2)
        levels = _Zero.apply(x)
        levels.add_(1)
        return square + cut + levels

    x = torch.rand(4, 3, requires_grad=True)
    with StraightThrough(temperature=0.1, points=x):
        value = model(x)
    assert torch.equal(value, model(x))
    torch.autograd.grad(value.sum(), x)


def test_noise_of_the_images_shape_is_no_cut() -> None:
    x = torch.rand(4, 3, requires_grad=True)
    with StraightThrough(temperature=0.1, points=x) as mode:
        value = x - 2 * torch.randn_like(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.equal(gradient, torch.ones(4, 3))
    assert mode.cuts == 0


def test_a_custom_function_keeps_a_gradient_that_it_has() -> None:
    x = torch.rand(4, 3, requires_grad=True)
    with StraightThrough(temperature=0.1, points=x):
        value = _Threefold.apply(x) * 2
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.allclose(gradient, torch.full((4, 3), 6.0))


def test_samples_without_a_gradient_alone_are_mended() -> None:
    class Some(_Levels):
        @staticmethod
        def backward(ctx: Any, *gradient: Tensor) -> Tensor | None:
            return gradient[0] * torch.tensor([[5.0], [0.0], [torch.nan]])

    x = torch.rand(3, 2, requires_grad=True)
    with StraightThrough(temperature=0.1, points=x):
        value = Some.apply(x) * 2
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.allclose(gradient, torch.tensor([[10.0, 10.0], [2.0, 2.0], [2.0, 2.0]]))


@pytest.mark.parametrize(
    ("model", "slope"),
    [
        (lambda x: x.detach() + 0 * x, 1.0),
        (lambda x: 2 * x.detach() - x, 1.0),
        (lambda x: x + (x.round() - x).detach(), 1.0),
        (lambda x: x * torch.full((4, 3), 0.5), 0.5),
    ],
)
def test_what_has_a_gradient_is_left_alone_or_put_right(
    model: Callable[[Tensor], Tensor], slope: float
) -> None:
    x = torch.rand(4, 3, requires_grad=True)
    with StraightThrough(temperature=1e-6, points=x):
        value = model(x)
    (gradient,) = torch.autograd.grad(value[0, 0] + value[3, 2], x)
    expected = torch.zeros(4, 3)
    expected[0, 0] = expected[3, 2] = slope
    assert torch.allclose(gradient, expected, atol=1e-4)


def test_no_sample_gets_the_gradient_of_another() -> None:
    """Images that leave one by one come back by rows, or not at all."""
    layer, x = nn.Linear(6, 3), torch.rand(5, 6, requires_grad=True)
    with StraightThrough(temperature=0.1, points=x):
        images = [torch.from_numpy(image.detach().numpy()) for image in x]
        value = torch.stack([layer(image) for image in images])
    assert torch.autograd.grad(value[0].sum(), x, allow_unused=True)[0] is None


def test_where_nothing_is_cut_it_is_the_smoothed_attack() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    x = torch.rand(20, 1, 4, 4)
    problem = Problem(model, x, model(x).argmax(1), ThreatModel("linf", 0.1))
    base = PGD(steps=10)
    hits = [decided(model(attack(base)(problem)), problem.y) for attack in (Smoothed, BPDA)]
    assert torch.equal(*hits)
