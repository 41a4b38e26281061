"""A decision-based walk within L-infinity: signs flipped block by block."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from attacks import noise
from attacks.objectives import decided
from attacks.problem import Facts, Problem
from attacks.threat import per_sample
from attacks.working import State, Working, due, far, hopeless, standing

# Starts that are tried: all pixels up, all down, and random signs of blocks.
_STARTS = 8

# Bisections of the radius along a direction that does better.
_HALVINGS = 8

# Directions after which a walk is first given up.
_PATIENCE = 128

# How many directions a sample may try before it asks again if it is done.
_UNASKED = 4

# How much nearer a point must be for its direction to be bisected at all.
_NEARER = 0.998


@dataclass(frozen=True)
class RayS:
    """RayS (Chen and Gu 2020): the direction of signs along which the nearest misclassified point
    lies, by flipping blocks of pixels that become smaller. It sees decisions alone. L-infinity.

    steps     queries of a sample, at one forward each.
    minimize  go on to the end for the smallest distance. Without it a sample is done once it is
              broken within eps.

    Returns the closest misclassified points (n, *shape) in the box, clean images where no start was
    found. Raises ValueError for steps below 1.

    Differs from the source:
    - The first direction is the best of all pixels up, all down and random blocks, and that of the
      signs toward a problem's start.
    - Without `minimize`, a sample that is too far to come within eps is given up, as by `Boundary`.
    - Some samples of a batch try directions while others bisect, so that a step of the batch is a
      query of each, and nothing waits for what a query showed.

    >>> from attacks.threat import ThreatModel
    >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)
    >>> x, y = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
    >>> problem = Problem(model, x, y, ThreatModel("linf", 0.2))
    >>> points = RayS(minimize=True)(problem)
    >>> round(float(problem.threat.distance(points, problem.x)), 2)  # the boundary is 0.1 away
    0.1
    """

    steps: int = 2000
    minimize: bool = False

    version: ClassVar[int] = 5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("rays: steps must be at least 1")

    @property
    def facts(self) -> Facts:
        """A minimal-norm attack under L-infinity."""
        first = (_STARTS + 1) * (1 + _HALVINGS)
        # What is left of the directions before a sample asks if it is done, and of the batch's
        # steps before it leaves.
        late = _UNASKED * (1 + _HALVINGS) + 8
        passes = 1 + first + self.steps + late
        return Facts("minimal-norm", ("linf",), passes=passes, minimises=self.minimize)

    def minimising(self) -> "RayS":
        """The same attack, which goes on to the smallest distance that it finds."""
        return replace(self, minimize=True)

    @torch.no_grad()
    def __call__(self, problem: Problem) -> Tensor:
        answer = problem.x.clone()
        rows, _ = standing(problem)
        if len(rows):
            answer[rows] = self._walk(problem.select(rows))
        return answer

    def _walk(self, problem: Problem) -> Tensor:
        budget = 0.0 if self.minimize else problem.threat.eps * (1 - 1e-6)
        state, width = _State.begin(problem), problem.threat.width
        if problem.start is not None:
            up = problem.start >= problem.x
            _try(problem, state, torch.where(up, 1.0, -1.0).to(problem.x.dtype), width)
        for start in range(_STARTS):
            _try(problem, state, _signs(problem, start), width)
        state.done = (state.radius <= budget) | state.radius.isinf()
        batch, step = Working(problem, state), 0
        order = _Order.of(problem.x, self.steps, bool(budget))
        while not due(step) or batch.retire(state.done):
            state.query(batch.problem, order, width, budget, self.steps)
            step += 1
        final = batch.finish()
        points = problem.threat.clamp(problem.x + per_sample(final.radius, problem.x) * final.sign)
        return torch.where(per_sample(final.radius.isfinite(), points), points, problem.x)


@dataclass(frozen=True)
class _Order:
    """The directions in the order in which samples try them, each sample by itself.

    begin, end  (m,), the pixels whose signs each of them flips.
    asks        (m,), bool, whether a sample that comes to it asks if it is done.
    doubled     (m,), bool, whether the number of directions before it is a power of two.
    doublings   (m,), of that number, that are still to come where a sample may be given up there;
                elsewhere infinite.
    """

    begin: Tensor
    end: Tensor
    asks: Tensor
    doubled: Tensor
    doublings: Tensor

    @classmethod
    def of(cls, x: Tensor, steps: int, gives_up: bool) -> "_Order":
        """All that samples like those of x can come to, who have so many queries."""
        rows = list(islice(_blocks(x[0].numel()), steps + _UNASKED + 1))
        begin, end, asks, doubled = torch.tensor(
            [(*row, number & (number - 1) == 0 < number) for number, row in enumerate(rows)]
        ).unbind(1)
        doublings = [
            math.log2(steps / number)
            if gives_up and is_power and _PATIENCE <= number < steps
            else math.inf
            for number, is_power in enumerate(doubled.tolist())
        ]
        whole = torch.stack([begin, end, asks, doubled]).to(x.device)
        to_come = torch.tensor(doublings, dtype=x.dtype, device=x.device)
        return cls(whole[0], whole[1], whole[2].bool(), whole[3].bool(), to_come)

    def flipped(self, sign: Tensor, turn: Tensor) -> Tensor:
        """Signs (n, *shape) with those turned that the directions of some numbers (n,) flip."""
        place = torch.arange(sign[0].numel(), device=sign.device)
        flips = (place >= self.begin[turn][:, None]) & (place < self.end[turn][:, None])
        return torch.where(flips.view_as(sign), -sign, sign)


def _blocks(size: int) -> Iterator[tuple[int, int, bool]]:
    """Blocks of so many pixels, from all of them to ever smaller ones: where each begins and ends,
    and whether samples ask before it if they are done."""
    level, block, tried = 0, 0, 0
    while True:
        asks = True
        for _ in range(1 if due(tried) else _UNASKED):
            begin, end = block * size >> level, (block + 1) * size >> level
            if end > begin:
                yield begin, end, asks
                asks, tried = False, tried + 1
            block += 1
            if block == 1 << level:
                block, level = 0, level + 1
                level = 0 if 1 << level > 2 * size else level


@dataclass
class _State(State):
    """Where samples are. Each tries one direction after the other, and bisects one that does
    better, so that all of them have a query to make at each step, whatever those before showed.

    sign    (n, *shape), the signs of the best direction.
    radius  (n,), how far along it the nearest misclassified point lies, infinite where none is
            known.
    spent   (n,), the queries so far.
    past    (n,), the radius when the number of directions tried last doubled.
    done    (n,), bool, who makes no more queries.
    turn    (n,), the number of the direction that is tried.
    halved  (n,), 0 before its first query, else that of its next bisection, from 1.
    inner, outer  (n,), the nearest point along it that may be, and that is misclassified.
    """

    sign: Tensor
    radius: Tensor
    spent: Tensor
    past: Tensor
    done: Tensor
    turn: Tensor
    halved: Tensor
    inner: Tensor
    outer: Tensor

    @classmethod
    def begin(cls, problem: Problem) -> "_State":
        unknown = far(problem.x)
        zeros, first = torch.zeros_like(unknown), torch.zeros_like(problem.y)
        return cls(
            torch.ones_like(problem.x), unknown, zeros, unknown, zeros.bool(), first, first, zeros,
            zeros,
        )  # fmt: skip

    def query(
        self, problem: Problem, order: _Order, width: float, budget: float, steps: int
    ) -> None:
        """The next query of every sample that is not done."""
        trial, first = order.flipped(self.sign, self.turn), self.halved == 0
        wanted = (self.radius * _NEARER).clamp_max(width)
        reach = torch.where(first, wanted, (self.inner + self.outer) / 2)
        wrong = _wrong(problem, trial, reach)
        self.spent = self.spent + ~self.done

        # A direction that does better is bisected; the others, and those that have been, end.
        self.outer = torch.where(wrong, reach, self.outer)
        self.inner = torch.where(wrong, self.inner, reach).where(~first, 0.0)
        self.halved = torch.where(first, wrong.long(), self.halved + 1)
        ended = ~self.done & torch.where(first, ~wrong, self.halved > _HALVINGS)
        better = ended & ~first
        self.sign = torch.where(per_sample(better, trial), trial, self.sign)
        self.radius = torch.where(better, self.outer, self.radius)

        # The next direction, unless there is enough, or no hope of it.
        self.turn, self.halved = self.turn + ended, self.halved.where(~ended, 0)
        doubled = ended & order.doubled[self.turn]
        lost = doubled & hopeless(self.radius, self.past, order.doublings[self.turn], budget)
        self.spent = torch.where(lost, float(steps), self.spent)
        self.past = torch.where(doubled, self.radius, self.past)
        enough = (self.radius <= budget) | (self.spent >= steps)
        self.done = self.done | (ended & order.asks[self.turn] & enough)


def _signs(problem: Problem, start: int) -> Tensor:
    """A first direction: up, down, or random by blocks that become smaller."""
    x = problem.x
    if start < 2:
        return torch.full_like(x, 1 - 2 * start)
    blocks = min(x[0].numel(), 4 ** (start - 1))
    draws = noise.uniform(problem.seed, problem.index, start, (blocks,))
    place = torch.arange(x[0].numel(), device=x.device) * blocks // x[0].numel()
    return torch.where(draws[:, place] < 0.5, -1.0, 1.0).to(x.dtype).view_as(x)


def _try(problem: Problem, state: _State, sign: Tensor, width: float) -> None:
    """Take a first direction (n, *shape) where a nearer point along it is misclassified."""
    wanted = (state.radius * _NEARER).clamp_max(width)
    rows = _wrong(problem, sign, wanted).nonzero().squeeze(1)
    if not len(rows):
        return
    chosen, sign = problem.select(rows), sign[rows]
    inner, outer = torch.zeros_like(wanted[rows]), wanted[rows]
    for _ in range(_HALVINGS):
        middle = (inner + outer) / 2
        wrong = _wrong(chosen, sign, middle)
        inner, outer = torch.where(wrong, inner, middle), torch.where(wrong, middle, outer)
    state.sign[rows], state.radius[rows] = sign, outer


def _wrong(problem: Problem, sign: Tensor, radius: Tensor) -> Tensor:
    points = problem.threat.clamp(problem.x + per_sample(radius, sign) * sign)
    return decided(problem.logits(points), problem.y)
