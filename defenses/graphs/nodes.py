"""Writes a graph: nodes of affine operations, and of those made of functions of one number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from defenses.graphs.graph import Affine, Apply, Node, Shape, Sliding, Unary
from defenses.graphs.operations import windows


@dataclass(frozen=True)
class Value:
    """The number of a node of the graph, where a constant might be."""

    number: int


class Parts:
    """The outputs of an operation that has several, of which each is a node where it is used."""

    def __init__(self, part: Callable[[int, Shape], Value]) -> None:
        self.part = part


class Writer:
    """Makes nodes, for images like one (1, *shape)."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.nodes: list[Node] = []

    def shape_of(self, value: Value) -> Shape:
        number = value.number
        return tuple(self.nodes[number - 1].shape if number else self.image.shape)

    def affine(
        self,
        inputs: Sequence[Value],
        shape: Shape,
        apply: Apply,
        name: str,
        without_signs: Apply | None = None,
        sliding: Sliding | None = None,
    ) -> Value:
        shapes = tuple(map(self.shape_of, inputs))
        numbers = tuple(value.number for value in inputs)
        without_signs = without_signs or apply
        self.nodes.append(
            Affine(numbers, shapes, shape, apply, without_signs, name, self.image, sliding)
        )
        return Value(len(self.nodes))

    def _unary(self, value: Value, kind: str, name: str, slope: Any = 0.0) -> Value:
        self.nodes.append(Unary((value.number,), self.shape_of(value), kind, slope, name))
        return Value(len(self.nodes))

    def rectifier(self, node: fx.Node, x: Value, slope: Any = 0.0, *_: Any) -> Value:
        """max(x, slope x)."""
        if not bool(((torch.as_tensor(slope) >= 0) & (torch.as_tensor(slope) <= 1)).all()):
            raise ValueError(f"the slope of its {name_of(node)} must lie in [0, 1]")
        return self._unary(x, "rectifier", name_of(node), slope)

    def leaky(self, node: fx.Node, x: Value, slope: float = 0.01) -> Value:
        return self.rectifier(node, x, slope)

    def parametric(self, node: fx.Node, x: Value, slope: Tensor) -> Value:
        sides = [1] * (len(self.shape_of(x)) - 2)
        return self.rectifier(node, x, slope.view(-1, *sides))

    def clamp(self, node: fx.Node, x: Value, low: Any = None, high: Any = None) -> Value:
        """low + relu(x - low) - relu(x - high), as far as there are bounds."""
        shape, name = tuple(node.meta["val"].shape), name_of(node)
        if low is not None:
            above = self.affine([x], shape, lambda v: v - low, name)
            x = self._unary(above, "rectifier", name)
            x = self.affine([x], shape, lambda v: v + low, name)
        if high is not None:
            below = self.affine([x], shape, lambda v: high - v, name)
            left = self._unary(below, "rectifier", name)
            x = self.affine([left], shape, lambda v: high - v, name)
        return x

    def hard_tanh(self, node: fx.Node, x: Value, low: float = -1, high: float = 1) -> Value:
        return self.clamp(node, x, low, high)

    def relu6(self, node: fx.Node, x: Value) -> Value:
        return self.clamp(node, x, 0, 6)

    def magnitude(self, node: fx.Node, x: Value) -> Value:
        """relu(x) + relu(-x)."""
        shape, name = self.shape_of(x), name_of(node)
        above = self._unary(x, "rectifier", name)
        negative = self.affine([x], shape, lambda v: -v, name)
        below = self._unary(negative, "rectifier", name)
        return self.affine([above, below], shape, lambda a, b: a + b, name)

    def larger(self, node: fx.Node, x: Any, y: Any) -> Value:
        """y + relu(x - y)."""
        return self._larger(node, x, y, 1)

    def smaller(self, node: fx.Node, x: Any, y: Any) -> Value:
        """y - relu(y - x)."""
        return self._larger(node, x, y, -1)

    def _larger(self, node: fx.Node, x: Any, y: Any, sign: int) -> Value:
        shape, name = tuple(node.meta["val"].shape), name_of(node)
        inputs = [value for value in (x, y) if isinstance(value, Value)]

        def both(*values: Tensor) -> tuple[Any, Any]:
            left = iter(values)
            first = next(left) if isinstance(x, Value) else x
            return first, next(left) if isinstance(y, Value) else y

        def ahead(*values: Tensor) -> Tensor:
            first, second = both(*values)
            more: Tensor = sign * (first - second)
            return more

        def total(more: Tensor, *values: Tensor) -> Tensor:
            most: Tensor = both(*values)[1] + sign * more
            return most

        more = self._unary(self.affine(inputs, shape, ahead, name), "rectifier", name)
        return self.affine([more, *inputs], shape, total, name)

    def pooled(
        self,
        node: fx.Node,
        x: Value,
        size: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        *_: Any,
    ) -> Any:
        """The largest of each window, by a knockout: max(a, b) = b + relu(a - b)."""
        value, name = node.meta["val"], name_of(node)
        several = isinstance(value, list | tuple)
        shape = tuple((value[0] if several else value).shape)
        before = self.shape_of(x)
        places = windows(before[-2:], shape[-2:], size, stride, padding, dilation)
        places = places.to(self.image.device)
        flat = (*before[:-2], before[-2] * before[-1])
        x = self.affine([x], flat, lambda v: v.flatten(-2), name)
        columns = [places[:, column] for column in range(places.shape[1])]
        wide = (*flat[:-1], places.numel())
        x = self.affine([x], wide, lambda v: v[..., torch.cat(columns)], name)
        left, count = len(columns), len(places)
        while left > 1:
            x, left = self._round(x, left, count, name)
        result = self.affine([x], shape, lambda v: v.reshape(shape), name)
        return Parts(_first(result, name)) if several else result

    def _round(self, x: Value, left: int, count: int, name: str) -> tuple[Value, int]:
        """One round of a knockout among `left` groups of numbers, of `count` each."""
        half = left // 2
        lead = self.shape_of(x)[:-1]

        def compared(v: Tensor) -> Tensor:
            return v[..., : half * count] - v[..., half * count : 2 * half * count]

        def winners(v: Tensor, more: Tensor) -> Tensor:
            second, rest = v[..., half * count : 2 * half * count], v[..., 2 * half * count :]
            return torch.cat([second + more, rest], -1)

        def compared_without_signs(v: Tensor) -> Tensor:
            return v[..., : half * count] + v[..., half * count : 2 * half * count]

        ahead = self.affine([x], (*lead, half * count), compared, name, compared_without_signs)
        more = self._unary(ahead, "rectifier", name)
        after = left - half
        return self.affine([x, more], (*lead, after * count), winners, name), after

    def normalised(
        self,
        node: fx.Node,
        x: Value,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        *rest: Any,
    ) -> Any:
        """Batch norm in eval mode: each channel by its statistics."""
        shape, name, several = self.shape_of(x), name_of(node), node.meta["val"]
        eps = [value for value in rest if isinstance(value, float)][-1]
        scale = torch.rsqrt(variance + eps)
        scale = scale if weight is None else weight * scale
        shift = -mean * scale if bias is None else bias - mean * scale
        sides = (-1, *[1] * (len(shape) - 2))
        scale, shift = scale.view(sides), shift.view(sides)
        result = self.affine(
            [x], shape, lambda v: v * scale + shift, name, lambda v: v * scale.abs() + shift
        )
        return Parts(_first(result, name)) if isinstance(several, list | tuple) else result

    def batch_norm(
        self, node: fx.Node, x: Value, weight: Any, bias: Any, mean: Any, variance: Any,
        training: bool, *rest: Any,
    ) -> Any:  # fmt: skip
        if training or mean is None:
            raise ValueError("its batch norm keeps no running statistics")
        return self.normalised(node, x, weight, bias, mean, variance, *rest[:2])

    def power(self, node: fx.Node, x: Any, exponent: Any) -> Value:
        if exponent == 2:
            return self._unary(x, "square", name_of(node))
        if exponent == 0.5:
            return self._unary(x, "root", name_of(node))
        raise ValueError(f"its operation {name_of(node)} has an exponent other than 2 and 0.5")

    def square(self, node: fx.Node, x: Value) -> Value:
        return self._unary(x, "square", name_of(node))

    def root(self, node: fx.Node, x: Value) -> Value:
        return self._unary(x, "root", name_of(node))


