"""A targeted ascent: what `strong` is made of."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attacks.objectives import decided, targeted_margin
from attacks.problem import Problem, climb
from attacks.threat import ThreatModel, per_sample
from attacks.working import Reached, Working, due

# The weight of the new step against the momentum, as in APGD.
_MOMENTUM = 0.75


@dataclass
class Ascent(Reached):
    """How far an ascent is with each sample: points (n, *shape), misclassified where `hit` (n,), or
    by no more than rounding where they are `tied` (n,); the highest lead of the target so far (n,),
    and the gap there (n,); the target (n,), the point before and the gradient (n, *shape)."""

    tied: Tensor
    lead: Tensor
    gap: Tensor
    target: Tensor
    previous: Tensor
    gradient: Tensor


def ascend(
    problem: Problem, start: Tensor, target: Tensor, steps: int, first: float, sign: int = 1
) -> Ascent:
    """Climb the lead of each sample's target (n,) over its label, from `start` (n, *shape).

    Normalised gradient steps with APGD's momentum (Croce and Hein 2020), whose size falls from
    `first` times eps along a half cosine. With sign -1 they go against the gradient. A sample that
    is broken stops.
    """
    threat = problem.threat
    hit = torch.zeros_like(target, dtype=torch.bool)
    lead = start.new_full((len(problem),), -math.inf)
    state = Ascent(start, hit, hit.clone(), lead, -lead, target, start, torch.zeros_like(start))
    batch = Working(problem, state)
    for step in range(steps + 1):
        # Where the walk is: on the network itself, whatever smooths the gradient.
        objective = partial(targeted_margin, target=state.target)
        state.gradient, value, logits = climb(batch.problem, state.points, objective)
        new = value > state.lead
        state.lead = torch.where(new, value, state.lead)
        state.gap = torch.where(new, gap_of(threat, value, state.gradient), state.gap)
        state.hit |= decided(logits, batch.problem.y)
        state.tied = logits.argmax(1) != batch.problem.y
        if step == steps or (due(step) and not batch.retire(state.hit)):
            break
        # A sample that is broken but still in the batch stays where it is.
        moving = per_sample((~state.hit).to(start.dtype), state.points)
        size = first * threat.eps * (1 + math.cos(math.pi * step / steps)) / 2
        x, points, threat = batch.problem.x, state.points, batch.problem.threat
        ahead = threat.advance(points, sign * state.gradient, size, x)
        weight = _MOMENTUM if step else 1.0
        move = weight * (ahead - points) + (1 - weight) * (points - state.previous)
        state.previous, state.points = points, threat.project(points + moving * move, x)
    return batch.finish()


def gap_of(threat: ThreatModel, lead: Tensor, gradient: Tensor) -> Tensor:
    """What a target lacks (n,), over what another eps would buy by the gradient (n, *shape)."""
    tiny = torch.finfo(gradient.dtype).tiny
    return -lead / (threat.eps * threat.dual_length(gradient)).clamp_min(tiny)
