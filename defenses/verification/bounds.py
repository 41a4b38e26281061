"""Bounds on what a network gives over a ball: intervals, and linear bounds that are propagated
backwards (CROWN, DeepPoly, and the dual of the linear-programming relaxation, which are one
algorithm with different lower lines).

All of it is batched tensor code, differentiable, on any device. In float64 the bounds are proven:
what rounding may amount to is added up beside them (see `_Rows.slack`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from defenses.verification.balls import Ball
from defenses.verification.graph import Affine, Graph, Unary
from defenses.verification.lines import Choice, Lines, lines

# How many numbers the rows of bounds may have that are propagated at once.
_NUMBERS = 2**24

# Operations of which a chain of two makes intervals looser than the map that they are together.
_MIXING = {
    "linear", "conv1d", "conv2d", "conv3d", "convolution", "matmul", "mm", "bmm", "addmm",
    "baddbmm", "mean", "sum", "avg_pool2d", "adaptive_avg_pool2d", "cumsum",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Units:
    """What is known of a network over the balls around n images.

    graph, ball  that it is known of.
    low, high    of every node, by number: (n, *shape).
    sizes        of every affine node, by number: what the terms of its outputs may add up to.
    lines        of every function of one number, by its node.
    """

    graph: Graph
    ball: Ball
    low: Mapping[int, Tensor]
    high: Mapping[int, Tensor]
    sizes: Mapping[int, Tensor]
    lines: Mapping[int, Lines]

    def __getitem__(self, rows: Tensor | slice) -> "Units":
        """What is known for some of the images."""
        return Units(
            self.graph, self.ball[rows],
            {number: low[rows] for number, low in self.low.items()},
            {number: high[rows] for number, high in self.high.items()},
            {number: size[rows] for number, size in self.sizes.items()},
            {number: _chosen(line, rows) for number, line in self.lines.items()},
        )  # fmt: skip


def _chosen(line: Lines, rows: Tensor | slice) -> Lines:
    return replace(
        line, low=line.low[rows], high=line.high[rows], lower=line.lower[rows],
        below=line.below[rows], upper=line.upper[rows], above=line.above[rows],
        unstable=line.unstable[rows],
    )  # fmt: skip


def bound_units(graph: Graph, ball: Ball, choice: Choice = "area", refined: bool = True) -> Units:
    """Bound every node of a network over the balls around images.

    Intervals come first (Gowal et al. 2018). Where `refined`, the inputs of rectifiers that these
    leave unstable, and of other functions, are bounded again by linear bounds (Zhang et al. 2018,
    CROWN, section 3; Wong and Kolter 2018, section 3.3), and both hold.
    """
    low, high = {0: ball.low}, {0: ball.high}
    sizes: dict[int, Tensor] = {}
    units = Units(graph, ball, low, high, sizes, {})
    found: dict[int, Lines] = {}
    # How many mixing maps lead to a node, of which one leaves intervals exact.
    mixed, bent = {0: 0}, {0: False}
    for number, node in enumerate(graph.nodes, 1):
        mixed[number] = sum(mixed[i] for i in node.inputs)
        bent[number] = isinstance(node, Unary) or any(bent[i] for i in node.inputs)
        if isinstance(node, Affine):
            mixed[number] += node.name in _MIXING
            low[number], high[number], sizes[number] = _interval(node, low, high)
            continue
        (before,) = node.inputs
        exact = ball.norm == "linf" and mixed[before] <= 1 and not bent[before]
        if refined and not exact:
            units = replace(units, lines=dict(found))
            low[before], high[before] = _refined(units, node, before)
        found[number] = lines(node, low[before], high[before], choice)
        low[number] = node.forward([_least(node, low[before], high[before])])
        high[number] = node.forward([_most(node, low[before], high[before])])
    return replace(units, lines=found)


def _least(node: Unary, low: Tensor, high: Tensor) -> Tensor:
    """Where in an interval a function is least."""
    return torch.zeros_like(low).clamp(low, high) if node.kind == "square" else low


def _most(node: Unary, low: Tensor, high: Tensor) -> Tensor:
    """Where in an interval a function is largest."""
    return torch.maximum(-low, high) if node.kind == "square" else high


def _interval(
    node: Affine, low: Mapping[int, Tensor], high: Mapping[int, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The least and the most that a node gives, and what the terms of it may add up to."""
    middle = [(low[i] + high[i]) / 2 for i in node.inputs]
    radii = [(high[i] - low[i]) / 2 for i in node.inputs]
    centre, radius = node.forward(middle), node.radius(radii)
    sizes = [torch.maximum(low[i].abs(), high[i].abs()) for i in node.inputs]
    size = node.radius(sizes) + node.offset.abs()
    count = sum(math.prod(shape) for shape in node.input_shapes)
    slack = _unit(size, count) * size
    return centre - radius - slack, centre + radius + slack, size


