"""Values of one tensor with the gradient of another."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Where numbers lie in a tensor: an index of each.
Places = Sequence[Any]


class _Sloped(torch.autograd.Function):
    """A value whose derivative in an input of its shape is a given slope."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient[0] * slope, None, None


class _Grafted(torch.autograd.Function):
    """A value whose gradient is that of another tensor of its shape."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, value: Tensor) -> Tensor:
        return value.clone()  # which models may change in place

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[0], None


def sloped(z: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """`value` (any shape), which has the derivative `slope` in `z` of that shape."""
    result: Tensor = _Sloped.apply(z, value, slope.to(z.dtype))  # type: ignore[no-untyped-call]
    return result


def grafted(value: Tensor, soft: Tensor) -> Tensor:
    """`value` with the gradient of `soft`, of the same shape."""
    result: Tensor = _Grafted.apply(soft, value)  # type: ignore[no-untyped-call]
    return result


class _Joined(torch.autograd.Function):
    """A value that hands its gradient to two tensors of its shape."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, other: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient[0], gradient[0]


def joined(value: Tensor, other: Tensor) -> Tensor:
    """`value`, whose gradient goes to where it is from and to `other`, of the same shape."""
    result: Tensor = _Joined.apply(value, other)  # type: ignore[no-untyped-call]
    return result


class _Gathered(torch.autograd.Function):
    """A value, each number of which gathers some numbers of a tensor with weights."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, value: Tensor, places: Places, amounts: list[int], *weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*weights)
        ctx.shape, ctx.places, ctx.amounts = z.shape, places, amounts
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        unpadded = [(0, 0)] * len(ctx.shape)
        for axis in range(len(ctx.amounts) // 2):
            unpadded[-1 - axis] = (ctx.amounts[2 * axis], ctx.amounts[2 * axis + 1])
        shape = [n + sum(more) for n, more in zip(ctx.shape, unpadded, strict=True)]
        back = gradient[0].new_zeros(shape)
        for place, weight in zip(ctx.places, ctx.saved_tensors, strict=True):
            back[place].addcmul_(gradient[0], weight)
        inside = zip(ctx.shape, unpadded, strict=True)
        back = back[tuple(slice(before, before + n) for n, (before, _) in inside)]
        return back, None, None, None, *[None] * len(ctx.places)


def gathered(
    z: Tensor, value: Tensor, places: Places, weights: list[Tensor], amounts: list[int]
) -> Tensor:
    """`value`, with the gradient of a weighted sum of numbers of `z`.

    places   where these numbers lie in z once it is padded, each the index of one for every number
             of the value.
    weights  how much they count, each shaped as the value.
    amounts  how z is padded, as for `torch.nn.functional.pad`.
    """
    result: Tensor = _Gathered.apply(  # type: ignore[no-untyped-call]
        z, value, places, amounts, *weights
    )
    return result


def is_graft(node: Any) -> bool:
    """Whether a node of torch's graph is one of these."""
    return getattr(node, "_forward_cls", None) in (_Sloped, _Grafted, _Gathered, _Joined)
