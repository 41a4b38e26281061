"""Reads what a network computes from its module, by torch.export, as a graph for bounds."""

import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from attacks.messages import one_line
from defenses.verification.converted import exportable
from defenses.verification.graph import Affine, Apply, Graph, Node, Shape, Sliding, Unary
from defenses.verification.operations import OF_SHAPE, absolute, is_affine, windows

# Names of what torch.export calls for the trace alone.
_CHECKS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_size"}


class Program:
    """What a module computes in eval mode from an image of `shape`.

    Raises ValueError, in one line, where torch.export cannot tell.
    """

    def __init__(self, model: nn.Module, shape: Shape) -> None:
        tensors = (*model.parameters(), *model.buffers())
        reference = next(filter(Tensor.is_floating_point, tensors), torch.empty(0))
        image = torch.zeros(1, *shape, dtype=reference.dtype)
        with _quiet():
            try:
                # Of a copy: an export may leave in a module what it made of it.
                network = exportable(model, image).eval().requires_grad_(False)
                self._exported: ExportedProgram = torch.export.export(
                    network, (image,), strict=False
                ).run_decompositions({})
            except Exception as error:
                raise ValueError(f"what it computes cannot be traced: {one_line(error)}") from error
        # It is traced on the CPU, and has its constants where the module has its weights.
        self._image = image.to(reference.device)

    def graph(self, weights: nn.Module | None = None, dtype: torch.dtype | None = None) -> Graph:
        """The graph, with the parameters and buffers of the module that was read, as they were
        then, or of another of its kind, as they are and with their gradients; in another precision
        than the module's where `dtype` names one.

        Raises ValueError, in one line, for an operation that bounds cannot pass.
        """
        signature = self._exported.graph_signature
        held: dict[str, Any] = dict(self._exported.state_dict) | dict(self._exported.constants)
        if weights is not None:
            held |= dict(weights.named_parameters(remove_duplicate=False))
            held |= dict(weights.named_buffers(remove_duplicate=False))
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        image = self._image if dtype is None else self._image.to(dtype)
        held = {name: _in(image, value) for name, value in held.items()}
        reader = _Reader(image)
        for node in self._exported.graph.nodes:
            if node.op == "placeholder":
                reader.known[node] = held[names[node.name]] if node.name in names else _Value(0)
            elif node.op == "get_attr":
                held_here = operator.attrgetter(node.target)(self._exported.graph_module)
                reader.known[node] = _in(image, held_here)
            elif node.op == "call_function":
                try:
                    reader.read(node)
                except ValueError:
                    raise
                except Exception as error:  # operations are given what they may not expect
                    raise ValueError(
                        f"its operation {_name(node)} is not supported: {one_line(error)}"
                    ) from error
            else:
                return reader.finished(node)
        raise ValueError("it gives nothing")


def read_graph(model: nn.Module, shape: Shape) -> Graph:
    """The graph of what a model computes in eval mode from images of `shape`, in its precision.

    It may consist of linear and convolutional layers, batch norm, ReLU, leaky ReLU, PReLU, clamps
    and their like, average and max pooling, norms of pairs and windows, sums, and all that only
    moves numbers about. Raises ValueError, in one line, for any other operation.
    """
    return Program(model, shape).graph()


@dataclass(frozen=True)
class _Value:
    """The number of a node of the graph, where a constant might be."""

    number: int


class _Parts:
    """The outputs of an operation that has several, of which each is a node where it is used."""

    def __init__(self, part: Callable[[int, Shape], _Value]) -> None:
        self.part = part


