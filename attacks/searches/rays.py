"""A decision-based walk within L-infinity: signs flipped block by block."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks import noise
from attacks.objectives import decided
from attacks.problem import Facts, Problem
from attacks.threat import per_sample
from attacks.working import State, Working, due, hopeless, standing

# Starts that are tried: all pixels up, all down, and random signs of blocks.
_STARTS = 8

# Bisections of the radius along a direction that does better.
_HALVINGS = 8

# Directions after which a walk is first given up.
_PATIENCE = 128

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

    version: ClassVar[int] = 4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("rays: steps must be at least 1")

    @property
    def facts(self) -> Facts:
        """A minimal-norm attack under L-infinity."""
        passes = 1 + _STARTS * (1 + _HALVINGS) + self.steps + _HALVINGS
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
        state = _State.begin(problem)
        if problem.start is not None:
            up = problem.start >= problem.x
            _try(problem, state, torch.where(up, 1.0, -1.0).to(problem.x.dtype))
        for start in range(_STARTS):
            _try(problem, state, _signs(problem, start))
        state.spent = torch.zeros_like(state.spent)
        batch = Working(problem, state)
        size = problem.x[0].numel()
        level, block, step = 0, 0, 0
        while batch.retire(_done(state, budget, self.steps)):
            # Retiring samples copies the batch, so that happens every fourth time at most.
            for _ in range(1 if due(step) else 4):
                low, high = block * size >> level, (block + 1) * size >> level
                if high > low:
                    trial = state.sign.clone().flatten(1)
                    trial[:, low:high] *= -1
                    _try(batch.problem, state, trial.view_as(state.sign))
                    step += 1
                    if step & (step - 1) == 0:
                        if budget and _PATIENCE <= step < self.steps:
                            doublings = math.log2(self.steps / step)
                            far = hopeless(state.radius, state.past, doublings, budget)
                            state.spent = torch.where(far, float(self.steps), state.spent)
                        state.past = state.radius.clone()
                block += 1
                if block == 1 << level:
                    block, level = 0, level + 1
                    level = 0 if 1 << level > 2 * size else level
        final = batch.finish()
        points = problem.threat.clamp(problem.x + per_sample(final.radius, problem.x) * final.sign)
        return torch.where(per_sample(final.radius.isfinite(), points), points, problem.x)


@dataclass
class _State(State):
    """The best direction of each sample, its signs (n, *shape); how far along it the nearest
    misclassified point lies, infinite where none is known; the queries so far (n,); and where the
    nearest lay when the number of directions tried last doubled (n,)."""

    sign: Tensor
    radius: Tensor
    spent: Tensor
    past: Tensor

    @classmethod
    def begin(cls, problem: Problem) -> "_State":
        far = problem.x.new_full((len(problem),), math.inf)
        return cls(torch.ones_like(problem.x), far, torch.zeros_like(far), far.clone())


def _done(state: _State, budget: float, steps: int) -> Tensor:
    return (state.radius <= budget) | (state.spent >= steps) | state.radius.isinf()


def _signs(problem: Problem, start: int) -> Tensor:
    """A first direction: up, down, or random by blocks that become smaller."""
    x = problem.x
    if start < 2:
        return torch.full_like(x, 1 - 2 * start)
    blocks = min(x[0].numel(), 4 ** (start - 1))
    draws = noise.uniform(problem.seed, problem.index, start, (blocks,))
    place = torch.arange(x[0].numel(), device=x.device) * blocks // x[0].numel()
    return torch.where(draws[:, place] < 0.5, -1.0, 1.0).to(x.dtype).view_as(x)


def _try(problem: Problem, state: _State, sign: Tensor) -> None:
    """Take a direction (n, *shape) where a nearer point along it is misclassified."""
    width = problem.threat.width
    wanted = (state.radius * _NEARER).clamp_max(width)
    rows = _wrong(problem, sign, wanted).nonzero().squeeze(1)
    state.spent += 1
    if not len(rows):
        return
    chosen, sign = problem.select(rows), sign[rows]
    inner, outer = torch.zeros_like(wanted[rows]), wanted[rows]
    for _ in range(_HALVINGS):
        middle = (inner + outer) / 2
        wrong = _wrong(chosen, sign, middle)
        inner, outer = torch.where(wrong, inner, middle), torch.where(wrong, middle, outer)
    state.sign[rows], state.radius[rows] = sign, outer
    state.spent[rows] += _HALVINGS


def _wrong(problem: Problem, sign: Tensor, radius: Tensor) -> Tensor:
    points = problem.threat.clamp(problem.x + per_sample(radius, sign) * sign)
    return decided(problem.logits(points), problem.y)
