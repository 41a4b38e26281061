"""Branch and bound over the two sides of rectifiers (Bunel et al. 2020; Wang et al. 2021,
beta-CROWN): where bounds over the whole ball do not decide, it is cut where a rectifier bends."""

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from defenses.graphs.graph import Graph, Unary
from defenses.verification.bounds import lower_bounds, lowest_corner
from defenses.verification.lines import Units, lines
from defenses.verification.slopes import Group, climb

# How many parts of the ball are bounded at once; their steps, and the rates of the slopes and of
# the multipliers of the cuts.
_TOGETHER, _STEPS = 64, 3
_SLOPE_RATE, _CUT_RATE = 0.1, 0.05

# How many rectifiers are tried, of those that promise most, before one is cut.
_TRIED = 2

Numbers = Mapping[int, Tensor]


@dataclass(order=True)
class _Part:
    """A part of the ball, on which some rectifiers are known to be on one side.

    bound   of the row, on this part, roughly; it is above 0 nowhere.
    order   of parts with equal bounds.
    row     whose least value is asked for.
    sides   by node, (*shape): 1 where the input is at least 0, -1 where it is at most 0, else 0.
    slopes, multipliers  that gave the bound, by node, (*shape).
    """

    bound: float
    order: int
    row: int = field(compare=False)
    sides: dict[int, Tensor] = field(compare=False)
    slopes: dict[int, Tensor] = field(compare=False)
    multipliers: dict[int, Tensor] = field(compare=False)


