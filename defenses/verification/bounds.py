"""Bounds on what a network gives over a ball: intervals, and linear bounds that are propagated
backwards (CROWN, DeepPoly, and the dual of the linear-programming relaxation, which are one
algorithm with different lower lines).

All of it is batched tensor code, differentiable, on any device. In float64 the bounds are proven:
what rounding may amount to is added up beside them (see `_Rows.slack`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from defenses.graphs.graph import Affine, Graph, Unary
from defenses.verification.balls import Ball
from defenses.verification.lines import (
    BOTH,
    ONE,
    Choice,
    Lines,
    Signs,
    Through,
    Units,
    lines,
    rounding,
    through,
)
from defenses.verification.patches import Patches, windows_before

# How many numbers the rows of bounds may have that are propagated at once.
NUMBERS = 2**24

# How far below 0, relative to its largest, a number is taken for 0 that a root is taken of.
_NEGLIGIBLE = 1e-9

# Operations of which a chain of two makes intervals looser than the map that they are together.
_MIXING = {
    "linear", "conv1d", "conv2d", "conv3d", "convolution", "matmul", "mm", "bmm", "addmm",
    "baddbmm", "mean", "sum", "avg_pool2d", "adaptive_avg_pool2d", "cumsum",
}  # fmt: skip


def bound_units(
    graph: Graph,
    ball: Ball,
    choice: Choice = "area",
    refined: bool = True,
    proven: bool = True,
) -> Units:
    """Bound every node of a network over the balls around images.

    Intervals come first (Gowal et al. 2018). Where `refined`, the inputs of rectifiers that these
    leave unstable, and of other functions, are bounded again by linear bounds (Zhang et al. 2018,
    CROWN, section 3; Wong and Kolter 2018, section 3.3), and both hold. Unless `proven`, as for
    training, nothing is added for rounding.
    """
    low, high = {0: ball.low}, {0: ball.high}
    sizes: dict[int, Tensor] = {}
    units = Units(graph, ball, low, high, sizes, {})
    found: dict[int, Lines] = {}
    exact = interval_is_exact(graph, ball)
    for number, node in enumerate(graph.nodes, 1):
        if isinstance(node, Affine):
            low[number], high[number], size = interval(node, low, high, proven)
            if proven:
                sizes[number] = size
                low[number], high[number] = known(low[number], high[number])
            continue
        (before,) = node.inputs
        if refined and before not in exact:
            units = replace(units, lines=dict(found))
            low[before], high[before] = _refined(units, node, before)
        if node.kind == "root":
            # A sum of squares is not negative, whatever was added to its bounds for rounding.
            negligible = low[before] >= -_NEGLIGIBLE * high[before]
            low[before] = torch.where(negligible, low[before].clamp_min(0), low[before])
        found[number] = lines(node, low[before], high[before], choice)
        low[number], high[number] = known(
            node.forward([least_of(node, low[before], high[before])]),
            node.forward([most_of(node, low[before], high[before])]),
        )
    return replace(units, lines=found)


def known(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds, infinite where they are no numbers: where sums overflow, and roots of what may be
    negative."""
    unknown = low.isnan() | high.isnan()
    return low.masked_fill(unknown, -math.inf), high.masked_fill(unknown, math.inf)


def largest(units: Units) -> Tensor:
    """The largest number (n,) that may come up while the network is computed at an image."""
    held = [*units.sizes.values()]
    for number in units.lines:
        held += [units.low[number].abs(), units.high[number].abs()]
    return torch.stack([values.flatten(1).amax(1) for values in held]).amax(0)


def interval_is_exact(graph: Graph, ball: Ball) -> set[int]:
    """The nodes of which no bounds are narrower than intervals: those that a single mixing map
    leads to."""
    if ball.norm != "linf":
        return set()
    mixed: dict[int, float] = {0: 0}
    for number, node in enumerate(graph.nodes, 1):
        mixed[number] = sum(mixed[i] for i in node.inputs)
        if isinstance(node, Unary):
            mixed[number] = math.inf
        elif node.name in _MIXING:
            mixed[number] += 1
    return {number for number, maps in mixed.items() if maps <= 1}


