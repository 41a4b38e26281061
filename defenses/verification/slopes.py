"""Slopes that are chosen so that bounds are tight (Xu et al. 2021, alpha-CROWN)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from defenses.graphs.graph import Affine, Graph, Unary
from defenses.verification.bounds import (
    NUMBERS,
    interval,
    interval_is_exact,
    least_of,
    lower_bounds,
    most_of,
    narrowed,
    rows_of,
)
from defenses.verification.lines import Units, lines

# The rate of the slopes for the inputs of rectifiers.
_UNIT_RATE = 0.25

# By how much rates shrink at each step.
_DECAY = 0.95


class Group(NamedTuple):
    """Numbers that bounds (n, s) depend on, by node, (n, s, *shape), and the rate at which they are
    changed. `within` returns those of a node as near as they may be."""

    values: Mapping[int, Tensor]
    rate: float
    within: Callable[[int, Tensor], Tensor]


def climb(
    bound: Callable[[], Tensor], groups: Sequence[Group], steps: int, is_over: Callable[[], bool]
) -> Tensor:
    """Change numbers so that bounds (n, s) grow, in gradient steps, until all are above 0 or
    `is_over` says so. The numbers are left as they gave each its best, which is returned."""
    every = [value.requires_grad_() for group in groups for value in group.values.values()]
    options = [{"params": list(group.values.values()), "lr": group.rate} for group in groups]
    optimizer = torch.optim.Adam(options)
    best, kept = torch.tensor(-torch.inf), [value.detach().clone() for value in every]
    for step in range(steps):
        with torch.enable_grad():
            now = bound()
        with torch.no_grad():
            better = now > best
            best = torch.where(better, now, best)
            for old, value in zip(kept, every, strict=True):
                chosen = better.view(*better.shape, *[1] * (value.dim() - better.dim()))
                old.copy_(torch.where(chosen, value, old))
        if step == steps - 1 or is_over() or bool((best > 0).all()):
            break
        optimizer.zero_grad()
        (-now.sum()).backward()
        optimizer.step()
        with torch.no_grad():
            for group, settings in zip(groups, optimizer.param_groups, strict=True):
                settings["lr"] *= _DECAY
                for number, value in group.values.items():
                    value.copy_(group.within(number, value))
    for old, value in zip(kept, every, strict=True):
        value.requires_grad_(False).copy_(old)
    return best.detach()


def sharpened(
    units: Units,
    rows: Tensor,
    rough: Graph,
    steps: int = 20,
    rate: float = 0.25,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Lower bounds (n, s) of rows (n, s, 1, classes) times the logits, by lower slopes that are
    chosen for each of them, in gradient steps (Xu et al. 2021, alpha-CROWN, section 3.1).

    rough    the same network in the precision that steps are taken in. Bounds are proven in that of
             `units`, and no lower than those of the lines as they are.
    is_over  ends the steps.

    Returns the slopes too, (n, s, *shape) by node, roughly; none where no steps were taken.
    """
    return _sharpened(units, len(units.graph.nodes), rows, rough, steps, rate, is_over)


def _sharpened(
    units: Units,
    start: int,
    rows: Tensor,
    rough: Graph,
    steps: int,
    rate: float,
    is_over: Callable[[], bool],
) -> tuple[Tensor, dict[int, Tensor]]:
    """As `sharpened`, of rows (n, s, *shape) times what a node gives."""
    best = lower_bounds(units, start, rows).detach()
    near = units.roughly(rough)
    reached = reached_from(units.graph, start)
    slopes = {
        number: line.lower[:, None].expand(-1, rows.shape[1], *line.lower.shape[1:]).clone()
        for number, line in near.lines.items()
        if number in reached and bool(line.unstable.any())
    }
    if not slopes or is_over() or bool((best > 0).all()):
        return best, {}
    near_rows = rows.to(near.ball.x)
    groups = [Group(slopes, rate, lambda _, slope: slope.clamp(0, 1))]
    climb(lambda: lower_bounds(near, start, near_rows, slopes), groups, steps, is_over)
    exact = {number: slope.to(rows.dtype) for number, slope in slopes.items()}
    return torch.maximum(best, lower_bounds(units, start, rows, exact)), slopes


def reached_from(graph: Graph, start: int) -> set[int]:
    """The nodes that a node depends on, itself included."""
    reached = {start}
    for number in range(start, 0, -1):
        if number in reached:
            reached |= set(graph.nodes[number - 1].inputs)
    return reached


def tightened(
    units: Units, rough: Graph, steps: int, is_over: Callable[[], bool] = lambda: False
) -> Units:
    """What is known once the inputs of unstable rectifiers were bounded again, one after another,
    by slopes that are chosen for each (Xu et al. 2021, alpha-CROWN, section 3.1).

    rough, is_over  as for `sharpened`. Takes `steps` for each rectifier node.
    """
    low, high, found = dict(units.low), dict(units.high), dict(units.lines)
    exact = interval_is_exact(units.graph, units.ball)
    for number, node in enumerate(units.graph.nodes, 1):
        if isinstance(node, Affine):
            least, most, _ = interval(node, low, high)
            low[number] = torch.maximum(low[number], least)
            high[number] = torch.minimum(high[number], most)
            continue
        (before,) = node.inputs
        loose = found[number].unstable.flatten(1)
        count = int(loose.sum(1).amax())
        if count and before not in exact and not is_over():
            known = replace(units, low=low, high=high, lines=found)
            places = loose.to(torch.int8).topk(count, 1).indices
            # Each row has slopes of its own, whose steps take some times the memory.
            at_once = max(1, NUMBERS // (16 * len(loose) * _entries(units.graph)))
            for part in places.split(at_once, 1):
                if is_over():
                    break
                rows = rows_of(known, before, part)
                both, _ = _sharpened(known, before, rows, rough, steps, _UNIT_RATE, is_over)
                low[before], high[before] = narrowed(low[before], high[before], part, both)
        found[number] = lines(node, low[before], high[before])
        low[number] = node.forward([least_of(node, low[before], high[before])])
        high[number] = node.forward([most_of(node, low[before], high[before])])
    return replace(units, low=low, high=high, lines=found)


def _entries(graph: Graph) -> int:
    """How many numbers the functions of one number in a network are given."""
    return 1 + sum(math.prod(node.shape) for node in graph.nodes if isinstance(node, Unary))
