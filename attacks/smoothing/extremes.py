"""Smooth derivatives of the largest and the smallest of several numbers, and of pooling."""

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attacks.smoothing.grafts import gathered, grafted
from attacks.smoothing.scale import Scale


def _of_two(scale: Scale, func: Callable[..., Tensor], a: Tensor, b: Tensor, sign: int) -> Any:
    with torch.no_grad():
        value = func(a, b)
        share = scale.rise(sign * (a - b)).to(value.dtype)
    return grafted(value, (share * a + (1 - share) * b).to(value.dtype))


def _weights(scale: Scale, z: Tensor, dims: Any, sign: int) -> Tensor:
    """How much each of some numbers counts as the largest, or with sign -1 as the smallest."""
    z = sign * z.detach()
    width = scale.width(z - z.mean(dims, keepdim=True))
    shifted = (z - z.amax(dims, keepdim=True)) / width
    return shifted.exp() / shifted.exp().sum(dims, keepdim=True)


def _amax(
    scale: Scale, func: Callable[..., Tensor], z: Tensor, dim: Any = (), keepdim: bool = False,
    *, sign: int,
) -> Any:  # fmt: skip
    if dim == () or dim is None or _mixes(z, dim):
        return NotImplemented
    with torch.no_grad():
        value, weights = func(z, dim, keepdim), _weights(scale, z, dim, sign)
    return grafted(value, (weights * z).sum(dim, keepdim))


def _max(
    scale: Scale, func: Callable[..., Any], z: Tensor, *args: Any, sign: int, **kw: Any
) -> Any:
    """`max` of two tensors, or of one along a dimension with the place of it."""
    other = args[0] if args else kw.get("other")
    if isinstance(other, Tensor):
        return _of_two(scale, func, z, other, sign)
    dim = args[0] if args else kw.get("dim")
    if dim is None or _mixes(z, dim):
        return NotImplemented
    with torch.no_grad():
        found = func(z, *args, **kw)
        weights = _weights(scale, z, dim, sign)
    keepdim = found[0].dim() == z.dim()
    return type(found)((grafted(found[0], (weights * z).sum(dim, keepdim)), found[1]))


def _mixes(z: Tensor, dim: int | Sequence[int]) -> bool:
    """Whether an extreme is taken over the batch."""
    dims = [dim] if isinstance(dim, int) else list(dim)
    return any(axis % z.dim() == 0 for axis in dims)


def _pool(
    scale: Scale, func: Callable[..., Any], z: Tensor, kernel_size: Any = None, stride: Any = None,
    padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False, *args: Any, axes: int, **kw: Any,
) -> Any:  # fmt: skip
    with torch.no_grad():
        found = func(z, kernel_size, stride, padding, dilation, ceil_mode, *args, **kw)
    value = found[0] if isinstance(found, tuple) else found
    sizes, gaps = _each(kernel_size, axes), _each(dilation, axes)
    strides = _each(stride, axes) if stride not in (None, ()) and stride != [] else sizes
    amounts = _amounts(z, value, sizes, strides, _each(padding, axes), gaps)
    # Where the first number of each window lies, the second, and so on.
    places: list[Any] = [
        (..., *map(_at, place, strides, gaps, value.shape[-axes:]))
        for place in product(*map(range, sizes))
    ]
    with torch.no_grad():
        padded = functional.pad(z, amounts, value=-math.inf) if any(amounts) else z
        inverse = 1 / scale.width(z)
        weights = [((padded[place] - value) * inverse).exp_() for place in places]
        total = functools.reduce(torch.add, weights)
        weights = [weight.div_(total) for weight in weights]
    return _pooled(found, lambda out: gathered(z, out, places, weights, amounts))


def _at(offset: int, stride: int, gap: int, length: int) -> slice:
    """Where, along an axis, the numbers lie that have an offset in their windows."""
    begin = offset * gap
    return slice(begin, begin + (length - 1) * stride + 1, stride)


def _soft_pool(scale: Scale, z: Tensor, windows: Tensor) -> Tensor:
    """The mean of each window, the last dimension, by how much its numbers count as largest."""
    with torch.no_grad():
        width = scale.width(z).unsqueeze(-1)
        weights = ((windows - windows.amax(-1, keepdim=True)) / width).softmax(-1)
    return torch.where(weights > 0, weights * windows, 0.0).sum(-1)


def _amounts(
    z: Tensor, value: Tensor, sizes: list[int], strides: list[int], paddings: list[int],
    dilations: list[int],
) -> list[int]:  # fmt: skip
    """How much is padded before and behind each axis, the last first, so that all windows fit."""
    axes = len(sizes)
    amounts: list[int] = []
    for axis in reversed(range(axes)):
        length, out = z.shape[z.dim() - axes + axis], value.shape[z.dim() - axes + axis]
        reach = (out - 1) * strides[axis] + (sizes[axis] - 1) * dilations[axis] + 1
        amounts += [paddings[axis], max(0, reach - length - paddings[axis])]
    return amounts


def _each(value: Any, axes: int) -> list[int]:
    values = [int(value)] * axes if isinstance(value, int) else [int(item) for item in value]
    return values * axes if len(values) == 1 and axes > 1 else values


def _pooled(found: Any, graft: Callable[[Tensor], Tensor]) -> Any:
    """What pooling found, with another gradient."""
    if isinstance(found, tuple):
        return type(found)((graft(found[0]), *found[1:]))
    return graft(found)


def _adaptive(
    scale: Scale, func: Callable[..., Any], z: Tensor, output_size: Any, *args: Any, axes: int,
    **kw: Any,
) -> Any:  # fmt: skip
    with torch.no_grad():
        found = func(z, output_size, *args, **kw)
    value = found[0] if isinstance(found, tuple) else found
    lengths, outs = z.shape[-axes:], value.shape[-axes:]
    soft = []
    # As torch divides: from floor(i * length / out) to ceil((i + 1) * length / out).
    for place in product(*(range(out) for out in outs)):
        window = z
        for axis, (at, length, out) in enumerate(zip(place, lengths, outs, strict=True)):
            begin, end = at * length // out, -(-(at + 1) * length // out)
            window = window.narrow(z.dim() - axes + axis, begin, end - begin)
        soft.append(_soft_pool(scale, z.flatten(-axes), window.flatten(-axes).unsqueeze(-2)))
    smooth = torch.cat(soft, -1).unflatten(-1, tuple(outs))
    return _pooled(found, lambda out: grafted(out, smooth))


EXTREMES: dict[str, Callable[..., Any]] = {
    "maximum": partial(_of_two, sign=1),
    "fmax": partial(_of_two, sign=1),
    "minimum": partial(_of_two, sign=-1),
    "fmin": partial(_of_two, sign=-1),
    "amax": partial(_amax, sign=1),
    "amin": partial(_amax, sign=-1),
    "max": partial(_max, sign=1),
    "min": partial(_max, sign=-1),
}
for _axes in (1, 2, 3):
    for _suffix in ("", "_with_indices"):
        EXTREMES[f"max_pool{_axes}d{_suffix}"] = partial(_pool, axes=_axes)
        EXTREMES[f"adaptive_max_pool{_axes}d{_suffix}"] = partial(_adaptive, axes=_axes)