class Search:
    """The search for a proof that rows (s, 1, classes) times the logits are above 0 over the ball
    around one image.

    units   what is known over the whole ball.
    bounds  (s,), lower bounds of the rows that are known.
    rough   the same network in the precision that bounds are searched in. Those that count are
            computed in that of `units`.
    slopes  (1, s, *shape) by node, where to begin; those of the lines where there are none.
    """

    def __init__(
        self, units: Units, rows: Tensor, bounds: Tensor, rough: Graph, slopes: Numbers
    ) -> None:
        self.units, self.rows, self._rough = units, rows, rough
        self._near = units.roughly(rough)
        self.last = len(units.graph.nodes)
        self.nodes = [number for number, line in units.lines.items() if line.unstable.any()]
        self._made = 0
        self._left: list[_Part] = []
        self.parts = 0
        for row, bound in enumerate(bounds.tolist()):
            if not bound > 0:
                first = {n: slope[0, row] for n, slope in slopes.items()}
                first = {n: first.get(n, self._near.lines[n].lower[0]) for n in self.nodes}
                self._push(bound, row, self._zeros(), first, self._zeros(True))

    @property
    def bound(self) -> float:
        """The least that a row can be, as far as is known."""
        return self._left[0].bound if self._left else float("inf")

    def narrow(self, units: Units) -> None:
        """Go on with more that is known over the whole ball."""
        self.units, self._near = units, units.roughly(self._rough)

    def left(self) -> list[int]:
        """The rows that are not shown to be above 0."""
        return sorted({part.row for part in self._left})

    def run(self, deadline: float, breaks: Callable[[Tensor], bool]) -> bool | None:
        """Search until a time of the monotonic clock. Returns whether all rows are above 0, or None
        where time ran out or nothing is left to cut; False where `breaks` says so of points
        (m, *shape)."""
        while self._left:
            if time.monotonic() >= deadline or not self.nodes:
                return None
            batch = [heapq.heappop(self._left) for _ in range(min(_TOGETHER // 2, len(self._left)))]
            cuts = self._cuts(batch)
            if cuts is None:
                for part in batch:
                    heapq.heappush(self._left, part)
                return None
            children = [
                self._cut(part, cut, side)
                for part, cut in zip(batch, cuts, strict=True)
                for side in (1, -1)
            ]
            if self._bound(children, deadline, breaks):
                return False
        return True

    def _push(
        self,
        bound: float,
        row: int,
        sides: dict[int, Tensor],
        slopes: dict[int, Tensor],
        multipliers: dict[int, Tensor],
    ) -> None:
        self._made += 1
        heapq.heappush(self._left, _Part(bound, self._made, row, sides, slopes, multipliers))

    def _zeros(self, as_numbers: bool = False) -> dict[int, Tensor]:
        dtype = self._near.ball.x.dtype if as_numbers else torch.int8
        return {n: torch.zeros_like(self.units.lines[n].low[0], dtype=dtype) for n in self.nodes}

    def _cut(self, part: _Part, cut: tuple[int, int], side: int) -> _Part:
        node, place = cut
        sides = dict(part.sides)
        sides[node] = sides[node].clone()
        sides[node].view(-1)[place] = side
        self._made += 1
        return replace(part, order=self._made, sides=sides)

    def _within(self, units: Units, sides: Numbers) -> Units:
        """What is known over parts of the ball, given the sides (n, *shape) by node."""
        count = len(next(iter(sides.values())))
        copies = units[torch.zeros(count, dtype=torch.long, device=self.rows.device)]
        found = dict(copies.lines)
        for n, side in sides.items():
            line = found[n]
            low = torch.where(side > 0, line.low.clamp_min(0), line.low)
            high = torch.where(side < 0, line.high.clamp_max(0), line.high)
            node = units.graph.nodes[n - 1]
            assert isinstance(node, Unary)
            found[n] = lines(node, low, high)
        return replace(copies, lines=found)

    def _rows(self, parts: Sequence[_Part]) -> Tensor:
        return self.rows[[part.row for part in parts]][:, None]

    def _bound(
        self, parts: Sequence[_Part], deadline: float, breaks: Callable[[Tensor], bool]
    ) -> bool:
        """Bound parts, and keep those that may hold a point where the row is not above 0. Returns
        whether `breaks` found one."""
        self.parts += len(parts)
        stack = _Stack.of(parts, self.nodes)
        near, rows = self._within(self._near, stack.sides), self._rows(parts)
        near_rows = rows.to(near.ball.x)

        def keep_slope(_: int, slope: Tensor) -> Tensor:
            return slope.clamp(0, 1)

        def keep_cut(n: int, cut: Tensor) -> Tensor:
            return torch.where(stack.sides[n][:, None] != 0, cut.clamp_min(0), 0.0)

        groups = [
            Group(stack.slopes, _SLOPE_RATE, keep_slope), Group(stack.cuts, _CUT_RATE, keep_cut)
        ]  # fmt: skip
        found = climb(
            lambda: stack.lower(near, self.last, near_rows), groups, _STEPS,
            lambda: time.monotonic() >= deadline,
        )  # fmt: skip
        best = found[:, 0].to(rows.dtype)
        # What seems to be proven is proven, or not, in full precision.
        places = (best > 0).nonzero()[:, 0]
        if len(places):
            some = stack[places]
            with torch.no_grad():
                best[places] = some.lower(
                    self._within(self.units, some.sides), self.last, rows[places]
                )[:, 0]
        left = [i for i, bound in enumerate(best.tolist()) if not bound > 0]
        for i in left:
            part = parts[i]
            # Copies, since views would keep what belongs to all parts.
            slopes, cuts = (
                {n: v[i, 0].clone() for n, v in kind.items()} for kind in (stack.slopes, stack.cuts)
            )
            self._push(float(best[i]), part.row, part.sides, slopes, cuts)
        if not left:
            return False
        with torch.no_grad():
            _, points = lowest_corner(near[torch.tensor(left)], near_rows[left])
        return breaks(points.to(rows.dtype))

    @torch.no_grad()
    def _cuts(self, parts: Sequence[_Part]) -> list[tuple[int, int]] | None:
        """The rectifier (node, place) to cut each part at: of those whose lines cost most, the one
        that leaves the better of its worse sides (De Palma et al. 2021, filtered smart branching).
        None where a part has none left."""
        costs = self._costs(parts)
        offsets, every = {}, []
        start = 0
        for n in self.nodes:
            offsets[n] = start
            every.append(costs[n])
            start += costs[n].shape[1]
        flat = torch.cat(every, 1)
        tried = min(_TRIED, flat.shape[1])
        most, places = flat.topk(tried, 1)
        if bool((most[:, 0] < 0).any()):
            return None
        candidates = [
            [_named(int(place), offsets, self.nodes) for place in places[i]]
            for i in range(len(parts))
        ]
        if tried == 1:
            return [names[0] for names in candidates]
        children = [
            self._cut(part, name, side)
            for part, names in zip(parts, candidates, strict=True)
            for name in names
            for side in (1, -1)
        ]
        values = torch.cat([self._quick(some) for some in _split(children, 2 * _TOGETHER)])
        values = values.view(len(parts), tried, 2)
        # A rectifier that is fixed already, or stable, costs nothing and is no candidate.
        worse = values.amin(2).clamp_max(0) + 1e-3 * values.amax(2).clamp_max(0)
        worse = torch.where(most < 0, -torch.inf, worse)
        chosen = worse.argmax(1).tolist()
        return [names[i] for names, i in zip(candidates, chosen, strict=True)]

    def _quick(self, parts: Sequence[_Part]) -> Tensor:
        """Bounds (n,) of parts by the slopes and multipliers that they were made with."""
        stack = _Stack.of(parts, self.nodes)
        near = self._within(self._near, stack.sides)
        return stack.lower(near, self.last, self._rows(parts).to(near.ball.x))[:, 0]

    def _costs(self, parts: Sequence[_Part]) -> dict[int, Tensor]:
        """How much the lines of each rectifier that may be cut may cost, (n, entries), by node; -1
        for those that may not."""
        costs: dict[int, Tensor] = {}
        stack = _Stack.of(parts, self.nodes)
        near = self._within(self._near, stack.sides)

        def notice(number: int, here: Tensor) -> None:
            line, rows = near.lines[number], here[:, 0]
            # The area between the lines, as far as rows make use of it.
            used = torch.where(rows < 0, -rows / line.upper.clamp_min(1e-12), 0.0) * line.above
            lost = torch.where(rows > 0, rows, 0.0) * torch.minimum(-line.low, line.high)
            cost = torch.where(line.unstable, used + 1e-3 * lost.clamp_min(0), -1.0)
            costs[number] = cost.flatten(1)

        stack.lower(near, self.last, self._rows(parts).to(near.ball.x), notice)
        return costs


@dataclass(frozen=True)
class _Stack:
    """What several parts were given, together: by node, sides (n, *shape), slopes and multipliers
    of the cuts (n, 1, *shape)."""

    sides: dict[int, Tensor]
    slopes: dict[int, Tensor]
    cuts: dict[int, Tensor]

    @classmethod
    def of(cls, parts: Sequence[_Part], nodes: Sequence[int]) -> "_Stack":
        return cls(
            {n: torch.stack([part.sides[n] for part in parts]) for n in nodes},
            {n: torch.stack([part.slopes[n] for part in parts])[:, None] for n in nodes},
            {n: torch.stack([part.multipliers[n] for part in parts])[:, None] for n in nodes},
        )

    def __getitem__(self, rows: Tensor) -> "_Stack":
        """What some of the parts were given."""
        kinds = (self.sides, self.slopes, self.cuts)
        return _Stack(*({n: values[rows] for n, values in kind.items()} for kind in kinds))

    def lower(
        self,
        units: Units,
        last: int,
        rows: Tensor,
        notice: Callable[[int, Tensor], None] = lambda number, here: None,
    ) -> Tensor:
        """Lower bounds (n, 1) of rows (n, 1, 1, classes), by multipliers of the cuts that are at
        least 0: on a side z >= 0, f is at least the least of f - m z.

        notice  is given nodes that may be cut, and the rows at their inputs without multipliers.
        """
        slopes = {n: slope.to(rows.dtype) for n, slope in self.slopes.items()}

        def meet(number: int, here: Tensor) -> Tensor:
            if number not in self.cuts:
                return here
            notice(number, here)
            return here - (self.cuts[number] * self.sides[number][:, None]).to(here.dtype)

        return lower_bounds(units, last, rows, slopes, meet)


def _named(place: int, offsets: Mapping[int, int], nodes: Sequence[int]) -> tuple[int, int]:
    for n in reversed(nodes):
        if place >= offsets[n]:
            return n, place - offsets[n]
    raise AssertionError


def _split(parts: Sequence[_Part], size: int) -> list[Sequence[_Part]]:
    return [parts[start : start + size] for start in range(0, len(parts), size)]
