"""What Carlini and Wagner's attack pays for distance, and how steeply logits change with it."""

import torch
from torch import Tensor

from attacks.problem import Problem, differentiate
from attacks.threat import ThreatModel, per_sample

# Classes whose slope is measured, at a backward pass each, and the smallest slope that is believed,
# as a part of the largest: where a gradient vanishes, distance says nothing.
_MOST_CLASSES = 10
_LEAST_SLOPE = 0.1


def squared_distance(threat: ThreatModel, delta: Tensor) -> tuple[Tensor, Tensor]:
    """The squared L2 norm (n,) of perturbations (n, *shape), and its gradient (section VI A).

    Differs from the source: divided by twice eps, so that the gradient has length 1 at eps.
    """
    squares = delta.flatten(1).square().sum(1)
    return squares / (2 * threat.eps), delta / threat.eps


def excess(delta: Tensor, limit: Tensor, push: Tensor) -> tuple[Tensor, Tensor]:
    """How far pixels are beyond the limit (n,), summed (n,), and its gradient (section VI C).

    Differs from the source: a pixel's excess is weighted by the gradient of the hinge there, `push`
    (n, *shape) with an L1 norm of about 1. With equal weights, one step beyond the limit is a
    gradient thousands of times that of the hinge, after which Adam stands still.
    """
    beyond = (delta.abs() - per_sample(limit, delta)).clamp_min_(0)
    weight = 2 * push.abs() + 1 / delta[0].numel()
    value = (weight * beyond).flatten(1).sum(1)
    return value, torch.where(beyond > 0, weight * delta.sign(), 0)


def slopes(problem: Problem, points: Tensor) -> tuple[Tensor, Tensor]:
    """How fast each class's lead over the label grows with distance, and the logits: (n, classes).

    The slope is the dual norm of the lead's gradient at the points, for the classes with the
    largest logits; the others take the largest of these.
    """
    x = points.detach().requires_grad_()
    logits = problem.logits(x)
    known = logits.detach()
    of_label = logits.gather(1, problem.y[:, None])
    ranked = known.scatter(1, problem.y[:, None], -torch.inf)
    nearest = ranked.topk(min(logits.shape[1] - 1, _MOST_CLASSES), dim=1).indices
    slope_of_class = torch.zeros_like(known)
    for classes in nearest.split(1, dim=1):
        lead = (logits.gather(1, classes) - of_label).sum()
        gradient = differentiate(lead, x, retain=True)
        slope = problem.threat.dual_length(gradient)
        slope_of_class.scatter_(1, classes, slope[:, None])
    largest = slope_of_class.amax(1, keepdim=True)
    measured = torch.zeros_like(slope_of_class, dtype=torch.bool).scatter_(1, nearest, True)
    slope_of_class = torch.where(measured, slope_of_class.maximum(_LEAST_SLOPE * largest), largest)
    return torch.where(largest > 0, slope_of_class, 1.0), known
