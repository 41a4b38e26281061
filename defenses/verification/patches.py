"""Bounds of units of convolutional networks, each of which sees a window of every map before it:
rows of bounds are kept for these windows alone (Xu et al. 2020, "Automatic Perturbation Analysis
for Scalable Certified Robustness and Beyond", appendix A.4, patches)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from defenses.graphs.graph import Affine, Graph, Unary
from defenses.verification.balls import Ball
from defenses.verification.lines import BOTH, ONE, Signs, Through, Units, rounding, through

# Operations that treat each entry by itself, where they keep the shape.
_POINTWISE = {
    "_native_batch_norm_legit_no_training", "_to_copy", "abs", "add", "alias", "batch_norm",
    "clamp", "clamp_max", "clamp_min", "clone", "contiguous", "detach", "div", "dropout",
    "hardtanh", "maximum", "minimum", "mul", "neg", "relu6", "rsub", "sub", "to",
}  # fmt: skip

# Convolutions of windows are done as a matrix of at most so many numbers: for many small windows
# that is faster.
_MATRIX = 2**20


@dataclass(frozen=True)
class _Window:
    """Where a unit at a position p of its map sees another map: `size` from stride * p + offset."""

    stride: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    def before(self, node: Affine) -> "_Window":
        """Where it sees the map before a convolution."""
        assert node.sliding is not None
        weight, strides, paddings = node.sliding
        kernel = weight.shape[2:]
        axes = range(2)
        return _Window(
            (self.stride[0] * strides[0], self.stride[1] * strides[1]),
            _pair(self.offset[i] * strides[i] - paddings[i] for i in axes),
            _pair((self.size[i] - 1) * strides[i] + kernel[i] for i in axes),
        )

    def joined(self, other: "_Window") -> "_Window":
        """The least window around two of one stride."""
        axes = range(2)
        start = _pair(min(self.offset[i], other.offset[i]) for i in axes)
        end = [max(w.offset[i] + w.size[i] for w in (self, other)) for i in axes]
        return replace(self, offset=start, size=_pair(end[i] - start[i] for i in axes))

    def widened(self, rows: Tensor, to: "_Window") -> Tensor:
        """Rows (..., h, w) for this window as rows for one that holds it."""
        padding = []
        for i in (1, 0):
            first = self.offset[i] - to.offset[i]
            padding += [first, to.size[i] - self.size[i] - first]
        return torch.nn.functional.pad(rows, padding) if any(padding) else rows


def _pair(numbers: Iterable[int]) -> tuple[int, int]:
    first, second = numbers
    return first, second


def windows_before(graph: Graph, start: int) -> dict[int, _Window] | None:
    """The windows that a unit of a node sees of each node that it depends on, itself included;
    None where it sees more than windows, or windows that are as large as the maps."""
    found = {start: _Window((1, 1), (0, 0), (1, 1))}
    for number in range(start, -1, -1):
        if number not in found:
            continue
        window, shape = found[number], graph.shape_of(number)
        if len(shape) != 4 or shape[0] != 1:
            return None
        if window.size[0] * window.size[1] > shape[2] * shape[3]:
            return None
        if not number:
            break
        node = graph.nodes[number - 1]
        if isinstance(node, Affine) and node.sliding is not None:
            window = window.before(node)
        elif isinstance(node, Affine) and not (
            node.name in _POINTWISE and all(s == node.shape for s in node.input_shapes)
        ):
            return None
        for before in node.inputs:
            if before in found and found[before].stride != window.stride:
                return None
            found[before] = found[before].joined(window) if before in found else window
    return found


class Patches:
    """Bounds of units of a node, over the balls around n images.

    known    what is known of the nodes before it.
    windows  by `windows_before`.
    """

    def __init__(self, known: Units, start: int, windows: dict[int, _Window]) -> None:
        self.known, self.start, self.windows = known, start, windows
        shapes = (known.graph.shape_of(number) for number in windows)
        sizes = (w.size[0] * w.size[1] for w in windows.values())
        # How many numbers the rows of a unit have at most.
        self.widest = max(shape[1] * size for shape, size in zip(shapes, sizes, strict=True))

    def bound(self, places: Tensor) -> Tensor:
        """Lower bounds (n, 2 m) of the units of each image that `places` (n, m) number within the
        flattened map, and of their opposites."""
        _, channels, height, width = self.known.graph.shape_of(self.start)
        channel, position = places // (height * width), places % (height * width)
        walk = _Walk(self, position)
        one = torch.nn.functional.one_hot(channel, channels).to(self.known.ball.x.dtype)
        if self.known.are_parallel:
            both = walk.run(one[:, None, ..., None, None], BOTH)
        else:
            both = walk.run(torch.stack([one, -one], 1)[..., None, None], ONE)
        return torch.cat(both, 1).flatten(1)


class _Walk:
    """Rows (n, s, m, channels, h, w) on their way back through windows: of m units, and where s is
    2, of these with the opposite sign."""

    def __init__(self, patches: Patches, places: Tensor) -> None:
        self.known, self.start, self.windows = patches.known, patches.start, patches.windows
        self.places = places

    def run(self, rows: Tensor, signs: Signs) -> list[Tensor]:
        """Lower bounds (n, s, m) for each sign."""
        known = self.known
        at = {self.start: rows}
        total = [rows.new_zeros(rows.shape[:3]) for _ in signs]
        for number in range(self.start, 0, -1):
            if number not in at:
                continue
            here, node = at.pop(number), known.graph.nodes[number - 1]
            parts: Sequence[Tensor]
            if isinstance(node, Unary):
                here, added = self._through(number, here, signs)
                parts = [here]
            else:
                offset = _sum(here * self._of(node.offset[None], number))
                slack: Tensor | float = 0.0
                if number in known.sizes:
                    sizes = self._of(known.sizes[number], number)
                    terms = here[0, 0, 0].numel()
                    slack = rounding(here, terms) * _sum(here.detach().abs() * sizes)
                added = [sign * offset - slack for sign in signs]
                parts = self._before(node, number, here)
            total = [one + more for one, more in zip(total, added, strict=True)]
            for place, part in zip(node.inputs, parts, strict=True):
                at[place] = at[place] + part if place in at else part
        if 0 not in at:
            return total
        return [one + self._least(sign * at[0]) for one, sign in zip(total, signs, strict=True)]

    def _before(self, node: Affine, number: int, rows: Tensor) -> Sequence[Tensor]:
        """Rows at the inputs of an affine node."""
        window = self.windows[number]
        if node.sliding is None:
            ones = rows.new_ones(1, *node.shape)
            moved = [rows * self._of(part, number) for part in node.backward(ones)]
        else:
            if number != self.start:
                # What lies beyond the map was the padding of a later one.
                inside = rows.new_ones(1, 1, 1, *node.shape[2:])
                rows = rows * self._of(inside, number)
            moved, window = [_transposed(node, rows)], window.before(node)
        return [
            window.widened(part, self.windows[before])
            for before, part in zip(node.inputs, moved, strict=True)
        ]

    def _through(self, number: int, rows: Tensor, signs: Signs) -> Through:
        """Rows at the input of a function of one number, and what its lines add (n, s, m)."""
        line = self.known.lines[number]
        lower, below, above = (
            self._of(part, number) for part in (line.lower, line.below, line.above)
        )
        upper = lower if line.lower is line.upper else self._of(line.upper, number)
        return through(rows, (lower, upper, below, above), 3, signs)

    def _least(self, rows: Tensor) -> Tensor:
        """The least of rows times the images (n, s, m)."""
        ball = self.known.ball
        n, s, m = rows.shape[:3]
        x, low, high = (
            self._of(values, 0).flatten(0, 2) for values in (ball.x, ball.low, ball.high)
        )
        least = Ball(x, ball.eps, ball.norm, low, high).least(rows.transpose(1, 2).flatten(0, 1))
        return least.view(n, m, s).transpose(1, 2)

    def _of(self, values: Tensor, number: int) -> Tensor:
        """The windows (n, 1, m, channels, h, w) of a map of a node, (n or 1, 1, channels, H, W),
        with zeros beyond it."""
        window, (height, width) = self.windows[number], values.shape[3:]
        units = self.known.graph.shape_of(self.start)[2:]
        padding = []
        for i, length in ((1, width), (0, height)):
            end = (units[i] - 1) * window.stride[i] + window.offset[i] + window.size[i]
            padding += [-window.offset[i], end - length]
        maps = torch.nn.functional.pad(values[:, 0], padding)
        slid = torch.nn.functional.unfold(maps, window.size, stride=window.stride).transpose(1, 2)
        count = slid.shape[1]
        first = torch.arange(len(self.places), device=maps.device) * count * (len(values) > 1)
        chosen = (first[:, None] + self.places).flatten()
        rows = slid.reshape(-1, slid.shape[2]).index_select(0, chosen)
        return rows.view(len(self.places), 1, -1, maps.shape[1], *window.size)


def _transposed(node: Affine, rows: Tensor) -> Tensor:
    """The transpose of a convolution, of rows (n, s, m, channels, h, w)."""
    assert node.sliding is not None
    weight, strides, _ = node.sliding
    shape = rows.shape[3:]
    after = [
        (side - 1) * step + kernel
        for side, step, kernel in zip(shape[1:], strides, weight.shape[2:], strict=True)
    ]
    entries, flat = shape.numel(), rows.flatten(0, 2)
    if entries * weight.shape[1] * after[0] * after[1] > _MATRIX:
        pulled = torch.conv_transpose2d(flat, weight, stride=list(strides))
    else:
        units = torch.eye(entries, dtype=rows.dtype, device=rows.device).view(-1, *shape)
        matrix = torch.conv_transpose2d(units, weight, stride=list(strides))
        pulled = (flat.flatten(1) @ matrix.flatten(1)).unflatten(1, matrix.shape[1:])
    moved: Tensor = pulled.unflatten(0, rows.shape[:3])
    return moved


def _sum(values: Tensor) -> Tensor:
    return values.flatten(3).sum(3)