# Of these, either argument may depend on the image, or both.
OF_TWO = {"maximum", "minimum"}

SPECIAL: dict[str, Callable[..., Any]] = {
    "relu": Writer.rectifier,
    "leaky_relu": Writer.leaky,
    "prelu": Writer.parametric,
    "_prelu_kernel": Writer.parametric,
    "clamp": Writer.clamp,
    "clamp_min": lambda reader, node, x, low: reader.clamp(node, x, low),
    "clamp_max": lambda reader, node, x, high: reader.clamp(node, x, None, high),
    "hardtanh": Writer.hard_tanh,
    "relu6": Writer.relu6,
    "abs": Writer.magnitude,
    "maximum": Writer.larger,
    "minimum": Writer.smaller,
    "max_pool2d": Writer.pooled,
    "max_pool2d_with_indices": Writer.pooled,
    "batch_norm": Writer.batch_norm,
    "_native_batch_norm_legit_no_training": Writer.normalised,
    "pow": Writer.power,
    "square": Writer.square,
    "sqrt": Writer.root,
}


def _first(result: Value, name: str) -> Callable[[int, Shape], Value]:
    """The first output of an operation, of which the others cannot be had."""

    def part(place: int, _: Shape) -> Value:
        if place:
            raise ValueError(f"it uses another output of {name} than the first")
        return result

    return part


def name_of(node: fx.Node) -> str:
    """The name of an operation, without its namespace and overload."""
    schema = getattr(node.target, "_schema", None)
    name = str(getattr(node.target, "__name__", node.target) if schema is None else schema.name)
    return name.rpartition("::")[2]
