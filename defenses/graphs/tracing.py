"""Reads what a network computes from its module, by torch.export, as a graph for bounds."""

import io
import logging
import operator
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from attacks.messages import one_line
from defenses.graphs.converted import exportable
from defenses.graphs.graph import Apply, Graph, Shape, Sliding
from defenses.graphs.nodes import OF_TWO, SPECIAL, Parts, Value, Writer, name_of
from defenses.graphs.operations import OF_SHAPE, absolute, is_affine

# What real numbers may be rounded to: what is proven is of real numbers, and judged in these.
_PRECISE = (torch.float32, torch.float64)

# Where torch's code lies, and ours; and how long a reason may be that torch gives.
_TORCH, _OURS = (str(Path(module).parent) for module in (torch.__file__, __file__))
_MOST = 200

# Names of what torch.export calls for the trace alone.
_CHECKS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_size"}


class Program:
    """What a module computes in eval mode from an image of `shape`.

    Raises ValueError, in one line, where torch.export cannot tell.
    """

    def __init__(self, model: nn.Module, shape: Shape) -> None:
        if isinstance(model, torch.jit.ScriptModule):
            raise ValueError("it is scripted, which cannot be read: give the module that it was")
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
                raise ValueError(f"what it computes cannot be traced: {_reason(error)}") from error
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
                reader.known[node] = held[names[node.name]] if node.name in names else Value(0)
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
                        f"its operation {name_of(node)} is not supported: {one_line(error)}"
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


class _Reader(Writer):
    """Makes nodes of the operations that depend on the image, and computes all others."""

    def __init__(self, image: Tensor) -> None:
        super().__init__(image)
        self.known: dict[fx.Node, Any] = {}

    def finished(self, node: fx.Node) -> Graph:
        """The graph, whose outputs an output node names."""
        outputs = [self.known[leaf] for leaf in pytree.tree_leaves(node.args)]
        if len(outputs) != 1 or not isinstance(outputs[0], Value):
            raise ValueError("it does not give one tensor that depends on the image")
        if outputs[0].number != len(self.nodes):
            self.affine([outputs[0]], self.shape_of(outputs[0]), lambda x: x.clone(), "clone")
        shape = self.shape_of(Value(len(self.nodes)))
        if len(shape) != 2 or shape[0] != 1:
            raise ValueError(f"it gives {tuple(shape[1:])} for an image, not logits")
        return Graph(tuple(self.image.shape), tuple(self.nodes))

    def read(self, node: fx.Node) -> None:
        """Read an operation."""
        args = pytree.tree_map_only(fx.Node, self.known.__getitem__, (node.args, node.kwargs))
        target: Any = node.target
        dynamic = [
            place
            for place, leaf in enumerate(pytree.tree_leaves(args))
            if isinstance(leaf, Value | Parts)
        ]
        name = name_of(node)
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
            self.known[node] = target(self.image.new_zeros(self.shape_of(first)), *given, **named)
            return
        given, named = args
        places = [
            place
            for place, value in enumerate((*given, *named.values()))
            if any(isinstance(leaf, Value | Parts) for leaf in pytree.tree_leaves(value))
        ]
        if name in SPECIAL:
            if places != [0] and name not in OF_TWO:
                raise ValueError(f"its operation {name} is not supported of several values")
            self.known[node] = SPECIAL[name](self, node, *given, **named)
            return
        self._read_affine(node, args, places)

    def _read_affine(self, node: fx.Node, args: Any, places: Sequence[int]) -> None:
        """Read an operation that is affine in its arguments at some places, unless it is not."""
        target: Any = node.target
        leaves, tree = pytree.tree_flatten(args)
        dynamic = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Value)]
        inputs, (given, named), name = [leaves[place] for place in dynamic], args, name_of(node)
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

        def part(place: int, shape: Shape) -> Value:
            return self.affine(
                inputs, shape, lambda *x: plain(*x)[place], name,
                lambda *x: without_signs(*x)[place],
            )  # fmt: skip

        sliding = _sliding(name, *given) if not named else None

        value = node.meta["val"]
        if isinstance(value, list | tuple):
            self.known[node] = Parts(part)
        else:
            shape = tuple(value.shape)
            self.known[node] = self.affine(inputs, shape, plain, name, without_signs, sliding)


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


def _in(image: Tensor, value: Any) -> Any:
    """A value on the device of an image and, if it is a tensor of real numbers, in its
    precision."""
    if not isinstance(value, Tensor):
        return value
    return value.to(image) if value.is_floating_point() else value.to(image.device)


def _same(value: Any) -> Any:
    return value


def _reason(error: Exception) -> str:
    """Why a network cannot be traced, in short, and where its code says so."""
    reason = one_line(error)
    if "data-dependent" in reason or "GuardOnDataDependent" in type(error).__name__:
        reason = "what it does next depends on the values of its image"
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_TORCH, _OURS, "<"))
    ]
    where = f", at {theirs[-1].filename}:{theirs[-1].lineno}" if theirs else ""
    return f"{reason[:_MOST]}{'...' if len(reason) > _MOST else ''}{where}"


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch.export warns of, logs and prints is of no use to users."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