def _refined(units: Units, node: Unary, before: int) -> tuple[Tensor, Tensor]:
    """Bounds of the inputs of a node that are no wider than those that are known."""
    low, high = units.low[before], units.high[before]
    loose = torch.ones_like(low, dtype=torch.bool)
    if node.kind == "rectifier":
        slope = torch.as_tensor(node.slope, dtype=low.dtype, device=low.device)
        loose = (low < 0) & (high > 0) & (slope < 1)
    flat = loose.flatten(1)
    most = int(flat.sum(1).amax()) if len(flat) else 0
    if not most:
        return low, high
    # For each image its own entries, and others as far as it has fewer.
    places = flat.to(torch.int8).topk(most, 1).indices
    least, largest = low.flatten(1), high.flatten(1)
    for part in places.split(max(1, _NUMBERS // (2 * len(low) * _widest(units.graph))), 1):
        rows = torch.nn.functional.one_hot(part, flat.shape[1]).to(low.dtype)
        rows = rows.view(*part.shape, *low.shape[1:])
        both = lower_bounds(units, before, torch.cat([rows, -rows], 1))
        first, second = both.split(part.shape[1], 1)
        least = least.scatter(1, part, torch.maximum(first, least.gather(1, part)))
        largest = largest.scatter(1, part, torch.minimum(-second, largest.gather(1, part)))
    # Rounding may leave them the other way round.
    least, largest = torch.minimum(least, largest), torch.maximum(least, largest)
    return least.view_as(low), largest.view_as(high)


def _widest(graph: Graph) -> int:
    return max(math.prod(node.shape) for node in graph.nodes)


# What is done to the rows at a function of one number, before its lines replace it.
Meet = Callable[[int, Tensor], Tensor]


def lower_bounds(
    units: Units,
    start: int,
    rows: Tensor,
    slopes: Mapping[int, Tensor] | None = None,
    meet: Meet | None = None,
) -> Tensor:
    """Lower bounds (n, s) of the sums of rows (n, s, *shape) times what a node gives.

    slopes  of the lower lines of rectifiers, by node, (n, s or 1, *shape), in place of theirs:
            any in [least, 1] where a rectifier is unstable.
    meet    is given a node's number and the rows at its input, and returns the rows to go on with.
    """
    return _Rows(units, slopes or {}, meet).bound(start, rows)[0]


def lowest_corner(units: Units, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Lower bounds (n, 1) of rows (n, 1, *shape) times the logits, and the points (n, *shape) of
    the ball that attain them in the relaxed network."""
    bound, at_input = _Rows(units, {}, None).bound(len(units.graph.nodes), rows)
    return bound, units.ball.corner(at_input[:, 0])


class _Rows:
    """Rows on their way back through a network."""

    def __init__(self, units: Units, slopes: Mapping[int, Tensor], meet: Meet | None) -> None:
        self.units, self.slopes, self.meet = units, slopes, meet

    def bound(self, start: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds (n, s), and the rows (n, s, *shape) that arrive at the images."""
        units, shape = self.units, rows.shape[:2]
        at: dict[int, Tensor] = {start: rows}
        total, slack = rows.new_zeros(shape), rows.new_zeros(shape)
        for number in range(start, 0, -1):
            if number not in at:
                continue
            here, node = at.pop(number), units.graph.nodes[number - 1]
            if isinstance(node, Affine):
                total = total + (here * node.offset).flatten(2).sum(2)
                slack = slack + self._slack(number, here)
                before = node.backward(here.flatten(0, 1))
                parts = [part.unflatten(0, shape) for part in before]
            else:
                here, constant = self._through(number, here)
                total = total + constant
                parts = [here]
            for place, part in zip(node.inputs, parts, strict=True):
                at[place] = at[place] + part if place in at else part
        arrived = at.get(0)
        if arrived is None:
            arrived = rows.new_zeros(*shape, *units.graph.shape)
        return total - slack + units.ball.least(arrived), arrived

    def _slack(self, number: int, rows: Tensor) -> Tensor:
        """What rounding may amount to where rows (n, s, *shape) pass an affine node, (n, s).

        Jᵀ times a row is a sum of at most as many terms as the node has outputs, whose computed
        value is off by at most their number times the unit of rounding times the sum of their sizes
        (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1). Times what
        the inputs can be, and summed over them, that is at most the row times `sizes`.
        """
        size = self.units.sizes[number][:, None]
        return _unit(rows, rows[0, 0].numel()) * (rows.detach().abs() * size).flatten(2).sum(2)

    def _through(self, number: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (n, s, *shape) at the input of a function of one number, and what its lines add."""
        line = self.units.lines[number]
        lower = line.lower[:, None]
        if number in self.slopes:
            lower = torch.where(line.unstable[:, None], self.slopes[number], lower)
        plus, minus = rows.clamp_min(0), rows.clamp_max(0)
        added = (plus * line.below[:, None] + minus * line.above[:, None]).flatten(2).sum(2)
        rows = plus * lower + minus * line.upper[:, None]
        return (rows if self.meet is None else self.meet(number, rows)), added


def _unit(like: Tensor, terms: int) -> float:
    """How far a sum of so many products may be off, relative to the sum of their sizes."""
    return (terms + 8) * torch.finfo(like.dtype).eps


def margins(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Rows (n, classes - 1, 1, classes) by which labels y (n,) lead the other classes, in their
    order."""
    others = torch.arange(classes - 1, device=y.device)[None]
    others = others + (others >= y[:, None])
    label = torch.nn.functional.one_hot(y, classes)[:, None]
    return (label - torch.nn.functional.one_hot(others, classes)).to(dtype)[:, :, None]


def sharpened(
    units: Units,
    rows: Tensor,
    steps: int = 20,
    rate: float = 0.25,
    done: Callable[[Tensor], bool] = lambda bound: False,
) -> Tensor:
    """Lower bounds (n, s) of rows (n, s, 1, classes) times the logits, by lower slopes that are
    chosen for each of them, in gradient steps (Xu et al. 2021, alpha-CROWN, section 3.1).

    They are no lower than those of the lines as they are. `done` says when they are good enough.
    """
    last = len(units.graph.nodes)
    best = lower_bounds(units, last, rows)
    slopes = {
        number: line.lower[:, None].expand(-1, rows.shape[1], *line.lower.shape[1:]).clone()
        for number, line in units.lines.items()
        if bool(line.unstable.any())
    }
    if not slopes or done(best):
        return best
    for slope in slopes.values():
        slope.requires_grad_()
    optimizer = torch.optim.Adam(slopes.values(), lr=rate)
    for step in range(steps):
        with torch.enable_grad():
            bound = lower_bounds(units, last, rows, slopes)
        best = torch.maximum(best, bound.detach())
        if step == steps - 1 or done(best):
            break
        optimizer.zero_grad()
        (-bound.sum()).backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.95
        with torch.no_grad():
            for number, slope in slopes.items():
                slope.copy_(slope.clamp(min=0).clamp(max=1).maximum(_floor(units.lines[number])))
    return best


def _floor(line: Lines) -> Tensor:
    floor = torch.as_tensor(line.least, dtype=line.low.dtype, device=line.low.device)
    return floor.expand_as(line.low)[:, None]