class _Reader:
    """Makes nodes of the operations that depend on the image, and computes all others."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.known: dict[fx.Node, Any] = {}
        self._nodes: list[Node] = []

    def finished(self, node: fx.Node) -> Graph:
        """The graph, whose outputs an output node names."""
        outputs = [self.known[leaf] for leaf in pytree.tree_leaves(node.args)]
        if len(outputs) != 1 or not isinstance(outputs[0], _Value):
            raise ValueError("it does not give one tensor that depends on the image")
        if outputs[0].number != len(self._nodes):
            self._affine([outputs[0]], self._shape(outputs[0]), lambda x: x.clone(), "clone")
        shape = self._shape(_Value(len(self._nodes)))
        if len(shape) != 2 or shape[0] != 1:
            raise ValueError(f"it gives {tuple(shape[1:])} for an image, not logits")
        return Graph(tuple(self.image.shape), tuple(self._nodes))

    def read(self, node: fx.Node) -> None:
        """Read an operation."""
        args = pytree.tree_map_only(fx.Node, self.known.__getitem__, (node.args, node.kwargs))
        target: Any = node.target
        dynamic = [
            place
            for place, leaf in enumerate(pytree.tree_leaves(args))
            if isinstance(leaf, _Value | _Parts)
        ]
        name = _name(node)
        if name in _CHECKS:
            return
        is_random = torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
        # Dropout in eval mode does not.
        if is_random and not (name in ("dropout", "feature_dropout") and args[0][2] is False):
            raise ValueError(f"its operation {name} draws at random")
        if not dynamic:
            given, named = args
            self.known[node] = _in(self.image, target(*given, **named))
            return
        if node.target is operator.getitem:
            (parts, place), _ = args
            self.known[node] = parts.part(place, tuple(node.meta["val"].shape))
            return
        if name in OF_SHAPE and dynamic == [0]:
            (first, *given), named = args
            self.known[node] = target(self.image.new_zeros(self._shape(first)), *given, **named)
            return
        given, named = args
        places = [
            place
            for place, value in enumerate((*given, *named.values()))
            if any(isinstance(leaf, _Value | _Parts) for leaf in pytree.tree_leaves(value))
        ]
        if name in _SPECIAL:
            if places != [0] and name not in _OF_TWO:
                raise ValueError(f"its operation {name} is not supported of several values")
            self.known[node] = _SPECIAL[name](self, node, *given, **named)
            return
        self._read_affine(node, args, places)

    def _read_affine(self, node: fx.Node, args: Any, places: Sequence[int]) -> None:
        """Read an operation that is affine in its arguments at some places, unless it is not."""
        target: Any = node.target
        leaves, tree = pytree.tree_flatten(args)
        dynamic = [place for place, leaf in enumerate(leaves) if isinstance(leaf, _Value)]
        inputs, (given, named), name = [leaves[place] for place in dynamic], args, _name(node)
        if not is_affine(name, places) or (name == "einsum" and len(dynamic) > 1):
            raise ValueError(f"its operation {name} is not supported")
        if named.get("rounding_mode") is not None:
            raise ValueError(f"its operation {name} rounds")
        if name in ("_to_copy", "to") and node.meta["val"].dtype not in _PRECISE:
            raise ValueError(f"it rounds numbers to {str(node.meta['val'].dtype)[6:]}")

        def applied(change: Callable[[Any], Any], *values: Tensor) -> Any:
            full = [change(leaf) for leaf in leaves]
            for place, value in zip(dynamic, values, strict=True):
                full[place] = value
            given, named = pytree.tree_unflatten(full, tree)
            return target(*given, **named)

        plain: Apply = partial(applied, _same)
        without_signs: Apply = partial(applied, absolute)
        if name in ("_to_copy", "to"):  # of real numbers there is one kind
            plain = without_signs = _same

        def part(place: int, shape: Shape) -> _Value:
            return self._affine(
                inputs, shape, lambda *x: plain(*x)[place], name,
                lambda *x: without_signs(*x)[place],
            )  # fmt: skip

        sliding = _sliding(name, *given) if not named else None

        value = node.meta["val"]
        if isinstance(value, list | tuple):
            self.known[node] = _Parts(part)
        else:
            shape = tuple(value.shape)
            self.known[node] = self._affine(inputs, shape, plain, name, without_signs, sliding)

    def _shape(self, value: _Value) -> Shape:
        number = value.number
        return tuple(self._nodes[number - 1].shape if number else self.image.shape)

    def _affine(
        self,
        inputs: Sequence[_Value],
        shape: Shape,
        apply: Apply,
        name: str,
        without_signs: Apply | None = None,
        sliding: Sliding | None = None,
    ) -> _Value:
        shapes = tuple(map(self._shape, inputs))
        numbers = tuple(value.number for value in inputs)
        without_signs = without_signs or apply
        self._nodes.append(
            Affine(numbers, shapes, shape, apply, without_signs, name, self.image, sliding)
        )
        return _Value(len(self._nodes))

    def _unary(self, value: _Value, kind: str, name: str, slope: Any = 0.0) -> _Value:
        self._nodes.append(Unary((value.number,), self._shape(value), kind, slope, name))
        return _Value(len(self._nodes))

    def rectifier(self, node: fx.Node, x: _Value, slope: Any = 0.0, *_: Any) -> _Value:
        """max(x, slope x)."""
        if not bool(((torch.as_tensor(slope) >= 0) & (torch.as_tensor(slope) <= 1)).all()):
            raise ValueError(f"the slope of its {_name(node)} must lie in [0, 1]")
        return self._unary(x, "rectifier", _name(node), slope)

    def leaky(self, node: fx.Node, x: _Value, slope: float = 0.01) -> _Value:
        return self.rectifier(node, x, slope)

    def parametric(self, node: fx.Node, x: _Value, slope: Tensor) -> _Value:
        sides = [1] * (len(self._shape(x)) - 2)
        return self.rectifier(node, x, slope.view(-1, *sides))

    def clamp(self, node: fx.Node, x: _Value, low: Any = None, high: Any = None) -> _Value:
        """low + relu(x - low) - relu(x - high), as far as there are bounds."""
        shape, name = tuple(node.meta["val"].shape), _name(node)
        if low is not None:
            above = self._affine([x], shape, lambda v: v - low, name)
            x = self._unary(above, "rectifier", name)
            x = self._affine([x], shape, lambda v: v + low, name)
        if high is not None:
            below = self._affine([x], shape, lambda v: high - v, name)
            left = self._unary(below, "rectifier", name)
            x = self._affine([left], shape, lambda v: high - v, name)
        return x

    def hard_tanh(self, node: fx.Node, x: _Value, low: float = -1, high: float = 1) -> _Value:
        return self.clamp(node, x, low, high)

    def relu6(self, node: fx.Node, x: _Value) -> _Value:
        return self.clamp(node, x, 0, 6)

    def magnitude(self, node: fx.Node, x: _Value) -> _Value:
        """relu(x) + relu(-x)."""
        shape, name = self._shape(x), _name(node)
        above = self._unary(x, "rectifier", name)
        negative = self._affine([x], shape, lambda v: -v, name)
        below = self._unary(negative, "rectifier", name)
        return self._affine([above, below], shape, lambda a, b: a + b, name)

    def larger(self, node: fx.Node, x: Any, y: Any) -> _Value:
        """y + relu(x - y)."""
        return self._larger(node, x, y, 1)

    def smaller(self, node: fx.Node, x: Any, y: Any) -> _Value:
        """y - relu(y - x)."""
        return self._larger(node, x, y, -1)

    def _larger(self, node: fx.Node, x: Any, y: Any, sign: int) -> _Value:
        shape, name = tuple(node.meta["val"].shape), _name(node)
        inputs = [value for value in (x, y) if isinstance(value, _Value)]

        def both(*values: Tensor) -> tuple[Any, Any]:
            left = iter(values)
            first = next(left) if isinstance(x, _Value) else x
            return first, next(left) if isinstance(y, _Value) else y

        def ahead(*values: Tensor) -> Tensor:
            first, second = both(*values)
            more: Tensor = sign * (first - second)
            return more

        def total(more: Tensor, *values: Tensor) -> Tensor:
            most: Tensor = both(*values)[1] + sign * more
            return most

        more = self._unary(self._affine(inputs, shape, ahead, name), "rectifier", name)
        return self._affine([more, *inputs], shape, total, name)

    def pooled(
        self,
        node: fx.Node,
        x: _Value,
        size: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        *_: Any,
    ) -> Any:
        """The largest of each window, by a knockout: max(a, b) = b + relu(a - b)."""
        value, name = node.meta["val"], _name(node)
        several = isinstance(value, list | tuple)
        shape = tuple((value[0] if several else value).shape)
        before = self._shape(x)
        places = windows(before[-2:], shape[-2:], size, stride, padding, dilation)
        places = places.to(self.image.device)
        flat = (*before[:-2], before[-2] * before[-1])
        x = self._affine([x], flat, lambda v: v.flatten(-2), name)
        columns = [places[:, column] for column in range(places.shape[1])]
        wide = (*flat[:-1], places.numel())
        x = self._affine([x], wide, lambda v: v[..., torch.cat(columns)], name)
        left, count = len(columns), len(places)
        while left > 1:
            x, left = self._round(x, left, count, name)
        result = self._affine([x], shape, lambda v: v.reshape(shape), name)
        return _Parts(_first(result, name)) if several else result

    def _round(self, x: _Value, left: int, count: int, name: str) -> tuple[_Value, int]:
        """One round of a knockout among `left` groups of numbers, of `count` each."""
        half = left // 2
        lead = self._shape(x)[:-1]

        def compared(v: Tensor) -> Tensor:
            return v[..., : half * count] - v[..., half * count : 2 * half * count]

        def winners(v: Tensor, more: Tensor) -> Tensor:
            second, rest = v[..., half * count : 2 * half * count], v[..., 2 * half * count :]
            return torch.cat([second + more, rest], -1)

        def compared_without_signs(v: Tensor) -> Tensor:
            return v[..., : half * count] + v[..., half * count : 2 * half * count]

        ahead = self._affine([x], (*lead, half * count), compared, name, compared_without_signs)
        more = self._unary(ahead, "rectifier", name)
        after = left - half
        return self._affine([x, more], (*lead, after * count), winners, name), after

    def normalised(
        self,
        node: fx.Node,
        x: _Value,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        *rest: Any,
    ) -> Any:
        """Batch norm in eval mode: each channel by its statistics."""
        shape, name, several = self._shape(x), _name(node), node.meta["val"]
        eps = [value for value in rest if isinstance(value, float)][-1]
        scale = torch.rsqrt(variance + eps)
        scale = scale if weight is None else weight * scale
        shift = -mean * scale if bias is None else bias - mean * scale
        sides = (-1, *[1] * (len(shape) - 2))
        scale, shift = scale.view(sides), shift.view(sides)
        result = self._affine(
            [x], shape, lambda v: v * scale + shift, name, lambda v: v * scale.abs() + shift
        )
        return _Parts(_first(result, name)) if isinstance(several, list | tuple) else result

    def batch_norm(
        self, node: fx.Node, x: _Value, weight: Any, bias: Any, mean: Any, variance: Any,
        training: bool, *rest: Any,
    ) -> Any:  # fmt: skip
        if training or mean is None:
            raise ValueError("its batch norm keeps no running statistics")
        return self.normalised(node, x, weight, bias, mean, variance, *rest[:2])

    def power(self, node: fx.Node, x: Any, exponent: Any) -> _Value:
        if exponent == 2:
            return self._unary(x, "square", _name(node))
        if exponent == 0.5:
            return self._unary(x, "root", _name(node))
        raise ValueError(f"its operation {_name(node)} has an exponent other than 2 and 0.5")

    def square(self, node: fx.Node, x: _Value) -> _Value:
        return self._unary(x, "square", _name(node))

    def root(self, node: fx.Node, x: _Value) -> _Value:
        return self._unary(x, "root", _name(node))


# Of these, either argument may depend on the image, or both.
_OF_TWO = {"maximum", "minimum"}

# What real numbers may be rounded to: what is proven is of real numbers, and judged in these.
_PRECISE = (torch.float32, torch.float64)

_SPECIAL: dict[str, Callable[..., Any]] = {
    "relu": _Reader.rectifier,
    "leaky_relu": _Reader.leaky,
    "prelu": _Reader.parametric,
    "_prelu_kernel": _Reader.parametric,
    "clamp": _Reader.clamp,
    "clamp_min": lambda reader, node, x, low: reader.clamp(node, x, low),
    "clamp_max": lambda reader, node, x, high: reader.clamp(node, x, None, high),
    "hardtanh": _Reader.hard_tanh,
    "relu6": _Reader.relu6,
    "abs": _Reader.magnitude,
    "maximum": _Reader.larger,
    "minimum": _Reader.smaller,
    "max_pool2d": _Reader.pooled,
    "max_pool2d_with_indices": _Reader.pooled,
    "batch_norm": _Reader.batch_norm,
    "_native_batch_norm_legit_no_training": _Reader.normalised,
    "pow": _Reader.power,
    "square": _Reader.square,
    "sqrt": _Reader.root,
}


def _sliding(name: str, *args: Any) -> Sliding | None:
    """What a convolution's arguments say, of one in two dimensions without groups and dilation."""
    if name not in ("convolution", "conv2d"):
        return None
    full: Any = (*args, *_CONV2D[len(args) :])
    _, weight, _, strides, paddings, dilations, *rest = full
    plain = rest in ([1], [False, [0, 0], 1]) and set(dilations) == {1}
    if not plain or not isinstance(weight, Tensor) or weight.ndim != 4 or paddings == "same":
        return None
    return weight, (strides[0], strides[-1]), (paddings[0], paddings[-1])


# What the arguments of a convolution are where they are not given.
_CONV2D = (None, None, None, (1, 1), (0, 0), (1, 1), 1)


def _first(result: _Value, name: str) -> Callable[[int, Shape], _Value]:
    """The first output of an operation, of which the others cannot be had."""

    def part(place: int, _: Shape) -> _Value:
        if place:
            raise ValueError(f"it uses another output of {name} than the first")
        return result

    return part


def _in(image: Tensor, value: Any) -> Any:
    """A value on the device of an image and, if it is a tensor of real numbers, in its
    precision."""
    if not isinstance(value, Tensor):
        return value
    return value.to(image) if value.is_floating_point() else value.to(image.device)


def _same(value: Any) -> Any:
    return value


def _name(node: fx.Node) -> str:
    """The name of an operation, without its namespace and overload."""
    schema = getattr(node.target, "_schema", None)
    name = str(getattr(node.target, "__name__", node.target) if schema is None else schema.name)
    return name.rpartition("::")[2]


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch.export warns of is of no use to users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