def least_of(node: Unary, low: Tensor, high: Tensor) -> Tensor:
    """Where in an interval a function is least."""
    return torch.zeros_like(low).clamp(low, high) if node.kind == "square" else low


def most_of(node: Unary, low: Tensor, high: Tensor) -> Tensor:
    """Where in an interval a function is largest."""
    return torch.maximum(-low, high) if node.kind == "square" else high


def interval(
    node: Affine, low: Mapping[int, Tensor], high: Mapping[int, Tensor], proven: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The least and the most that a node gives, and what the terms of it may add up to."""
    middle = [(low[i] + high[i]) / 2 for i in node.inputs]
    radii = [(high[i] - low[i]) / 2 for i in node.inputs]
    centre, radius = node.forward(middle), node.radius(radii)
    if not proven:
        return centre - radius, centre + radius, radius
    sizes = [torch.maximum(low[i].abs(), high[i].abs()) for i in node.inputs]
    size = node.radius(sizes) + node.offset.abs()
    count = sum(math.prod(shape) for shape in node.input_shapes)
    slack = rounding(size, count) * size
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
    windows = windows_before(units.graph, before)
    patches = None if windows is None else Patches(units, before, windows)
    widest = _widest(units.graph) if patches is None else patches.widest
    for part in places.split(max(1, NUMBERS // (2 * len(low) * widest)), 1):
        both = _bounds_of(units, before, part) if patches is None else patches.bound(part)
        low, high = narrowed(low, high, part, both)
    return low, high


def _bounds_of(units: Units, number: int, places: Tensor) -> Tensor:
    """Lower bounds (n, 2 m) of the entries of a node that places (n, m) number, and of their
    opposites."""
    rows = rows_of(units, number, places)
    if not units.are_parallel:
        return lower_bounds(units, number, rows)
    both, _ = _Rows(units, {}, None, BOTH).bound(number, rows[:, : places.shape[1]])
    return torch.cat(both, 1)


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
    ((least,), _) = _Rows(units, slopes or {}, meet).bound(start, rows)
    return least


def interval_bounds(units: Units, rows: Tensor) -> Tensor:
    """Lower bounds (n, s) of rows (n, s, 1, classes) times the logits, by intervals up to the last
    functions of one number."""
    ((least,), _) = _Rows(units, {}, None).bound(len(units.graph.nodes), rows, affine=True)
    return least


def lowest_corner(units: Units, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Lower bounds (n, s) of rows (n, s, *shape) times the logits, and the points (n, *shape) of
    the ball that attain the least of each image's in the relaxed network."""
    ((bounds,), at_input) = _Rows(units, {}, None).bound(len(units.graph.nodes), rows)
    least = bounds.argmin(1)
    return bounds, units.ball.corner(at_input[torch.arange(len(least)), least])


class _Rows:
    """Rows on their way back through a network, and their opposites, where `signs` has both."""

    def __init__(
        self,
        units: Units,
        slopes: Mapping[int, Tensor],
        meet: Meet | None,
        signs: Signs = ONE,
    ) -> None:
        self.units, self.slopes, self.meet, self.signs = units, slopes, meet, signs

    def bound(self, start: int, rows: Tensor, affine: bool = False) -> tuple[list[Tensor], Tensor]:
        """The bounds (n, s) for each sign, and the rows (n, s, *shape) that arrive at the images.
        With `affine`, rows pass affine nodes alone, and others give what lies in their
        intervals."""
        units, shape = self.units, rows.shape[:2]
        at: dict[int, Tensor] = {start: rows}
        total = [rows.new_zeros(shape) for _ in self.signs]
        for number in range(start, 0, -1):
            if number not in at:
                continue
            here, node = at.pop(number), units.graph.nodes[number - 1]
            if isinstance(node, Affine):
                offset, slack = (here * node.offset).flatten(2).sum(2), self._slack(number, here)
                added = [sign * offset - slack for sign in self.signs]
                before = node.backward(here.flatten(0, 1))
                parts = [part.unflatten(0, shape) for part in before]
            elif affine:
                corner = torch.where(
                    here > 0, units.low[number][:, None], units.high[number][:, None]
                )
                added, parts = [(here * corner).flatten(2).sum(2)], []
            else:
                here, added = self._through(number, here)
                parts = [here]
            total = [one + more for one, more in zip(total, added, strict=True)]
            for place, part in zip(node.inputs, parts, strict=bool(parts)):
                at[place] = at[place] + part if place in at else part
        arrived = at.get(0)
        if arrived is None:
            arrived = rows.new_zeros(*shape, *units.graph.shape)
        edges = [units.ball.least(sign * arrived) for sign in self.signs]
        found = [one + more for one, more in zip(total, edges, strict=True)]
        # What is no number, as where infinite bounds cancel, bounds nothing.
        return [each.masked_fill(each.isnan(), -math.inf) for each in found], arrived

    def _slack(self, number: int, rows: Tensor) -> Tensor | float:
        """What rounding may amount to where rows (n, s, *shape) pass an affine node, (n, s).

        Jᵀ times a row is a sum of at most as many terms as the node has outputs, whose computed
        value is off by at most their number times the unit of rounding times the sum of their sizes
        (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1). Times what
        the inputs can be, and summed over them, that is at most the row times `sizes`.
        """
        if number not in self.units.sizes:
            return 0.0
        size = self.units.sizes[number][:, None]
        return rounding(rows, rows[0, 0].numel()) * (rows.detach().abs() * size).flatten(2).sum(2)

    def _through(self, number: int, rows: Tensor) -> Through:
        """Rows (n, s, *shape) at the input of a function of one number, and what its lines add."""
        line = self.units.lines[number]
        lower, upper = line.lower[:, None], line.upper[:, None]
        if number in self.slopes:
            # No lower line is flatter than the function's own side, whatever was chosen or rounded.
            chosen = self.slopes[number].clamp(max=1).maximum(_floor(line))
            lower = torch.where(line.unstable[:, None], chosen, lower)
        elif line.lower is line.upper:
            upper = lower
        kept = lower, upper, line.below[:, None], line.above[:, None]
        rows, added = through(rows, kept, 2, self.signs)
        return (rows if self.meet is None else self.meet(number, rows)), added


def margins(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Rows (n, classes - 1, 1, classes) by which labels y (n,) lead the other classes, in their
    order."""
    others = torch.arange(classes - 1, device=y.device)[None]
    others = others + (others >= y[:, None])
    label = torch.nn.functional.one_hot(y, classes)[:, None]
    return (label - torch.nn.functional.one_hot(others, classes)).to(dtype)[:, :, None]


def rows_of(units: Units, number: int, places: Tensor) -> Tensor:
    """Rows (n, 2 m, *shape) for the entries of a node that places (n, m) number, and for these with
    the opposite sign."""
    low = units.low[number]
    rows = torch.nn.functional.one_hot(places, low[0].numel()).to(low.dtype)
    rows = rows.view(*places.shape, *low.shape[1:])
    return torch.cat([rows, -rows], 1)


def narrowed(low: Tensor, high: Tensor, places: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds (n, *shape), where those of the entries at places (n, m) are replaced as far as lower
    bounds (n, 2 m) of them and of their opposites are better."""
    first, second = both.masked_fill(both.isnan(), -math.inf).chunk(2, 1)
    least, most = low.flatten(1), high.flatten(1)
    least = least.scatter(1, places, torch.maximum(first, least.gather(1, places)))
    most = most.scatter(1, places, torch.minimum(-second, most.gather(1, places)))
    # Rounding may leave them the other way round.
    least, most = torch.minimum(least, most), torch.maximum(least, most)
    return least.view_as(low), most.view_as(high)


def _floor(line: Lines) -> Tensor:
    floor = torch.as_tensor(line.least, dtype=line.low.dtype, device=line.low.device)
    return floor.expand_as(line.low)[:, None]
