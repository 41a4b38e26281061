"""Derivatives for what has none: rounding, signs, comparisons, decisions, whole numbers.

Rounding passes gradients straight through (Bengio et al. 2013). A comparison or a decision gives
booleans or whole numbers, which torch does not differentiate: they carry a soft companion, which
takes their place once they are used as numbers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from attacks.smoothing.grafts import grafted, sloped
from attacks.smoothing.scale import Scale

_COMPANION = "_soft_companion"


def has_companion(value: Any) -> bool:
    """Whether a tensor carries a soft companion."""
    return isinstance(value, Tensor) and hasattr(value, _COMPANION)


def _carrying(value: Tensor, soft: Tensor) -> Tensor:
    """A tensor with a companion: itself as a graft where it can have a gradient."""
    if value.is_floating_point():
        return grafted(value.detach(), soft.to(value.dtype))
    setattr(value, _COMPANION, soft)
    return value


def _soft(value: Any) -> Any:
    """The companion of a tensor in its place."""
    if isinstance(value, list | tuple):
        return type(value)(_soft(item) for item in value)
    return getattr(value, _COMPANION) if has_companion(value) else value


# Linear operations, by which a companion follows its tensor.
CARRIED = {
    "add", "sub", "rsub", "mul", "div", "true_divide", "neg", "sum", "mean", "matmul", "mm", "bmm",
    "reshape", "view", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "movedim", "cat",
    "stack", "expand", "contiguous", "clone", "logical_and", "bitwise_and", "and",
    "multiply", "subtract", "divide", "unflatten", "repeat", "concat",
}  # fmt: skip


def with_companions(func: Callable[..., Any], args: tuple[Any, ...], kw: Mapping[str, Any]) -> Any:
    """What a linear function gives, with the companion that it gives of companions."""
    if not any(has_companion(item) for value in args for item in _items(value)):
        return func(*args, **kw)
    value = func(*args, **kw)
    if func.__name__.strip("_") in ("logical_and", "bitwise_and", "and"):
        soft = _soft(args[0]) * _soft(args[1])
    else:
        soft = func(*_soft(args), **kw)
    if value.is_floating_point():
        return grafted(value.detach(), soft.to(value.dtype))
    return _carrying(value, soft)


def _items(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def _straight(scale: Scale, func: Callable[..., Tensor], z: Tensor, *args: Any, **kw: Any) -> Any:
    with torch.no_grad():
        value = func(z.detach(), *args, **kw)
    return sloped(z, value, torch.ones_like(value))


def _floor_divide(
    scale: Scale, func: Callable[..., Tensor], z: Any, other: Any, *args: Any, **kw: Any
) -> Any:
    if not isinstance(z, Tensor) or (isinstance(other, Tensor) and other.requires_grad):
        return NotImplemented
    with torch.no_grad():
        value = func(z.detach(), other, *args, **kw)
    return _carrying(value, _soft(z) / other)


def _sign(scale: Scale, func: Callable[..., Tensor], z: Tensor) -> Any:
    with torch.no_grad():
        width = scale.width(z)
        slope = (1 - (z / width).tanh().square()) / width
        value = func(z.detach())
    return sloped(z, value, slope)


def _compare(sign: int) -> Callable[..., Tensor]:
    def rule(scale: Scale, func: Callable[..., Tensor], a: Any, b: Any) -> Any:
        lead = sign * (_soft(a) - _soft(b))
        if not isinstance(lead, Tensor) or not lead.is_floating_point():
            return NotImplemented
        return _carrying(func(a, b), torch.sigmoid(lead / scale.width(lead)))

    return rule


def _not(scale: Scale, func: Callable[..., Tensor], a: Tensor) -> Any:
    if not has_companion(a) or a.dtype != torch.bool:
        return NotImplemented
    return _carrying(func(a), 1 - _soft(a))


def _argmax(
    scale: Scale, func: Callable[..., Tensor], z: Tensor, dim: int | None = None,
    keepdim: bool = False, *, sign: int = 1,
) -> Any:  # fmt: skip
    if dim is None or dim % z.dim() == 0 or keepdim:
        return NotImplemented
    value = func(z.detach(), dim)
    width = scale.width(z - z.mean(dim, keepdim=True))
    # The class is the last dimension, as `one_hot` makes it.
    setattr(value, _COMPANION, (z / width).softmax(dim).movedim(dim, -1))
    return value


def _one_hot(
    scale: Scale, func: Callable[..., Tensor], chosen: Tensor, *args: Any, **kw: Any
) -> Any:
    value = func(chosen, *args, **kw)
    soft = _soft(chosen)
    if not isinstance(soft, Tensor) or soft.shape != value.shape:
        return value
    return _carrying(value, soft)


def _converted(scale: Scale, func: Callable[..., Tensor], z: Tensor, *args: Any, **kw: Any) -> Any:
    """A change of type, where it is one to or from numbers that have no gradient."""
    with torch.no_grad():
        value = func(z.detach(), *args, **kw)
    if z.is_floating_point() and value.is_floating_point():
        return NotImplemented
    soft = _soft(z)
    return _carrying(value, soft) if soft.shape == value.shape else NotImplemented


def _where(scale: Scale, func: Callable[..., Tensor], condition: Tensor, *args: Any) -> Any:
    if not has_companion(condition) or len(args) != 2:
        return NotImplemented
    value = func(condition, *args)
    with torch.no_grad():
        gain = torch.as_tensor(args[0] - args[1], dtype=value.dtype, device=value.device)
        gain = gain.nan_to_num(0, 0, 0)
    soft = gain * _soft(condition).to(value.dtype)
    return value + (soft - soft.detach())


def _masked_fill(
    scale: Scale, func: Callable[..., Tensor], z: Tensor, mask: Tensor, value: Any
) -> Any:
    if not has_companion(mask):
        return NotImplemented
    filled = func(z, mask, value)
    with torch.no_grad():
        gain = (value - z).nan_to_num(0, 0, 0)
    soft = gain * _soft(mask).to(filled.dtype)
    return filled + (soft - soft.detach())


STEPS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("round", "floor", "ceil", "trunc", "fix"), _straight),
    **dict.fromkeys(("floor_divide", "floordiv"), _floor_divide),
    "sign": _sign,
    "sgn": _sign,
    **dict.fromkeys(("gt", "greater", "ge", "greater_equal"), _compare(1)),
    **dict.fromkeys(("lt", "less", "le", "less_equal"), _compare(-1)),
    **dict.fromkeys(("logical_not", "bitwise_not", "invert"), _not),
    "argmax": _argmax,
    "one_hot": _one_hot,
    **dict.fromkeys(
        ("to", "type", "type_as", "float", "double", "half", "bfloat16", "int", "long", "byte",
         "short", "char", "bool", "dequantize", "quantize_per_tensor"),
        _converted,
    ),
    "where": _where,
    "masked_fill": _masked_fill,
}  # fmt: skip
