"""Smooth derivatives of functions of one number: rectifiers, clamps, saturating activations.

Each rule is given the scale, the function and its arguments, and returns the function's values with
another derivative.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attacks.smoothing.grafts import grafted, sloped
from attacks.smoothing.scale import Scale

# The slope of a function of z, given its further arguments.
Slope = Callable[..., Tensor]


def _by_slope(slope: Slope) -> Callable[..., Tensor]:
    def rule(scale: Scale, func: Callable[..., Tensor], z: Tensor, *args: Any, **kw: Any) -> Any:
        with torch.no_grad():
            value, steep = func(z.detach(), *args, **kw), slope(scale, z.detach(), *args, **kw)
        return sloped(z, value, steep)

    return rule


def _relu(scale: Scale, z: Tensor) -> Tensor:
    return scale.rise(z)


def _relu6(scale: Scale, z: Tensor) -> Tensor:
    return scale.rise(z) * scale.rise(6 - z)


def _leaky_relu(scale: Scale, z: Tensor, negative_slope: float = 0.01) -> Tensor:
    return negative_slope + (1 - negative_slope) * scale.rise(z)


def _prelu(scale: Scale, z: Tensor, weight: Tensor) -> Tensor:
    weight = weight.detach()
    if weight.numel() > 1:
        weight = weight.view(1, -1, *[1] * (z.dim() - 2))
    return weight + (1 - weight) * scale.rise(z)


def _rrelu(
    scale: Scale, z: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False
) -> Tensor:
    middle = (lower + upper) / 2
    return middle + (1 - middle) * scale.rise(z)


def _clamp(
    scale: Scale, z: Tensor, min: Tensor | float | None = None, max: Tensor | float | None = None
) -> Tensor:
    slope = torch.ones_like(z)
    if min is not None:
        slope = slope * scale.rise(z - min)
    if max is not None:
        slope = slope * scale.rise(max - z)
    return slope


def _clamp_max(scale: Scale, z: Tensor, max: Tensor | float) -> Tensor:
    return scale.rise(max - z)


def _hardtanh(scale: Scale, z: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return scale.rise(z - min_val) * scale.rise(max_val - z)


def _hardsigmoid(scale: Scale, z: Tensor) -> Tensor:
    return scale.rise(z + 3) * scale.rise(3 - z) / 6


def _hardswish(scale: Scale, z: Tensor) -> Tensor:
    return (z / 6 + 0.5).clamp(0, 1) + z * scale.rise(z + 3) * scale.rise(3 - z) / 6


def _threshold(scale: Scale, z: Tensor, threshold: float, value: float) -> Tensor:
    return scale.rise(z - threshold)


def _abs(scale: Scale, z: Tensor) -> Tensor:
    return 2 * scale.rise(z) - 1


def _shrink(scale: Scale, z: Tensor, lambd: float = 0.5) -> Tensor:
    return scale.rise(z - lambd) + scale.rise(-z - lambd)


def _lowered(
    scale: Scale, func: Callable[..., Tensor], z: Tensor, *args: Any, linear: bool, **kw: Any
) -> Any:
    """A smooth function with the derivative that it has nearer to 0; `linear` ones grow without
    bounds, and keep their slope where they do."""
    with torch.no_grad():
        value = func(z.detach(), *args, **kw)
    slack = scale.slack(z)
    soft = func(slack * z, *args, **kw)
    return grafted(value, soft / slack if linear else soft)


def _softmax(
    scale: Scale,
    func: Callable[..., Tensor],
    z: Tensor,
    dim: int | None = None,
    *args: Any,
    **kw: Any,
) -> Any:
    if dim is None:
        return NotImplemented
    with torch.no_grad():
        value = func(z.detach(), dim, *args, **kw)
        spread = z.detach() - z.detach().mean(dim, keepdim=True)
    return grafted(value, (scale.slack(spread) * z).softmax(dim).to(value.dtype))


_bounded, _growing = partial(_lowered, linear=False), partial(_lowered, linear=True)

ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "relu": _by_slope(_relu),
    "relu6": _by_slope(_relu6),
    "leaky_relu": _by_slope(_leaky_relu),
    "prelu": _by_slope(_prelu),
    "rrelu": _by_slope(_rrelu),
    "clamp": _by_slope(_clamp),
    "clip": _by_slope(_clamp),
    "clamp_min": _by_slope(_clamp),
    "clamp_max": _by_slope(_clamp_max),
    "hardtanh": _by_slope(_hardtanh),
    "hardsigmoid": _by_slope(_hardsigmoid),
    "hardswish": _by_slope(_hardswish),
    "threshold": _by_slope(_threshold),
    "abs": _by_slope(_abs),
    "absolute": _by_slope(_abs),
    "softshrink": _by_slope(_shrink),
    "hardshrink": _by_slope(_shrink),
    **dict.fromkeys(("sigmoid", "tanh", "softsign", "erf", "atan", "arctan"), _bounded),
    **dict.fromkeys(("elu", "selu", "celu", "gelu", "silu", "mish", "softplus"), _growing),
    "softmax": _softmax,
}
