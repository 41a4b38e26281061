"""The classes that an attack could go for, the most promising first."""

import math

import torch
from torch import Tensor

from attacks.problem import Problem, differentiate


def others_of(logits: Tensor, y: Tensor) -> Tensor:
    """The logits (n, classes), with those of the labels y (n,) at minus infinity."""
    return logits.detach().scatter(1, y[:, None], -math.inf)


def highest_others(logits: Tensor, y: Tensor, most: int) -> Tensor:
    """The classes (n, k) other than the labels y (n,) of the `most` highest logits (n, classes),
    the highest first; all others where there are fewer."""
    return others_of(logits, y).topk(min(most, logits.shape[1] - 1), dim=1).indices


def by_logit(problem: Problem) -> Tensor:
    """The classes other than the label (n, classes - 1), the highest logit at the clean image
    first. Costs a forward."""
    with torch.no_grad():
        logits = problem.logits(problem.x)
    return others_of(logits, problem.y).argsort(dim=1, descending=True, stable=True)[:, :-1]


def by_distance(problem: Problem, most: int) -> tuple[Tensor, Tensor]:
    """The classes (n, k) of the `most` highest logits, the nearest first, and their distances (n,
    k) at the clean image: the label's lead over the length of its gradient (DeepFool,
    Moosavi-Dezfooli et al. 2016; MALT, Melamed et al. 2024). Costs a forward and k backwards.

    Raises NoGradientError where the model gives no gradients.
    """
    threat, y = problem.threat, problem.y[:, None]
    x = problem.x.detach().requires_grad_()
    logits = problem.logits(x)
    classes = highest_others(logits, problem.y, most)
    lead = logits.gather(1, classes) - logits.gather(1, y)
    tiny = torch.finfo(x.dtype).tiny
    slopes = [threat.dual_length(differentiate(of, x, retain=True)) for of in lead.unbind(1)]
    distance = -lead.detach() / torch.stack(slopes, 1).clamp_min(tiny)
    distance, order = distance.sort(dim=1, stable=True)
    return classes.gather(1, order), distance
