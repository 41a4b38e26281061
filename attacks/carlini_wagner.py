"""The Carlini-Wagner attack in L2."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.objectives import decided, margin
from attacks.problem import Family, Problem, due
from attacks.segment import pull
from attacks.threat import Norm, ThreatModel, per_sample

# Pixels start at least this far, as an angle, from the ends of the box, where the sine is flat:
# 1/1600 of the box's width, enough to be moved and too little to matter.
_OFF_THE_WALL = 0.05

# How often in each search a sample is asked whether its loss still falls, and by how much.
_ABORT_CHECKS = 10
_STILL_FALLING = 0.9999

# A step of Adam moves each angle by about the learning rate, so a pixel by half of it. With this
# factor a first step is a tenth of the distance that is already known.
_STRIDE = 0.2

# Classes whose slope is measured, at a backward pass each, and the smallest slope that is believed,
# as a part of the largest: where a gradient vanishes, distance says nothing.
_MOST_CLASSES = 10
_LEAST_SLOPE = 0.1

# Bisections that pull what a search found toward its image.
_HALVINGS = 10


@dataclass(frozen=True)
class CarliniWagner:
    """Carlini and Wagner (2017), section VI A: minimise ||x' - x||^2 + c * f(x') by Adam.

    f is how far the nearest other class is from leading, 0 once it leads by `confidence`.

    steps          Adam steps of each search ("iterations").
    learning_rate  Adam's; default 0.01, and 10 / steps where that is more: few steps must be longer
                   to reach far enough.
    searches       binary search steps on c, per sample, starting at initial_const.
    confidence     by how much, in logits, another class must lead (kappa).
    abort_early    a sample whose loss stopped falling leaves its search early.
    minimize       go on to the end for the smallest distance. Without it a sample is done once it
                   is broken within eps.

    Returns the closest misclassified points (n, *shape) in the box, clean images where none was
    found. Raises ValueError for hyperparameters out of range.

    Differs from the source:
    - x' = mid + half * sin(w) in place of tanh. The hyperbolic tangent leaves pixels at exactly 0
      or 1, most of MNIST, without a usable gradient; the sine is only quadratically flat there.
    - Other classes are compared by distance, not by logit: each one's lead is divided by the norm
      of its gradient, which also frees c from the scale of the logits. Gradients are measured
      before each search, at the closest point known.
    - The binary search is on the logarithm of c.
    - The learning rate falls along a half cosine in each search, and once a point is known, steps
      are in proportion to its distance. What a search found is pulled toward its image by
      bisection.
    - Early abort and all else is per sample, never over the batch.
    """

    steps: int = 1000
    searches: int = 9
    initial_const: float = 1.0
    learning_rate: float | None = None
    confidence: float = 0.0
    abort_early: bool = True
    minimize: bool = False

    family: ClassVar[Family] = "minimal-norm"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.searches < 1:
            raise ValueError("cw: steps and searches must be at least 1")
        if not (self.initial_const > 0 and self._rate > 0 and self.confidence >= 0):
            raise ValueError(
                "cw: initial_const and learning_rate must be above 0, confidence at least 0"
            )

    @property
    def passes(self) -> int:
        """The most forward passes that a sample can take."""
        return self.searches * (1 + self.steps + _HALVINGS)

    @property
    def _rate(self) -> float:
        return max(0.01, 10 / self.steps) if self.learning_rate is None else self.learning_rate

    def __call__(self, problem: Problem) -> Tensor:
        x = problem.x
        budget = 0.0 if self.minimize else problem.threat.eps
        best, answer = x.new_full((len(x),), math.inf), x.clone()
        const = x.new_full((len(x),), self.initial_const)
        low, high = torch.zeros_like(const), torch.full_like(const, math.inf)
        stride = _STRIDE / (_half(problem.threat) * 2 * x[0].numel() ** 0.5)
        rows = torch.arange(len(x), device=x.device)
        for _ in range(self.searches):
            if not len(rows):
                break
            part = problem.select(rows)
            rate = (stride * best[rows]).clamp_max(self._rate)
            slopes = _slopes(part, answer[rows])
            length, points = self._search(part, const[rows], slopes, rate, budget)
            length, points = self._pulled(part, length, points, budget)
            closer = length < best[rows]
            best[rows] = torch.where(closer, length, best[rows])
            answer[rows] = torch.where(per_sample(closer, points), points, answer[rows])
            found = torch.isfinite(length)
            high[rows] = torch.where(found, const[rows].minimum(high[rows]), high[rows])
            low[rows] = torch.where(found, low[rows], const[rows].maximum(low[rows]))
            const = torch.where(low > 0, (low * high).sqrt(), high / 10)
            const = torch.where(high.isinf(), low * 10, const)
            rows = rows[best[rows] > budget]
        return answer

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
        self, problem: Problem, const: Tensor, slopes: Tensor, rate: Tensor, budget: float
    ) -> tuple[Tensor, Tensor]:
        """One run of Adam: the distance (infinite where none) and point of each sample's best."""
        w = _to_angle(problem.x, problem.threat)
        mean, square = torch.zeros_like(w), torch.zeros_like(w)
        best, points = torch.full_like(const, math.inf), problem.x.clone()
        loss_before = torch.full_like(const, math.inf)
        rows = torch.arange(len(problem), device=w.device)
        final, answer = best.clone(), points.clone()
        check = max(1, self.steps // _ABORT_CHECKS)
        for step in range(self.steps):
            trial, distance, loss, logits, gradient = self._evaluate(problem, w, const, slopes)
            success = decided(logits, problem.y)
            if self.confidence:
                success &= margin(logits, problem.y) >= self.confidence
            closer = success & (distance < best)
            best = torch.where(closer, distance, best)
            points = torch.where(per_sample(closer, trial), trial, points)
            checking = self.abort_early and step % check == check - 1
            if due(step) or checking:
                keep = best > budget
                if checking:
                    keep &= loss < _STILL_FALLING * loss_before
                    loss_before = loss
                if not bool(keep.all()):
                    done = ~keep
                    final[rows[done]], answer[rows[done]] = best[done], points[done]
                    if not bool(keep.any()):
                        return final, answer
                    problem, rows = problem.select(keep), rows[keep]
                    w, mean, square, gradient, const, slopes, rate, best, points, loss_before = (
                        state[keep]
                        for state in (
                            w, mean, square, gradient, const, slopes, rate, best, points,
                            loss_before,
                        )
                    )  # fmt: skip
            decay = 0.505 + 0.495 * math.cos(math.pi * step / self.steps)
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            scale = (square / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
            size = rate * (-decay / (1 - 0.9 ** (step + 1)))
            w = w + per_sample(size, w) * mean / scale
        final[rows], answer[rows] = best, points
        return final, answer

    def _evaluate(
        self, problem: Problem, w: Tensor, const: Tensor, slopes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        w = w.detach().requires_grad_()
        trial = _from_angle(w, problem.threat)
        logits = problem.logits(trial)
        squares = (trial - problem.x).flatten(1).square().sum(1)
        own = logits.gather(1, problem.y[:, None])
        leads = (logits - own - self.confidence) / slopes
        hinge = (-leads.scatter(1, problem.y[:, None], -math.inf).amax(1)).clamp_min(0)
        loss = squares + const * hinge
        (gradient,) = torch.autograd.grad(loss.sum(), w)
        gradient.nan_to_num_(0, 0, 0)
        return trial.detach(), squares.detach().sqrt(), loss.detach(), logits.detach(), gradient


def _slopes(problem: Problem, points: Tensor) -> Tensor:
    """How fast each class's lead over the label grows with distance, (n, classes): the norm of the
    lead's gradient at the points, for the classes with the largest logits; the others take the
    largest of these."""
    x = points.detach().requires_grad_()
    logits = problem.logits(x)
    own = logits.gather(1, problem.y[:, None])
    ranked = logits.detach().scatter(1, problem.y[:, None], -math.inf)
    nearest = ranked.topk(min(logits.shape[1] - 1, _MOST_CLASSES), dim=1).indices
    slopes = logits.detach().new_zeros(logits.shape)
    for classes in nearest.split(1, dim=1):
        lead = (logits.gather(1, classes) - own).sum()
        (gradient,) = torch.autograd.grad(lead, x, retain_graph=True)
        slope = problem.threat.length(gradient.nan_to_num(0, 0, 0))
        slopes.scatter_(1, classes, slope[:, None])
    largest = slopes.amax(1, keepdim=True)
    known = torch.zeros_like(slopes, dtype=torch.bool).scatter_(1, nearest, True)
    slopes = torch.where(known, slopes.maximum(_LEAST_SLOPE * largest), largest)
    return torch.where(largest > 0, slopes, 1.0)


def _half(threat: ThreatModel) -> float:
    return (threat.upper - threat.lower) / 2


def _to_angle(x: Tensor, threat: ThreatModel) -> Tensor:
    unit = (x - threat.lower) / _half(threat) - 1
    edge = math.pi / 2 - _OFF_THE_WALL
    return unit.clamp(-1, 1).asin().clamp(-edge, edge)


def _from_angle(w: Tensor, threat: ThreatModel) -> Tensor:
    return threat.clamp((w.sin() + 1) * _half(threat) + threat.lower)
