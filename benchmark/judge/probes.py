"""A few passes over a model that show whether gradients say where it fails."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks import Problem, ThreatModel
from attacks.objectives import decided, margin
from attacks.problem import climb
from attacks.working import due
from benchmark.judge.evaluator import Samples
from benchmark.judge.records import IntArray
from benchmark.judge.subject import Subject

# Correctly classified images that are looked at, the first of them.
_SAMPLES = 64

# The share of these above which a model is flagged.
_MOST = 0.5
_REACHED = 0.95

# Paths within the whole box, from a random point of it, and within eps, from the clean image: their
# steps, and how long each is as a part of the radius.
_WIDE = (60, 0.25)
_NEAR = (20, 0.1)

# A path that gains less than this part of what the clean gradient promises does not rise. Promises
# below so many units of rounding cannot be seen to be kept.
_LEAST_GAIN = 0.1
_UNITS = 100


@dataclass(frozen=True)
class _Seen:
    """What was seen of each sample, bool (n,) each: its gradient is zero or tiny; no attack within
    the whole box broke it; its margin did not rise."""

    blind: Tensor
    unreached: Tensor
    flat: Tensor


def probe(
    subject: Subject,
    samples: Samples,
    correct: IntArray,
    threat: ThreatModel,
    seed: int,
    block: int,
) -> set[str]:
    """Flags of a model, from about 80 passes over some of the samples at the places `correct`,
    which it classifies correctly. None where there are none, or too little memory: attacks will
    say so."""
    seen = []
    chosen = torch.from_numpy(correct[:_SAMPLES])
    for part in chosen.split(block) if len(chosen) else ():
        x = samples.x[part].to(subject.device, subject.dtype)
        y = samples.y[part].to(subject.device)
        number = torch.from_numpy(samples.number)[part].to(subject.device)
        problem = Problem(subject.victim(), x, y, threat, seed, number)
        try:
            with torch.enable_grad():
                seen.append(_look(problem))
        except torch.OutOfMemoryError:
            return set()
        except Exception:  # a backward that fails gives no gradient either
            return {"zero-gradient"}
    if not seen:
        return set()
    blind, unreached, flat = (
        float(torch.cat([getattr(one, name) for one in seen]).float().mean())
        for name in ("blind", "unreached", "flat")
    )
    found = {
        "zero-gradient": blind > _MOST,
        "large-eps": unreached > 1 - _REACHED,
        "no-ascent": flat > _MOST,
    }
    return {code for code, seen_often in found.items() if seen_often}


def _look(problem: Problem) -> _Seen:
    if not _differentiable(problem):
        everywhere = torch.ones_like(problem.y, dtype=torch.bool)
        return _Seen(everywhere, everywhere, ~everywhere)
    threat, x = problem.threat, problem.x
    gradient, value, logits = climb(problem, x, margin)
    # In float64, since the squares of a tiny gradient underflow.
    slope = threat.dual_length(gradient.double())
    width = torch.full_like(x, threat.upper - threat.lower)
    across = threat.length(width).double()
    # By this gradient, no other class is anywhere in the box.
    blind = -value >= slope * across

    wide = replace(problem, threat=replace(threat, eps=float(across[0])))
    unreached = _climbed(wide, wide.random_start(0), *_WIDE).isfinite()

    promise = slope * threat.eps
    rounding = torch.finfo(x.dtype).eps * logits.abs().amax(1)
    gain = _climbed(problem, x, *_NEAR) - value
    flat = (promise > _UNITS * rounding) & (gain < _LEAST_GAIN * promise)
    return _Seen(blind, unreached, flat)


def _differentiable(problem: Problem) -> bool:
    """Whether logits depend on images in a way that torch can follow."""
    points = problem.x.clone().requires_grad_()
    logits = problem.logits(points)
    if not logits.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(logits.sum(), points, allow_unused=True)
    return gradient is not None


def _climbed(problem: Problem, points: Tensor, steps: int, stride: float) -> Tensor:
    """The highest margin on a path of gradient steps from some points (n, *shape): (n,), infinite
    where a sample is broken on it."""
    threat = problem.threat
    best = torch.full((len(points),), -torch.inf, dtype=points.dtype, device=points.device)
    for step in range(steps + 1):
        gradient, value, logits = climb(problem, points, margin)
        # A model that gives NaN is broken there.
        broken = decided(logits, problem.y) | logits.isnan().any(1)
        best = best.maximum(torch.where(broken, torch.inf, value))
        if due(step) and bool(best.isinf().all()):
            break
        ahead = points + stride * threat.eps * threat.ascent(gradient)
        points = threat.project(ahead, problem.x)
    return best
