"""The boundary attack: a walk along the decision boundary that sees decisions alone."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from attacks import noise
from attacks.objectives import decided
from attacks.problem import Facts, Problem, positions
from attacks.segment import pull
from attacks.threat import per_sample
from attacks.working import State, Working, due, hopeless, standing

# Rows and columns of the grids that noise is drawn on, in turn; None: one draw per pixel.
_GRIDS = (7, 14, None)

# Short walks from different starts: how many, and the most steps of each, which has a 12th of all
# at most. For the smallest distance more and longer ones, that rank boundaries of several classes.
_SCOUTS, _SCOUTING = 4, 100
_SCOUTS_TO_MINIMIZE, _SCOUTING_TO_MINIMIZE = 9, 300
_SHARE = 12

# Starts that each scout tries. Each is tried at this part of the closest distance known, at first
# and at most: it is squared where a try succeeds, and its root where one fails.
_TRIES = 25
_CLOSER, _CLOSEST = 0.5, 0.95
_HALVINGS = 10

# Length of a sideways step, as a part of the distance: at first, at most, and below which a walk
# has converged (a step gains half of its square).
_FIRST, _LONGEST, _CONVERGED = 0.3, 1.0, 1e-3

# Steps that should succeed, and how fast the length follows (on its logarithm).
_SUCCESS = 0.25
_FOLLOW = 0.2

# Steps of a walk at which it is first given up.
_PATIENCE = 256

# The weight of noise follows the perturbation on a grid of at most so many rows and columns (half
# of the image's), from this much where there is none to about 1 where it is largest.
_GRID, _LEAST_WEIGHT = 14, 0.1

# Streams of noise at which the starts begin, beyond those of any walk.
_START = 1 << 40


@dataclass(frozen=True)
class Boundary:
    """Brendel, Rauber and Bethge (2018), section 2: from a misclassified point, random steps
    sideways and toward the image, kept where the point stays misclassified. L2.

    steps     of all walks of a sample, at one forward each.
    minimize  go on to the end for the smallest distance. Without it a sample is done once it is
              broken within eps.

    Walks from `problem.start` where that is misclassified. Elsewhere from random images: short
    walks from several of them, and from the closest of these a long one. Returns the closest
    misclassified points (n, *shape) in the box, clean images where no start was found. Like any
    local search it ends at the nearest boundary of some class, not always of the nearest class.
    Raises ValueError for steps below 1.

    Differs from the source:
    - A sideways step of d, as a part of the distance, is followed by an inward one to 1 / sqrt(1 +
      d^2) of the distance. So there is one length to adapt, per sample and kind of noise, until a
      quarter of the steps succeed, and no forward is spent on the sideways step alone.
    - A direction is tried twice: the other way where it failed, once more where it succeeded.
    - On images, noise is smooth two times in three: drawn on a grid of 7 or 14 rows and columns and
      interpolated (after Guo et al. 2018). All of it is weighted by the size of the perturbation
      around each pixel (after Brunner et al. 2019), and pushes no pixel out of the box.
    - Without `minimize`, a sample that is too far to come within eps is given up. The logarithm of
      the distance falls ever more slowly, by less with each doubling of the steps; so when a walk
      has taken 256 steps, 512 and so on, it ends if twice the gain of the last doubling would not
      suffice in each doubling that is left.
    - Random images compete: each is tried on its segment nearer than the closest one before, and
      the last is pulled onto the boundary by bisection.

    >>> from attacks.threat import ThreatModel
    >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)
    >>> x, y = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
    >>> problem = Problem(model, x, y, ThreatModel("l2", 0.2))
    >>> points = Boundary(steps=500, minimize=True)(problem)
    >>> round(float(problem.threat.distance(points, problem.x)), 2)  # the boundary is 0.1 away
    0.1
    """

    steps: int = 5000
    minimize: bool = False

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("boundary: steps must be at least 1")

    @property
    def facts(self) -> Facts:
        """A minimal-norm attack under L2."""
        passes = 2 + self._scouts[0] * (_TRIES + _HALVINGS) + self.steps
        return Facts("minimal-norm", ("l2",), passes=passes, minimises=self.minimize)

    def minimising(self) -> "Boundary":
        """The same attack, which goes on to the smallest distance that it finds."""
        return replace(self, minimize=True)

    @property
    def _scouts(self) -> tuple[int, int]:
        """The number of scouting walks, and the steps of each."""
        if self.minimize:
            return _SCOUTS_TO_MINIMIZE, min(self.steps // _SHARE, _SCOUTING_TO_MINIMIZE)
        return _SCOUTS, min(self.steps // _SHARE, _SCOUTING)

    @torch.no_grad()
    def __call__(self, problem: Problem) -> Tensor:
        answer = problem.x.clone()
        # Float rounding must not put a point that counts as inside the ball outside of it.
        budget = 0.0 if self.minimize else problem.threat.eps * (1 - 1e-6)
        rows, _ = standing(problem)
        if problem.start is not None and len(rows):
            chosen = problem.select(rows)
            start = problem.threat.clamp(problem.start[rows])
            hit = decided(chosen.logits(start), chosen.y)
            begun = positions(hit)
            if len(begun):
                chosen = chosen.select(begun)
                state = _pulled(chosen, _State.at(chosen, start[begun]), budget)
                answer[rows[begun]] = _walk(chosen, state, self.steps, 0, budget).points
                rows = rows[~hit]
        if len(rows):
            answer[rows] = self._scouted(problem.select(rows), budget)
        return answer

    def _scouted(self, problem: Problem, budget: float) -> Tensor:
        """Short walks from several starts, and a long one on from the closest."""
        best = _State.at(problem, problem.x)
        best.length.fill_(math.inf)
        rows = torch.arange(len(problem), device=best.points.device)
        scouts, scouting = self._scouts
        for scout in range(scouts):
            chosen = problem.select(rows)
            state = _pulled(chosen, _start(chosen, scout), budget)
            state = _walk(chosen, state, scouting, scout * self.steps, budget)
            closer = positions(state.length < best.length[rows])
            best.put(rows[closer], state.select(closer))
            rows = rows[best.length[rows] > budget]
            if not len(rows):
                return best.points
        left = self.steps - scouts * scouting
        return _walk(problem, best, left, scouts * self.steps, budget).points


@dataclass
class _State(State):
    """Where samples are: misclassified points (n, *shape), their distances (n,), which are infinite
    where no such point is known, and the lengths of sideways steps (n, grids)."""

    points: Tensor
    length: Tensor
    size: Tensor

    @classmethod
    def at(cls, problem: Problem, points: Tensor) -> "_State":
        length = problem.threat.length(points - problem.x)
        grids = len(_grids(points))
        return cls(points.clone(), length, length.new_full((len(length), grids), _FIRST))


@dataclass
class _Walk(_State):
    """Where a walk is, and the distances (n,) when its number of steps last doubled."""

    past: Tensor


def _grids(x: Tensor) -> tuple[int | None, ...]:
    return _GRIDS if x.dim() == 4 else (None,)


def _pulled(problem: Problem, state: _State, budget: float) -> _State:
    """The same state, with the points that are beyond the budget pulled onto the boundary."""
    going = positions(state.length.isfinite() & (state.length > budget))
    if len(going):
        chosen = problem.select(going)
        state.put(going, _State.at(chosen, pull(chosen, state.points[going], _HALVINGS)))
    return state


def _walk(problem: Problem, begin: _State, steps: int, stream: int, budget: float) -> _State:
    """The walk, with noise from `stream` on; samples that are done leave it."""
    state = _Walk(begin.points, begin.length, begin.size, begin.length)
    batch = Working(problem, state)
    grids = _grids(begin.points)
    turns = torch.arange(len(grids), device=begin.points.device)
    for step in range(steps):
        turn = step // 2 % len(grids)
        if step % 2 == 0:
            # Steps that are powers of two, at which their number has doubled, are all due.
            if due(step):
                done = (state.length <= budget) | state.length.isinf()
                done |= state.size.amax(1) <= _CONVERGED
                if step and step & (step - 1) == 0:
                    if budget and step >= _PATIENCE:
                        doublings = math.log2(steps / step)
                        done |= hopeless(state.length, state.past, doublings, budget)
                    state.past = state.length
                if not batch.retire(done):
                    break
            push = _noise(batch.problem, stream + step // 2, grids[turn])
            push = push * _weight(state.points - batch.problem.x)
        trial = _propose(batch.problem, state, push, state.size[:, turn])
        reached = problem.threat.length(trial - batch.problem.x)
        hit = decided(batch.problem.logits(trial), batch.problem.y) & (reached < state.length)
        state.points = torch.where(per_sample(hit, trial), trial, state.points)
        state.length = torch.where(hit, reached, state.length)
        growth = torch.exp(_FOLLOW * (hit[:, None].to(trial.dtype) - _SUCCESS))
        size = (state.size * growth).clamp_max(_LONGEST)
        state.size = torch.where(turns == turn, size, state.size)
        # Once more the same way where that succeeded, else the other way.
        push = torch.where(per_sample(hit, push), push, -push)
    return batch.finish()


def _propose(problem: Problem, state: _State, push: Tensor, size: Tensor) -> Tensor:
    """The points after a sideways step of `size` along `push` and the inward step after it."""
    threat, x, points, length = problem.threat, problem.x, state.points, state.length
    tiny = torch.finfo(x.dtype).tiny
    delta = points - x
    out = ((points <= threat.lower) & (push < 0)) | ((points >= threat.upper) & (push > 0))
    side = torch.where(out, 0.0, push)
    unit = delta / per_sample(length, delta)
    side = side - per_sample((side * unit).flatten(1).sum(1), side) * unit
    side = side * per_sample(size / threat.length(side).clamp_min(tiny), side)
    target = length / (1 + size.square()).sqrt()
    shrink = target / (1 + size.square()).sqrt()
    delta = threat.clamp(x + per_sample(shrink, x) * (unit + side)) - x
    # What the box took is given to the other pixels.
    return threat.clamp(x + delta * per_sample(target / threat.length(delta).clamp_min(tiny), x))


def _weight(delta: Tensor) -> Tensor:
    """How much each pixel may move, (n, 1, h, w): the perturbation's size around it."""
    if delta.dim() != 4:
        return delta.new_ones(())
    size = delta.abs().mean(1, keepdim=True)
    shape = min(_GRID, -(-delta.shape[2] // 2)), min(_GRID, -(-delta.shape[3] // 2))
    around = _smooth(functional.adaptive_avg_pool2d(size, shape), delta)
    largest = around.flatten(1).amax(1).clamp_min(torch.finfo(delta.dtype).tiny)
    return around / per_sample(largest, around) + _LEAST_WEIGHT


def _smooth(coarse: Tensor, like: Tensor) -> Tensor:
    """A coarse grid (n, c, rows, columns) brought to the size of images by interpolation."""
    size = tuple(like.shape[2:])
    return functional.interpolate(coarse, size, mode="bilinear", align_corners=False)


def _noise(problem: Problem, stream: int, grid: int | None) -> Tensor:
    """Normal noise shaped as the images: of each pixel, or smooth."""
    if grid is None:
        return problem.normal(stream)
    channels, height, width = problem.x.shape[1:]
    shape = (channels, min(grid, height), min(grid, width))
    coarse = noise.normal(problem.seed, problem.index, stream, shape)
    return _smooth(coarse.to(problem.x.dtype), problem.x)


def _start(problem: Problem, scout: int) -> _State:
    """The closest of some random images that are misclassified."""
    x, threat = problem.x, problem.threat
    state = _State.at(problem, x)
    state.length.fill_(math.inf)
    closer = torch.full_like(state.length, _CLOSER)
    for attempt in range(_TRIES):
        delta = _guess(problem, scout * _TRIES + attempt) - x
        reach = threat.length(delta).clamp_min(torch.finfo(x.dtype).tiny)
        delta = delta * per_sample((closer * state.length / reach).clamp_max(1), delta)
        trial = threat.clamp(x + delta)
        hit = decided(problem.logits(trial), problem.y)
        state.points = torch.where(per_sample(hit, x), trial, state.points)
        state.length = torch.where(hit, threat.length(delta), state.length)
        closer = torch.where(hit, closer.square(), closer.sqrt().clamp_max(_CLOSEST))
    return state


def _guess(problem: Problem, attempt: int) -> Tensor:
    """A random image: uniform in the box, smooth, or the image with smooth noise, in turn."""
    threat = problem.threat
    width, stream = threat.upper - threat.lower, _START + attempt
    if attempt % 3 == 0:
        shape = tuple(problem.x.shape[1:])
        unit = noise.uniform(problem.seed, problem.index, stream, shape).to(problem.x.dtype)
        return threat.clamp(threat.lower + width * unit)
    grid = _GRIDS[attempt % 2] if problem.x.dim() == 4 else None
    push = _noise(problem, stream, grid)
    middle = problem.x if attempt % 3 == 1 else (threat.lower + threat.upper) / 2
    return threat.clamp(middle + width / 2 * push)
