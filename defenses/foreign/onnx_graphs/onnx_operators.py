"""Operators of ONNX that onnx2torch lacks, or does not know in their newer versions."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

# What operators that are registered here are called by in a graph where onnx2torch has its own.
DOMAIN = "bestattack"
# Those: its pooling averages over all axes where shapes are not inferred.
OURS = ("GlobalAveragePool",)

Attributes = Mapping[str, Any]


def _over(x: Tensor, axes: Tensor | None, attributes: Attributes) -> tuple[list[int], bool]:
    """The axes of a reduction, and whether they stay, with length 1."""
    given = [] if axes is None else axes.tolist()
    if not given and not attributes.get("noop_with_empty_axes", 0):
        given = list(range(x.dim()))
    return given, bool(attributes.get("keepdims", 1))


def _reduction(reduce: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    """An operator that reduces over axes that are an input."""

    def reduced(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims, keepdims = _over(x, axes, attributes)
        return reduce(x, dims, keepdims) if dims else x

    return reduced


def _product(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdims)
    return x


def _trilu(attributes: Attributes, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if attributes.get("upper", 1) else x.tril(diagonal)


def _hardmax(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", -1)
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def _normalise(attributes: Attributes, x: Tensor) -> Tensor:
    axis, order = attributes.get("axis", -1), attributes.get("p", 2)
    length: Tensor = torch.linalg.vector_norm(x, order, dim=axis, keepdim=True)
    return x / length


def _along(values: Tensor, x: Tensor, attributes: Attributes) -> Tensor:
    """Scales or zero points, one or one for each place along an axis, to broadcast with x."""
    if values.dim() == 0 or values.numel() == 1:
        return values.reshape(())
    shape = [1] * x.dim()
    shape[attributes.get("axis", 1)] = -1
    return values.view(shape)


def _quantize(
    attributes: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None
) -> Tensor:
    """Whole numbers, kept as floats so that gradients can be passed straight through."""
    point = torch.zeros((), dtype=torch.uint8) if zero is None else zero
    low, high = torch.iinfo(point.dtype).min, torch.iinfo(point.dtype).max
    whole = (x / _along(scale, x, attributes)).round() + _along(point, x, attributes).to(x.dtype)
    return whole.clamp(low, high)


def _dequantize(
    attributes: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None
) -> Tensor:
    shifted = x.to(scale.dtype)
    if zero is not None:
        shifted = shifted - _along(zero, x, attributes).to(scale.dtype)
    return shifted * _along(scale, x, attributes)


# What each operator does, given its attributes and inputs; and from which operator set on these are
# its inputs, where it had others before.
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceLogSum": _reduction(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: x.logsumexp(axes, keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceProd": _reduction(_product),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "GlobalAveragePool": lambda _, x: x.mean(list(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": lambda _, x: x.amax(list(range(2, x.dim())), keepdim=True),
    "Sinh": lambda _, x: x.sinh(),
    "Cosh": lambda _, x: x.cosh(),
    "Asinh": lambda _, x: x.asinh(),
    "Acosh": lambda _, x: x.acosh(),
    "Atanh": lambda _, x: x.atanh(),
    "Trilu": _trilu,
    "Hardmax": _hardmax,
    "LpNormalization": _normalise,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
_SINCE = {name: 18 for name in _FUNCTIONS if name.startswith("Reduce")} | {"Hardmax": 13}


class Operator(nn.Module):
    """An operator of this file, with its attributes."""

    def __init__(self, name: str, attributes: Attributes) -> None:
        super().__init__()
        self.name, self.attributes = name, dict(attributes)

    def forward(self, *inputs: Tensor) -> Tensor:
        return _FUNCTIONS[self.name](self.attributes, *inputs)


@cache
def register() -> None:
    """Make these operators known to onnx2torch."""
    from onnx import defs
    from onnx2torch.node_converters.registry import add_converter
    from onnx2torch.utils.common import OperationConverterResult, onnx_mapping_from_node

    def convert(node: Any, graph: Any) -> Any:
        del graph
        module = Operator(node.operation_type, node.attributes)
        return OperationConverterResult(module, onnx_mapping_from_node(node))

    versions = {(s.name, s.since_version) for s in defs.get_all_schemas_with_history()}
    for name, version in sorted(versions):
        if name in _FUNCTIONS and name not in OURS and version >= _SINCE.get(name, 1):
            add_converter(name, version)(convert)
    for name in OURS:
        add_converter(name, 1, DOMAIN)(convert)
