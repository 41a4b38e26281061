"""The Carlini-Wagner attacks in L2 and L-infinity."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.objectives import CLEAR, decided, margin
from attacks.problem import Facts, NoGradientError, Problem, climb, positions
from attacks.searches.angles import from_angle, half_width, to_angle
from attacks.searches.penalties import excess, slopes, squared_distance
from attacks.segment import pull
from attacks.smoothing import WARM, Cooling
from attacks.threat import ThreatModel, per_sample
from attacks.working import Closest, Working, due, far

# Pixels start at least this far, as an angle, from the ends of the box, where the sine is flat:
# 1/1600 of the box's width, enough to be moved and too little to matter. Less where all pixels
# together would be further from the known point than a step.
_OFF_THE_WALL = 0.05

# How often in each search a sample is asked whether its loss still falls, and by how much.
_ABORT_CHECKS = 10
_STILL_FALLING = 0.9999

# A first step, as a part of the distance that is already known.
_STRIDE = 0.1

# Bisections that pull what a search found toward its image.
_HALVINGS = 10


@dataclass(frozen=True)
class CarliniWagner:
    """Carlini and Wagner (2017): minimise distance + c * f(x') by Adam, L2 and L-infinity.

    f is how far the nearest other class is from leading, 0 once it leads by `confidence`. Distance
    is the squared L2 norm (section VI A), or in L-infinity what pixels move beyond a limit tau that
    falls as closer points are found (section VI C).

    steps          the most Adam steps of each search: MaxIter of the papers, up to 1,000,000.
    learning_rate  Adam's; default 0.01, and 10 / steps where that is more: few steps must be longer
                   to reach far enough.
    searches       binary search steps on c, per sample, starting at initial_const.
    initial_const  the first c, in units where at 1 distance outweighs f from eps on, and in
                   L-infinity from the limit on.
    confidence     by how much, in logits, another class must lead (kappa).
    abort_early    a sample whose loss stopped falling leaves its search early, and one that comes
                   closer too slowly to reach eps makes no further searches.
    minimize       go on to the end for the smallest distance. Without it a sample is done once it
                   is broken within eps.
    restarts       runs of all searches. The first begins at the problem's start, by default the
                   clean image; each further one at a random point of the ball.

    Returns the closest misclassified points (n, *shape) in the box, clean images where none was
    found. Raises ValueError for hyperparameters out of range.

    Differs from the source:
    - x' = mid + half * sin(w) in place of tanh. The hyperbolic tangent leaves pixels at exactly 0
      or 1, most of MNIST, without a usable gradient; the sine is only quadratically flat there.
    - Other classes are compared by distance, not by logit: each one's lead is divided by the dual
      norm of its gradient, which also frees c from the scale of the logits. Gradients are measured
      before each search, at the closest point known.
    - The binary search is on the logarithm of c, and in L2 a distance that was found bounds c: more
      than balances there is not needed. Each search begins at the closest point of those before it.
    - The learning rate falls along a half cosine in each search, and once a point is known, steps
      are in proportion to its distance. What a search found is pulled toward its image by
      bisection.
    - In L-infinity, tau is eps, or with minimize the smallest distance known, less two steps: 20%
      less at first and 0.2% at the end of a search, a fraction of that in later searches.
    - Early abort and all else is per sample, never over the batch.

    >>> from attacks.threat import ThreatModel
    >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)
    >>> x, y = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
    >>> problem = Problem(model, x, y, ThreatModel("l2", 0.2))
    >>> points = CarliniWagner(steps=100, minimize=True)(problem)
    >>> round(float(problem.threat.distance(points, problem.x)), 3)  # the boundary is 0.1 away
    0.1
    """

    steps: int = 500
    searches: int = 9
    initial_const: float = 2.0
    learning_rate: float | None = None
    confidence: float = 0.0
    abort_early: bool = True
    minimize: bool = False
    restarts: int = 1

    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.steps < 1 or self.searches < 1 or self.restarts < 1:
            raise ValueError("cw: steps, searches and restarts must be at least 1")
        if not (self.initial_const > 0 and self._rate > 0 and self.confidence >= 0):
            raise ValueError(
                "cw: initial_const and learning_rate must be above 0, confidence at least 0"
            )

    @property
    def facts(self) -> Facts:
        """A minimal-norm attack under L2 and L-infinity."""
        passes = self.restarts * self.searches * (1 + self.steps + _HALVINGS)
        return Facts("minimal-norm", passes=passes, minimises=self.minimize)

    def minimising(self) -> "CarliniWagner":
        """The same attack, which goes on to the smallest distance that it finds."""
        return replace(self, minimize=True)

    @property
    def _rate(self) -> float:
        """Adam's learning rate, in radians."""
        return max(0.01, 10 / self.steps) if self.learning_rate is None else self.learning_rate

    def __call__(self, problem: Problem) -> Tensor:
        budget = 0.0 if self.minimize else problem.threat.eps
        closest = Closest(problem.x.clone(), far(problem.x))
        batch = Working(problem, closest)
        for restart in range(self.restarts):
            if not len(batch):
                break
            start = self._start(batch.problem, closest.length, restart)
            closest.improve(self._run(batch.problem, start, budget))
            batch.retire(~(closest.length > budget))
        return batch.finish().points

    def _start(self, problem: Problem, best: Tensor, restart: int) -> Tensor:
        """Where a run begins: uniform in the ball of eps, or of the smallest distance known."""
        threat = problem.threat
        if restart == 0:
            return problem.x if problem.start is None else threat.clamp(problem.start)
        start = problem.random_start(restart)
        if not self.minimize:
            return start
        scale = torch.where(best.isfinite(), best / threat.eps, 1.0)
        return threat.clamp(problem.x + per_sample(scale, start) * (start - problem.x))

    def _run(self, problem: Problem, start: Tensor, budget: float) -> Closest:
        """All searches from a start (n, *shape). Each begins at the closest point of those before
        it, and with the c that these suggest."""
        threat = problem.threat
        slope, logits = _slopes(problem, start)
        known = threat.length(start - problem.x)
        length = torch.where(self._succeeds(problem, logits), known, math.inf).to(start.dtype)
        const = self._balance(threat, length)
        low, high = torch.zeros_like(const), torch.full_like(const, math.inf)
        state = _Bracket(start, length, const, low, high, slope)
        batch = Working(problem, state)
        if not batch.retire(~(length > budget)):
            return batch.finish()
        for search in range(self.searches):
            # Slopes are known where the first search begins.
            searched = batch.problem
            if search % 2 == 0:
                searched = _smoothed(searched, self.steps)
            if search:
                state.slope, _ = _slopes(batch.problem, state.points)
            before = state.length
            try:
                reached = self._search(searched, state, budget, _STRIDE / (1 + search))
            except NoGradientError:
                if search == 0:
                    raise
                break  # it has some when it is smoothed
            reached = self._pulled(batch.problem, reached, budget)
            state.improve(reached)
            # Binary search: a c that was enough bounds c from above, one that was not from below.
            enough = reached.length.isfinite()
            state.high = torch.where(enough, state.const.minimum(state.high), state.high)
            state.low = torch.where(enough, state.low, state.const.maximum(state.low))
            state.const = self._next_const(threat, state)
            done = ~(state.length > budget)
            if self.abort_early and budget and search:
                # As much closer in each search to come would not do.
                gain, need = before - state.length, state.length - budget
                in_time = gain * (self.searches - 1 - search) >= need
                done |= ~(in_time | before.isinf())
            if not batch.retire(done):
                break
        return batch.finish()

    def _balance(self, threat: ThreatModel, best: Tensor) -> Tensor:
        """The c at which distance would outweigh f from a multiple of the known distance on."""
        # In L-infinity what is within the limit costs nothing, so c has no such scale.
        scale = torch.where(best.isfinite(), best / threat.eps, 1.0)
        return self.initial_const * (scale if threat.norm == "l2" else torch.ones_like(best))

    def _next_const(self, threat: ThreatModel, state: "_Bracket") -> Tensor:
        """The c (n,) of the next search: between those that bound it, on a logarithmic scale."""
        low, high = state.low, state.high
        const = torch.minimum(self._balance(threat, state.length), high)
        const = torch.where(const > low, const, (low * high).sqrt())
        return torch.where(high.isinf(), low * 10, const)

    def _pulled(self, problem: Problem, reached: Closest, budget: float) -> Closest:
        """What a search reached, with the points that are still beyond the budget pulled closer."""
        # With a confidence to keep, the boundary is not where to go.
        if self.confidence:
            return reached
        beyond = positions((reached.length > budget) & reached.length.isfinite())
        if not len(beyond):
            return reached
        far = problem.select(beyond)
        points = pull(far, reached.points[beyond], _HALVINGS)
        reached.points[beyond] = points
        reached.length[beyond] = problem.threat.length(points - far.x)
        return reached

    def _search(self, problem: Problem, begin: "_Bracket", budget: float, stride: float) -> Closest:
        """One run of Adam from the closest points known: the closest points that it meets."""
        threat, half = problem.threat, problem.threat.width / 2
        known = begin.length
        if threat.norm == "linf" and budget:
            # The walk is within the budget, so its steps are in proportion to that.
            known = known.clamp_max(budget)
        # How far a step goes in which all angles change by 1.
        reach = float(threat.length(torch.zeros_like(begin.points[:1]) + half_width(threat)).amax())
        wall = (known * (2 * stride / reach)).sqrt().clamp_max(_OFF_THE_WALL)
        angle = to_angle(begin.points, threat, wall)
        state = _Descent.begin(problem, angle, begin.const, begin.slope, known)
        batch = Working(problem, state)
        check = max(1, self.steps // _ABORT_CHECKS)
        # Losses under a limit that falls do not compare.
        aborting = self.abort_early and (threat.norm == "l2" or budget > 0)
        for step in range(self.steps):
            # How far this step goes, and in L-infinity how far pixels may be.
            decay = 0.505 + 0.495 * math.cos(math.pi * step / self.steps)
            goal = torch.minimum(state.known, state.length)
            size = (goal * (stride / reach)).clamp_max(self._rate) * decay
            limit = (goal - 2 * half * size).clamp_min(0)

            # The loss where the walk is, and whether that point is the closest misclassified one.
            trial = from_angle(state.angle, batch.problem.threat)
            loss, gradient, logits = self._loss(batch.problem, trial, state, limit)
            distance = threat.length(trial - batch.problem.x)
            success = self._succeeds(batch.problem, logits)
            state.improve(Closest(trial, torch.where(success, distance, math.inf)))
            state.lowest = torch.minimum(state.lowest, loss)
            state.descend(gradient * state.angle.cos(), size, step)

            # What is within the budget leaves, and what has stopped to fall.
            checking = aborting and step % check == check - 1
            if due(step) or checking:
                done = ~(state.length > budget)
                if checking:
                    done |= ~(state.lowest < _STILL_FALLING * state.before)
                    state.before = state.lowest
                if not batch.retire(done):
                    break
        return batch.finish()

    def _loss(
        self, problem: Problem, trial: Tensor, state: "_Descent", limit: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (n,) at trial points (n, *shape), its gradient in their pixels, and the logits.
        In L-infinity, distance is what pixels are beyond the limit (n,)."""

        def hinge(logits: Tensor, y: Tensor) -> Tensor:
            largest = logits.detach().abs().nan_to_num(0, 0, 0).amax(1, keepdim=True)
            aim = largest * CLEAR + self.confidence
            leads = (logits - logits.gather(1, y[:, None]) - aim) / state.slope
            return (-leads.scatter(1, y[:, None], -math.inf).amax(1)).clamp_min(0)

        push, lack, logits = climb(problem, trial, hinge)
        delta = trial - problem.x
        if problem.threat.norm == "l2":
            price, back = squared_distance(problem.threat, delta)
        else:
            price, back = excess(delta, limit, push)
        return price + state.const * lack, back + per_sample(state.const, push) * push, logits

    def _succeeds(self, problem: Problem, logits: Tensor) -> Tensor:
        """Where another class leads, by the confidence at least: bool (n,)."""
        success = decided(logits, problem.y)
        if self.confidence:
            success &= margin(logits, problem.y) >= self.confidence
        return success


@dataclass
class _Bracket(Closest):
    """What is known between searches: the next c, the largest that was too small and the smallest
    that was enough (n,), and how fast the lead of each class grows with distance (n, classes)."""

    const: Tensor
    low: Tensor
    high: Tensor
    slope: Tensor


@dataclass
class _Descent(Closest):
    """How far a search is: the pixels as angles, with Adam's mean and square of their gradients
    (n, *shape); the c and the slopes of the search, and the distance known before it; the lowest
    loss so far, and what it was when last it was asked whether it falls (n,)."""

    angle: Tensor
    mean: Tensor
    square: Tensor
    const: Tensor
    slope: Tensor
    known: Tensor
    lowest: Tensor
    before: Tensor

    @classmethod
    def begin(
        cls, problem: Problem, angle: Tensor, const: Tensor, slope: Tensor, known: Tensor
    ) -> "_Descent":
        nothing, unknown = torch.zeros_like(angle), far(problem.x)
        return cls(
            problem.x, unknown, angle, nothing, nothing.clone(), const, slope, known, unknown,
            unknown,
        )  # fmt: skip

    def descend(self, gradient: Tensor, size: Tensor, step: int) -> None:
        """Adam's step, its number `step` from 0 on, of length `size` (n,)."""
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = (self.square / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
        pace = size / (1 - 0.9 ** (step + 1))
        self.angle = self.angle - per_sample(pace, self.angle) * self.mean / scale


def _smoothed(problem: Problem, steps: int) -> Problem:
    """The problem with smoothed gradients, for so many steps. These pass what masks the boundary;
    the searches in between converge on the network's own."""
    return replace(problem, cooling=Cooling(*WARM, steps))


def _slopes(problem: Problem, points: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes of all classes at some points, smoothed where the network has none of its own."""
    try:
        return slopes(problem, points)
    except NoGradientError:
        return slopes(_smoothed(problem, 1), points)
