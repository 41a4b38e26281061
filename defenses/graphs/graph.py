"""Networks as bounds are propagated through them: affine maps, and functions of one number each.

Tensors of a node have a leading dimension, over images or over rows of bounds, before the `shape`
that the node has for one image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

Shape = tuple[int, ...]

# How far a trial may be off by rounding.
_TOLERANCE = 1e-9

# An operation on the tensors of one image.
Apply = Callable[..., Tensor]

# The weight (outputs, inputs, h, w) of a convolution in two dimensions, its strides and paddings.
Sliding = tuple[Tensor, tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Affine:
    """A map of some earlier nodes that is affine in all of them together: sum_i J_i x_i + offset.

    inputs     the numbers of those nodes, and `inputs_shapes` what they give.
    shape      of what it gives.
    apply      the map, of the tensors of one image.
    absolute   the same with |J_i| in place of J_i, up to an offset.
    name       what errors call it.
    sliding    of a convolution without groups and dilation.
    """

    inputs: tuple[int, ...]
    input_shapes: tuple[Shape, ...]
    shape: Shape
    apply: Apply
    absolute: Apply
    name: str
    like: Tensor = field(repr=False)
    sliding: Sliding | None = field(default=None, repr=False)

    @cached_property
    def _zeros(self) -> list[Tensor]:
        return [self.like.new_zeros(shape) for shape in self.input_shapes]

    @cached_property
    def offset(self) -> Tensor:
        """What it gives for zeros: a tensor of `shape`."""
        return self.apply(*self._zeros)

    def forward(self, values: Sequence[Tensor]) -> Tensor:
        """The map of tensors (n, *shape_i): (n, *shape)."""
        return vmap(self.apply)(*values)

    def radius(self, radii: Sequence[Tensor]) -> Tensor:
        """How far outputs move where inputs move by up to some numbers (n, *shape_i), at least 0:
        (n, *shape)."""
        moved = torch.zeros(())
        for place, radius in enumerate(radii):

            def alone(values: Tensor, place: int = place) -> Tensor:
                inputs = [values if i == place else zero for i, zero in enumerate(self._zeros)]
                return self.absolute(*inputs)

            moved = moved + (vmap(alone)(radius) - self.absolute(*self._zeros)).abs()
        return moved

    def backward(self, rows: Tensor) -> tuple[Tensor, ...]:
        """J_iᵀ of rows (m, *shape): (m, *shape_i) for each input."""
        return _pulled(self.apply, self._zeros, rows)


@dataclass(frozen=True, eq=False)
class Unary:
    """A function of one number, of each entry of an earlier node.

    kind   "rectifier", max(z, slope z) with slope in [0, 1]; "square"; or "root".
    slope  of a rectifier, a number or a tensor that fits `shape`.
    """

    inputs: tuple[int]
    shape: Shape
    kind: str
    slope: Any = 0.0
    name: str = ""

    def forward(self, values: Sequence[Tensor]) -> Tensor:
        (z,) = values
        if self.kind == "rectifier":
            return torch.maximum(z, self.slope * z)
        return z.square() if self.kind == "square" else z.sqrt()


Node = Affine | Unary


@dataclass(frozen=True, eq=False)
class Graph:
    """A network: node 0 is the image of `shape`, and `nodes` are numbered from 1, in an order in
    which each comes after its inputs. The last one gives the logits."""

    shape: Shape
    nodes: tuple[Node, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its weights."""
        return next(node.like.dtype for node in self.nodes if isinstance(node, Affine))

    def check(self) -> None:
        """Raises ValueError, in one line, for a map that is not affine, as far as a trial tells:
        what bounds say of it would be wrong."""
        generator = torch.Generator().manual_seed(0)
        for node in self.nodes:
            if not isinstance(node, Affine):
                continue
            first, second = (
                [
                    torch.randn(shape, generator=generator, dtype=torch.float64).to(node.like)
                    for shape in node.input_shapes
                ]
                for _ in range(2)
            )
            both = [a + 2 * b for a, b in zip(first, second, strict=True)]
            left = node.apply(*both) - node.offset
            right = node.apply(*first) + 2 * node.apply(*second) - 3 * node.offset
            # Rounding of a large offset, as one that masks a class, is of its own output alone.
            rounded = 64 * torch.finfo(right.dtype).eps * node.offset.abs()
            allowed = _TOLERANCE * (1 + right.abs().max()) + rounded
            if not bool(((left - right).abs() <= allowed).all()):
                raise ValueError(f"its operation {node.name} is not supported: it is not affine")

    def shape_of(self, number: int) -> Shape:
        """The shape of a node."""
        return self.nodes[number - 1].shape if number else self.shape

    def forward(self, x: Tensor) -> list[Tensor]:
        """What every node gives for images x (n, *shape), and they themselves first."""
        values = [x]
        for node in self.nodes:
            values.append(node.forward([values[i] for i in node.inputs]))
        return values


def _pulled(apply: Apply, zeros: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
    """The transpose of a map's linear part, at rows (m, *shape)."""
    pull: Any = vjp(apply, *zeros)[1]
    pulled: tuple[Tensor, ...] = vmap(pull)(rows)
    return pulled
