"""What is known of a network over balls: intervals, and lines that enclose functions of one number
which is known to lie in one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from defenses.graphs.graph import Graph, Unary
from defenses.verification.balls import Ball

# How the lower line of a rectifier is chosen that may go either way: the one that leaves the
# smaller area (CROWN, DeepPoly), or the one in parallel to the upper line, as in the dual of the
# linear program (Wong and Kolter 2018).
Choice = Literal["area", "parallel"]

# Which of rows and their opposites are bounded together: both go back alike through parallel lines.
Signs = tuple[Literal[1]] | tuple[Literal[1], Literal[-1]]
ONE: Signs = (1,)
BOTH: Signs = (1, -1)

Through = tuple[Tensor, list[Tensor]]


@dataclass(frozen=True, eq=False)
class Lines:
    """lower z + below <= f(z) <= upper z + above, for z in [low, high]: tensors (n, *shape).

    unstable  where the lower slope of a rectifier may be any in [least, 1].
    """

    low: Tensor
    high: Tensor
    lower: Tensor
    below: Tensor
    upper: Tensor
    above: Tensor
    unstable: Tensor
    least: Any = 0.0


@dataclass(frozen=True, eq=False)
class Units:
    """What is known of a network over the balls around n images.

    graph, ball  that it is known of.
    low, high    of every node, by number: (n, *shape).
    sizes        of every affine node, by number: what the terms of its outputs may add up to; of
                 none where bounds are no proofs, so that rounding does not matter.
    lines        of every function of one number, by its node.
    """

    graph: Graph
    ball: Ball
    low: Mapping[int, Tensor]
    high: Mapping[int, Tensor]
    sizes: Mapping[int, Tensor]
    lines: Mapping[int, Lines]

    @property
    def are_parallel(self) -> bool:
        """Whether both lines of every function have one slope."""
        return all(line.lower is line.upper for line in self.lines.values())

    def roughly(self, graph: Graph) -> "Units":
        """What is known, in the precision of a graph of the same network. Bounds from it are no
        proofs."""

        def near(values: Mapping[int, Tensor]) -> dict[int, Tensor]:
            return {number: value.to(dtype) for number, value in values.items()}

        dtype, ball = graph.dtype, self.ball
        ball = Ball(ball.x.to(dtype), ball.eps, ball.norm, ball.low.to(dtype), ball.high.to(dtype))
        rough = {}
        for number, line in self.lines.items():
            rough[number] = replace(
                line, low=line.low.to(dtype), high=line.high.to(dtype), lower=line.lower.to(dtype),
                below=line.below.to(dtype), upper=line.upper.to(dtype), above=line.above.to(dtype),
            )  # fmt: skip
        return Units(graph, ball, near(self.low), near(self.high), {}, rough)

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


def through(rows: Tensor, kept: Sequence[Tensor], lead: int, signs: Signs) -> Through:
    """Rows, which bound a function of one number from below, as rows at its input, and what its
    lines add to each of them, and to its opposite where `signs` has both.

    kept  the lower and the upper slopes, and what is below and above, as they fit the rows, of
          which `lead` dimensions count them.
    """
    lower, upper, below, above = kept
    plus, minus = rows.clamp_min(0), rows.clamp_max(0)
    added = [plus * below + minus * above]
    if len(signs) == 2:
        added.append(-(minus * below + plus * above))
    moved = rows * lower if lower is upper else plus * lower + minus * upper
    return moved, [part.flatten(lead).sum(lead) for part in added]


def rounding(like: Tensor, terms: int) -> float:
    """How far a sum of so many products may be off, relative to the sum of their sizes."""
    return (terms + 8) * torch.finfo(like.dtype).eps


def lines(node: Unary, low: Tensor, high: Tensor, choice: Choice = "area") -> Lines:
    """The lines of a node for inputs between low and high (n, *shape), where low <= high.

    They hold for what is computed in this precision: offsets are wider by what rounding of the
    slopes may amount to.
    """
    return {"rectifier": _rectifier, "square": _square, "root": _root}[node.kind](
        node, low, high, choice
    )


def _rounding(low: Tensor, high: Tensor) -> Tensor:
    return 8 * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs())


def _rectifier(node: Unary, low: Tensor, high: Tensor, choice: Choice) -> Lines:
    """Zhang et al. (2018), CROWN, table 2; any lower slope between the two of the rectifier is
    one."""
    slope = torch.as_tensor(node.slope, dtype=low.dtype, device=low.device)
    unstable = (low < 0) & (high > 0) & (slope < 1)
    exact = torch.where(high > 0, torch.ones_like(low), slope.expand_as(low))
    width = torch.where(unstable, high - low, 1.0)
    upper = torch.where(unstable, (high - slope * low) / width, exact)
    above = torch.where(unstable, (1 - upper) * high + _rounding(low, high), 0.0)
    if choice == "parallel":
        lower = upper
    else:
        lower = torch.where(unstable & (high <= -low), slope.expand_as(low), exact)
    zero = torch.zeros_like(low)
    return Lines(low, high, lower, zero, upper, above, unstable, slope)


def _square(node: Unary, low: Tensor, high: Tensor, choice: Choice) -> Lines:
    """The tangent in the middle, and the chord."""
    del node, choice
    middle = (low + high) / 2
    slack = _rounding(low, high) * torch.maximum(low.abs(), high.abs())
    return Lines(
        low, high, 2 * middle, -middle.square() - slack, low + high, slack - low * high,
        torch.zeros_like(low, dtype=torch.bool),
    )  # fmt: skip


def _root(node: Unary, low: Tensor, high: Tensor, choice: Choice) -> Lines:
    """The chord, and the tangent in the middle. Nothing is known where the number may be negative:
    the root is no number then."""
    del node, choice
    known = low >= 0
    low, high = low.clamp_min(0), high.clamp_min(0)
    middle = ((low + high) / 2).clamp_min(torch.finfo(low.dtype).tiny)
    chord = 1 / (low.sqrt() + high.sqrt()).clamp_min(torch.finfo(low.dtype).tiny)
    # Where both ends are 0 the function is 0, and any chord through 0 will do.
    chord = torch.where(high > 0, chord, 0.0)
    tangent = 1 / (2 * middle.sqrt())
    slack = torch.where(known, _rounding(low.sqrt(), high.sqrt()), math.inf)
    return Lines(
        low, high, chord, low.sqrt() - chord * low - slack, tangent, middle.sqrt() / 2 + slack,
        torch.zeros_like(low, dtype=torch.bool),
    )  # fmt: skip
