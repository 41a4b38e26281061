"""The operations of torch that networks may consist of, so that bounds can be propagated."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# They depend on the shape of their argument alone.
OF_SHAPE = {
    "empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like",
    "zeros_like",
}  # fmt: skip

# Affine in their first argument, where the others are constants.
OF_FIRST = {
    "_adaptive_avg_pool2d", "_to_copy", "_unsafe_view", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "alias", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "clone", "col2im", "constant_pad_nd", "contiguous", "conv1d", "conv2d", "conv3d",
    "conv_transpose2d", "convolution", "cumsum", "detach", "diagonal", "div", "dropout", "expand",
    "feature_dropout", "flatten", "flip", "gather", "im2col", "index", "index_select", "linear",
    "masked_fill", "mean", "movedim", "narrow", "neg", "pad", "permute", "pixel_shuffle",
    "reflection_pad2d", "repeat", "replication_pad2d", "reshape", "roll", "select", "slice",
    "squeeze", "sum", "t", "tile", "to", "transpose", "unflatten", "unfold", "unsqueeze",
    "upsample_bilinear2d", "upsample_nearest2d", "view",
    "chunk", "split", "split_with_sizes", "tensor_split",
    "unbind",
}  # fmt: skip

# Affine in all their arguments together.
SUMS = {"add", "cat", "concat", "hstack", "rsub", "stack", "sub", "vstack", "where"}

# Affine in one argument, where the others are constants.
PRODUCTS = {"bmm", "dot", "einsum", "matmul", "mm", "mul", "mv", "outer"}

# Sums of their first argument and a product of the others.
SUMS_OF_PRODUCTS = {"addbmm", "addmm", "addmv", "baddbmm"}


def is_affine(name: str, dynamic: Sequence[int]) -> bool:
    """Whether an operation is affine in the arguments of some places, if the others are
    constants."""
    if name in OF_FIRST:
        return list(dynamic) == [0]
    if name in SUMS:
        return name != "where" or 0 not in dynamic
    if name in PRODUCTS:
        return len(dynamic) == 1
    return name in SUMS_OF_PRODUCTS and len([place for place in dynamic if place > 0]) <= 1


def absolute(value: Any) -> Any:
    """An argument with the absolute values of the numbers in it: those of tensors, of which a map
    may be made. Whole numbers are places or sizes, and stay."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.abs()
    if isinstance(value, list | tuple):
        return type(value)(absolute(part) for part in value)
    return value


def windows(
    shape: Sequence[int], after: Sequence[int], size: Any, stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """The numbers (outputs, size) of the entries of a map (h, w) that each entry of a map after
    pooling (h', w') is the largest of; those in the padding are replaced by another of the
    window."""
    sides = []
    for axis in range(2):
        step = _of(stride or size, axis)
        start = torch.arange(after[axis]) * step - _of(padding, axis)
        sides.append(start[:, None] + torch.arange(_of(size, axis)) * _of(dilation, axis))
    rows, columns = sides[0][:, None, :, None], sides[1][None, :, None, :]
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    number = torch.where(inside, rows * shape[1] + columns, -1).flatten(2).flatten(0, 1)
    return torch.where(number < 0, number.amax(1, keepdim=True), number)


def _of(value: Any, axis: int) -> int:
    if isinstance(value, list | tuple):
        return int(value[axis] if len(value) > 1 else value[0])
    return int(value)
