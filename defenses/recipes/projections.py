"""Estimates of what a network's hidden units may be over a ball, by random projections (Wong et al.
2018, "Scaling provable adversarial defenses", section 3.2). They are for training: no proof may
rest on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defenses.graphs.graph import Affine, Graph
from defenses.verification.balls import Ball
from defenses.verification.bounds import interval, interval_is_exact
from defenses.verification.lines import Lines, Units, lines


@dataclass(frozen=True, eq=False)
class _Spread:
    """What a node may be.

    centre  (n, *shape).
    away    by how much it may differ, for each node of which the values are uncertain: what the
            network, made linear, makes of vectors that were drawn there (n, count, *shape).
    """

    centre: Tensor
    away: Mapping[int, Tensor]

    def radius(self, norm: str) -> Tensor:
        """Estimates (n, *shape) of how far it may be from the centre, where images lie in a ball of
        a norm."""
        total = torch.zeros_like(self.centre)
        for origin, drawn in self.away.items():
            if origin or norm == "linf":
                total = total + drawn.abs().median(1).values
            else:
                # The derivative of a root of 0 is none.
                tiny = torch.finfo(drawn.dtype).tiny
                total = total + drawn.square().mean(1).clamp_min(tiny).sqrt()
        return total


def estimated_units(graph: Graph, ball: Ball, count: int) -> Units:
    """What is known of every node, where the inputs of rectifiers are estimated by `count` random
    projections, from torch's global randomness, and lie within intervals.

    Raises ValueError where the network has other functions than rectifiers.
    """
    exact = interval_is_exact(graph, ball)
    low, high = {0: ball.low}, {0: ball.high}
    found: dict[int, Lines] = {}
    spreads = {0: _of_images(ball, count)}
    for number, node in enumerate(graph.nodes, 1):
        if isinstance(node, Affine):
            low[number], high[number], _ = interval(node, low, high, proven=False)
            spreads[number] = _moved(node, [spreads[i] for i in node.inputs])
            continue
        if node.kind != "rectifier":
            raise ValueError(f"random projections are for rectifiers, not for its {node.name}")
        (before,) = node.inputs
        spread = spreads[before]
        if before not in exact:
            radius = spread.radius(ball.norm)
            low[before] = torch.maximum(low[before], spread.centre - radius)
            high[before] = torch.minimum(high[before], spread.centre + radius)
            high[before] = torch.maximum(low[before], high[before])
        line = lines(node, low[before], high[before], "parallel")
        found[number] = line
        low[number], high[number] = node.forward([low[before]]), node.forward([high[before]])
        # The function lies within half the distance of its lines from what is in their middle.
        half, slope = line.above / 2, line.upper[:, None]
        away = {origin: slope * drawn for origin, drawn in spread.away.items()}
        away[number] = _drawn("linf", half, count)
        spreads[number] = _Spread(line.upper * spread.centre + half, away)
    return Units(graph, ball, low, high, {}, found)


def _of_images(ball: Ball, count: int) -> _Spread:
    if ball.norm == "linf":
        centre, radius = (ball.low + ball.high) / 2, (ball.high - ball.low) / 2
    else:
        centre, radius = ball.x, torch.full_like(ball.x, ball.eps)
    return _Spread(centre, {0: _drawn(ball.norm, radius, count)})


def _drawn(norm: str, radius: Tensor, count: int) -> Tensor:
    """Vectors (n, count, *shape), of which sums with weights are spread by the dual norm of weights
    times radii (n, *shape): by Cauchy's distribution, or the normal one."""
    numbers = radius.new_empty(len(radius), count, *radius.shape[1:])
    return radius[:, None] * (numbers.cauchy_() if norm == "linf" else numbers.normal_())


def _moved(node: Affine, before: Sequence[_Spread]) -> _Spread:
    """What an affine node may be."""
    centre = node.forward([spread.centre for spread in before])
    away: dict[int, Tensor] = {}
    for origin in {origin: None for spread in before for origin in spread.away}:
        like = next(spread.away[origin] for spread in before if origin in spread.away)
        parts = [
            spread.away[origin]
            if origin in spread.away
            else like.new_zeros(*like.shape[:2], *spread.centre.shape[1:])
            for spread in before
        ]
        moved = node.forward([part.flatten(0, 1) for part in parts]) - node.offset
        away[origin] = moved.unflatten(0, like.shape[:2])
    return _Spread(centre, away)
