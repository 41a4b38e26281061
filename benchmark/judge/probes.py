"""Probes of a model, which show whether its gradients can lead an attack anywhere.

Attacks that follow gradients find nothing on a model whose gradients are zero or misleading, and
this then looks like robustness. A few passes are enough to notice that, and to flag the model.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks import Problem, ThreatModel
from attacks.generators import seeded
from attacks.objectives import decided, margin
from attacks.problem import climb
from attacks.working import due
from benchmark.executors import Held
from benchmark.executors.executor import Tell
from benchmark.judge.evaluator import Batch
from benchmark.judge.replica import reseed
from benchmark.judge.subject import ATTACKED, Subject
from benchmark.judge.surroundings import undisturbed

# How many correctly classified images are probed, at most.
PROBED = 64

# The share of blind or of flat samples above which a model is flagged.
_MOST = 0.5
# The share of samples that must be broken somewhere in the box, or the model is flagged.
_REACHED = 0.95

# The number of steps of a path, and the length of each relative to the radius: of the paths within
# the whole box from a random point, and of those within eps from the clean image.
_WIDE = (60, 0.25)
_NEAR = (20, 0.1)

# A path does not rise if its margin gains less than this part of what the gradient at the clean
# image promises. A gain of less than so many units of rounding could not be told from none.
_LEAST_GAIN = 0.1
_UNITS = 100


@dataclass(frozen=True)
class _Seen:
    """What the probes saw of each sample, as bool (n,).

    blind      its gradient is zero, or too small to reach another class anywhere in the box.
    unreached  no step of a path within the whole box broke it.
    flat       its margin did not rise on a path within eps.
    """

    blind: Tensor
    unreached: Tensor
    flat: Tensor


@undisturbed()
def probe(
    subject: Held[Subject], threat: ThreatModel, seed: int, block: int, batch: Batch, tell: Tell
) -> set[str]:
    """The flags of a model whose gradients mislead, from about 80 passes over some samples.

    batch  samples that the model classifies correctly, of which no more than PROBED are needed.
    block  how many of them to probe at once.

    There are no flags if there are no samples, or if memory runs out: the attacks will report that.
    """
    del tell
    # Probe them, block by block.
    seen, judge = [], subject.get()
    parts = [held.split(block) for held in batch.on(judge)]
    for x, y, number in zip(*parts, strict=True) if len(batch.places) else ():
        victim = judge.victim()
        problem = Problem(
            victim, x, y, threat.around(x, judge.terms.frozen), seed, number,
            draws=judge.expectation, allowed=judge.terms.allowed,
        )  # fmt: skip
        try:
            with seeded(seed, number, ATTACKED) as drawn, torch.enable_grad():
                reseed(victim, drawn)
                seen.append(_look(problem))
        except torch.OutOfMemoryError:
            return set()
        except Exception:  # a backward pass that fails gives no gradient
            return {"zero-gradient"}
    # Flag the model for what is seen on too many of them.
    if not seen:
        return set()
    blind, unreached, flat = (
        float(torch.cat([getattr(of_block, name) for of_block in seen]).float().mean())
        for name in ("blind", "unreached", "flat")
    )
    flagged = {
        "zero-gradient": blind > _MOST,
        # Where some features must not change, no box holds images of all classes.
        "large-eps": unreached > 1 - _REACHED and judge.terms.frozen is None,
        "no-ascent": flat > _MOST,
    }
    return {code for code, is_flagged in flagged.items() if is_flagged}


def _look(problem: Problem) -> _Seen:
    """Probe the samples of a problem."""
    if not _differentiable(problem):
        everywhere = torch.ones_like(problem.y, dtype=torch.bool)
        return _Seen(everywhere, everywhere, ~everywhere)
    threat, x = problem.threat, problem.x
    gradient, value, logits = climb(problem, x, margin)
    # Whether the gradient at the clean image promises another class anywhere in the box. It is
    # measured in float64, since the squares of a tiny gradient underflow.
    slope = threat.dual_length(gradient.double())
    width = torch.zeros_like(x) + threat.upper - threat.lower
    across = threat.length(width).double()
    most = slope * across
    if threat.norm == "l1":  # where no pixel can take all of a step
        ahead = threat.advance(x, gradient, threat.eps, x)
        slope = (gradient * (ahead - x)).double().flatten(1).sum(1) / threat.eps
        most = (gradient.abs() * width).double().flatten(1).sum(1)

    blind = -value >= most
    if problem.draws > 1:  # whose margins are lowered by what its draws differ
        blind = slope == 0

    # Whether a path through the whole box, which holds images of all classes, meets another class.
    wide = replace(problem, threat=replace(threat, eps=float(across[0])))
    unreached = _climbed(wide, wide.random_start(0), *_WIDE).isfinite()

    # Whether a path within eps gains what the gradient promises.
    promise = slope * threat.eps
    rounding = torch.finfo(x.dtype).eps * logits.abs().amax(1)
    gain = _climbed(problem, x, *_NEAR) - value
    flat = (promise > _UNITS * rounding) & (gain < _LEAST_GAIN * promise)
    return _Seen(blind, unreached, flat)


def _differentiable(problem: Problem) -> bool:
    """Whether torch can differentiate the logits with respect to the images."""
    points = problem.x.clone().requires_grad_()
    logits = problem.logits(points)
    if not logits.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(logits.sum(), points, allow_unused=True)
    return gradient is not None


def _climbed(problem: Problem, points: Tensor, steps: int, stride: float) -> Tensor:
    """Follow a path of gradient steps from points (n, *shape); return the highest margins (n,).

    `stride` is the length of a step relative to eps. A margin is infinite where the sample is
    broken at some point of the path.
    """
    threat = problem.threat
    best = torch.full((len(points),), -torch.inf, dtype=points.dtype, device=points.device)
    for step in range(steps + 1):
        gradient, value, logits = climb(problem, points, margin)
        # Logits that are NaN count as broken.
        broken = decided(logits, problem.y) | logits.isnan().any(1)
        best = best.maximum(torch.where(broken, torch.inf, value))
        if due(step) and bool(best.isinf().all()):
            break
        points = threat.advance(points, gradient, stride * threat.eps, problem.x)
    return best
