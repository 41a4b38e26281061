"""The Carlini-Wagner attacks in L2 and L-infinity."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.objectives import decided, margin
from attacks.problem import Facts, Problem, climb, due
from attacks.searches.penalties import excess, slopes, squared_distance
from attacks.segment import pull
from attacks.threat import ThreatModel, per_sample

# Pixels start at least this far, as an angle, from the ends of the box, where the sine is flat:
# 1/1600 of the box's width, enough to be moved and too little to matter. Less where all pixels
# together would be further from the known point than a step.
_OFF_THE_WALL = 0.05

# By how much of the largest logit another class must lead: a little more than `decided` asks.
_CLEAR = 40 * torch.finfo(torch.float32).eps

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
    """

    steps: int = 500
    searches: int = 9
    initial_const: float = 2.0
    learning_rate: float | None = None
    confidence: float = 0.0
    abort_early: bool = True
    minimize: bool = False
    restarts: int = 1

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.searches < 1 or self.restarts < 1:
            raise ValueError("cw: steps, searches and restarts must be at least 1")
        if not (self.initial_const > 0 and self._rate > 0 and self.confidence >= 0):
            raise ValueError(
                "cw: initial_const and learning_rate must be above 0, confidence at least 0"
            )

    @property
    def facts(self) -> Facts:
        """A minimal-norm attack under both norms."""
        passes = self.restarts * self.searches * (1 + self.steps + _HALVINGS)
        return Facts("minimal-norm", passes=passes, minimises=self.minimize)

    def minimising(self) -> "CarliniWagner":
        """The same attack, which goes on to the smallest distance that it finds."""
        return replace(self, minimize=True)

    @property
    def _rate(self) -> float:
        return max(0.01, 10 / self.steps) if self.learning_rate is None else self.learning_rate

    def __call__(self, problem: Problem) -> Tensor:
        budget = 0.0 if self.minimize else problem.threat.eps
        answer = problem.x.clone()
        best = _unknown(problem.x)
        rows = torch.arange(len(problem), device=answer.device)
        for restart in range(self.restarts):
            if not len(rows):
                break
            part = problem.select(rows)
            start = self._start(part, best[rows], restart)
            length, points = self._run(part, start, budget)
            closer = length < best[rows]
            best[rows] = torch.where(closer, length, best[rows])
            answer[rows] = torch.where(per_sample(closer, points), points, answer[rows])
            rows = rows[best[rows] > budget]
        return answer

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

    def _run(self, problem: Problem, start: Tensor, budget: float) -> tuple[Tensor, Tensor]:
        """All searches from a start: each sample's smallest distance (infinite: none) and point."""
        threat = problem.threat
        slope, logits = slopes(problem, start)
        known = threat.length(start - problem.x)
        best = torch.where(self._succeeds(problem, logits), known, math.inf).to(start.dtype)
        answer = start.clone()
        const = self._balance(threat, best)
        low, high = torch.zeros_like(const), torch.full_like(const, math.inf)
        rows = (best > budget).nonzero().squeeze(1)
        slope = slope[rows]
        for search in range(self.searches):
            if not len(rows):
                break
            part, before = problem.select(rows), best[rows]
            if search:
                slope, _ = slopes(part, answer[rows])
            stride = _STRIDE / (1 + search)
            length, points = self._search(
                part, answer[rows], const[rows], slope, before, budget, stride
            )
            length, points = self._pulled(part, length, points, budget)
            closer = length < before
            best[rows] = torch.where(closer, length, before)
            answer[rows] = torch.where(per_sample(closer, points), points, answer[rows])
            found = length.isfinite()
            high[rows] = torch.where(found, const[rows].minimum(high[rows]), high[rows])
            low[rows] = torch.where(found, low[rows], const[rows].maximum(low[rows]))
            const = torch.minimum(self._balance(threat, best), high)
            const = torch.where(const > low, const, (low * high).sqrt())
            const = torch.where(high.isinf(), low * 10, const)
            keep = best[rows] > budget
            if self.abort_early and budget and search:
                # As much closer in each search to come would not do.
                need = best[rows] - budget
                gain = before - best[rows]
                keep &= (gain * (self.searches - 1 - search) >= need) | before.isinf()
            rows = rows[keep]
        return best, answer

    def _balance(self, threat: ThreatModel, best: Tensor) -> Tensor:
        """The c at which distance would outweigh f from a multiple of the known distance on."""
        # In L-infinity what is within the limit costs nothing, so c has no such scale.
        scale = torch.where(best.isfinite(), best / threat.eps, 1.0)
        return self.initial_const * (scale if threat.norm == "l2" else torch.ones_like(best))

    def _pulled(
        self, problem: Problem, length: Tensor, points: Tensor, budget: float
    ) -> tuple[Tensor, Tensor]:
        """Distances and points of the search, those still beyond the budget pulled closer."""
        # With a confidence to keep, the boundary is not where to go.
        beyond = (length > budget) & length.isfinite()
        if self.confidence or not bool(beyond.any()):
            return length, points
        part = problem.select(beyond)
        points[beyond] = pull(part, points[beyond], _HALVINGS)
        length[beyond] = problem.threat.length(points[beyond] - part.x)
        return length, points

    def _search(
        self,
        problem: Problem,
        start: Tensor,
        const: Tensor,
        slope: Tensor,
        known: Tensor,
        budget: float,
        stride: float,
    ) -> tuple[Tensor, Tensor]:
        """One run of Adam: the distance (infinite where none) and point of each sample's best."""
        threat, half = problem.threat, _half(problem.threat)
        if threat.norm == "linf" and budget:
            # The walk is within the budget, so its steps are in proportion to that.
            known = known.clamp_max(budget)
        # How far a step goes in which all angles change by 1.
        reach = float(threat.length(torch.full_like(start[:1], half)))
        wall = (known * (2 * stride / reach)).sqrt().clamp_max(_OFF_THE_WALL)
        w = _to_angle(start, threat, wall)
        mean, square = torch.zeros_like(w), torch.zeros_like(w)
        best, points = _unknown(start), problem.x.clone()
        lowest, before = best.clone(), best.clone()
        rows = torch.arange(len(problem), device=w.device)
        final, answer = best.clone(), points.clone()
        check = max(1, self.steps // _ABORT_CHECKS)
        # Losses under a limit that falls do not compare.
        aborting = self.abort_early and (threat.norm == "l2" or budget > 0)
        for step in range(self.steps):
            decay = 0.505 + 0.495 * math.cos(math.pi * step / self.steps)
            goal = torch.minimum(known, best)
            size = (goal * (stride / reach)).clamp_max(self._rate) * decay
            limit = (goal - 2 * half * size).clamp_min(0)
            trial = _from_angle(w, threat)
            loss, gradient, logits = self._descent(problem, trial, const, slope, limit)
            length = threat.length(trial - problem.x)
            closer = self._succeeds(problem, logits) & (length < best)
            best = torch.where(closer, length, best)
            points = torch.where(per_sample(closer, trial), trial, points)
            lowest = torch.minimum(lowest, loss)
            checking = aborting and step % check == check - 1
            gradient *= w.cos()
            if due(step) or checking:
                keep = best > budget
                if checking:
                    keep &= lowest < _STILL_FALLING * before
                    before = lowest
                if not bool(keep.all()):
                    done = ~keep
                    final[rows[done]], answer[rows[done]] = best[done], points[done]
                    if not bool(keep.any()):
                        return final, answer
                    problem, rows = problem.select(keep), rows[keep]
                    w, mean, square, gradient, const, slope, known, size = (
                        state[keep]
                        for state in (w, mean, square, gradient, const, slope, known, size)
                    )
                    best, points, lowest, before = (
                        state[keep] for state in (best, points, lowest, before)
                    )
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            scale = (square / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
            pace = size / (1 - 0.9 ** (step + 1))
            w = w - per_sample(pace, w) * mean / scale
        final[rows], answer[rows] = best, points
        return final, answer

    def _descent(
        self, problem: Problem, trial: Tensor, const: Tensor, slope: Tensor, limit: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss at the trial points, its gradient in their pixels, and the logits."""

        def hinge(logits: Tensor, y: Tensor) -> Tensor:
            largest = logits.detach().abs().nan_to_num(0, 0, 0).amax(1, keepdim=True)
            aim = largest * _CLEAR + self.confidence
            leads = (logits - logits.gather(1, y[:, None]) - aim) / slope
            return (-leads.scatter(1, y[:, None], -math.inf).amax(1)).clamp_min(0)

        push, lack, logits = climb(problem, trial, hinge)
        delta = trial - problem.x
        if problem.threat.norm == "l2":
            price, back = squared_distance(problem.threat, delta)
        else:
            price, back = excess(delta, limit, push)
        return price + const * lack, back + per_sample(const, push) * push, logits

    def _succeeds(self, problem: Problem, logits: Tensor) -> Tensor:
        success = decided(logits, problem.y)
        if self.confidence:
            success &= margin(logits, problem.y) >= self.confidence
        return success


def _unknown(x: Tensor) -> Tensor:
    """An infinite distance for each sample."""
    return x.new_full((len(x),), math.inf)


def _half(threat: ThreatModel) -> float:
    return (threat.upper - threat.lower) / 2


def _to_angle(x: Tensor, threat: ThreatModel, wall: Tensor) -> Tensor:
    unit = (x - threat.lower) / _half(threat) - 1
    edge = per_sample(math.pi / 2 - wall, x)
    return torch.minimum(torch.maximum(unit.clamp(-1, 1).asin(), -edge), edge)


def _from_angle(w: Tensor, threat: ThreatModel) -> Tensor:
    return threat.clamp((w.sin() + 1) * _half(threat) + threat.lower)
