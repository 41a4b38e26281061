"""What an attack pushes on: from logits (n, classes) and labels (n,) to one value per sample.

Every objective rises as the sample comes closer to being misclassified; a targeted one, which is
given a class (n,) for each sample, as it comes closer to being taken for that class.
"""

import math
from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor], Tensor]
TargetedObjective = Callable[[Tensor, Tensor, Tensor], Tensor]

# A lead of another class smaller than this part of the two logits, 30 units of float32 rounding, is
# not a verdict: it would not survive another batch size or precision. No more, because logits
# that share a large constant have large units of rounding.
_ROUNDING = 30 * torch.finfo(torch.float32).eps

# The lead, as such a part too, that those searches aim at whose points end on the boundary: a
# little more than `decided` asks for.
CLEAR = 40 * torch.finfo(torch.float32).eps


def _others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -math.inf)


def _logit(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest logit of another class minus the label's: above 0 where misclassified.

    >>> margin(torch.tensor([[2.0, 0.5], [0.0, 3.0]]), torch.tensor([0, 0]))
    tensor([-1.5000,  3.0000])
    """
    return _others(logits, y).amax(1) - _logit(logits, y)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """log((1 - p) / p) for the label's softmax probability p.

    Differs from the source: cross-entropy itself is log(1 / p). The two rise together and their
    gradients are parallel, but the factor 1 - p, which underflows on confident samples and leaves
    plain cross-entropy without a direction, is gone. Attacks that normalise the gradient or take
    its sign are otherwise unchanged by it.
    """
    return _others(logits, y).logsumexp(1) - _logit(logits, y)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """log(1 + p - q) for the largest softmax probability p of another class and the label's q.

    Differs from the source (PMA, Xie et al. 2024): that is p - q itself. The two rise together and
    their gradients are parallel, but this does not vanish on samples whose q rounds to 1.
    """
    return targeted_probability_margin(logits, y, _others(logits, y).argmax(1))


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, equation 6).

    Invariant to shifting and scaling the logits.

    Differs from the source: of two classes, where there is no ratio, it is the margin.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    spread = (top[:, 0] - top[:, 2]).clamp_min(torch.finfo(logits.dtype).tiny)
    return margin(logits, y) / spread


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The lead of the target's logit over the label's (n,)."""
    return _logit(logits, target) - _logit(logits, y)


def targeted_probability_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """log(1 + p - q) for the target's softmax probability p (n,) and the label's q.

    Differs from the source as `probability_margin` does.

    >>> logits, y = torch.tensor([[1.0, 2.0, 0.0], [50.0, 0.0, 1.0]]), torch.tensor([0, 0])
    >>> targeted_probability_margin(logits, y, torch.tensor([1, 2]))
    tensor([  0.3510, -48.1380])
    """
    # 1 - q is the sum over the others, among which the target counts twice.
    twice = _logit(logits, target)[:, None] + math.log(2)
    others = _others(logits, y).scatter(1, target[:, None], twice)
    return others.logsumexp(1) - logits.logsumexp(1)


def targeted_cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """log(p / (1 - p)) for the target's softmax probability p (n,)."""
    return -cross_entropy(logits, target)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio (n,) (Croce and Hein 2020, equation 7).

    Differs from the source: of fewer than four classes, where there is no ratio, it is the margin.
    """
    lead = targeted_margin(logits, y, target)
    if logits.shape[1] < 4:
        return lead
    top = logits.topk(4, dim=1).values
    spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return lead / spread.clamp_min(torch.finfo(logits.dtype).tiny)


OBJECTIVES: dict[str, Objective] = {
    "cross-entropy": cross_entropy,
    "margin": margin,
    "probability-margin": probability_margin,
    "dlr": dlr,
}


TargetedName = Literal["margin", "probability-margin", "cross-entropy", "dlr"]
TARGETED_OBJECTIVES: dict[TargetedName, TargetedObjective] = {
    "margin": targeted_margin,
    "probability-margin": targeted_probability_margin,
    "cross-entropy": targeted_cross_entropy,
    "dlr": targeted_dlr,
}


def check_objective(attack: str, name: str, known: Collection[str]) -> None:
    """Raises ValueError, in one line, where an attack's option names no known objective."""
    if name not in known:
        raise ValueError(f"{attack}: unknown objective {name!r}: use one of {', '.join(known)}")


def decided(logits: Tensor, y: Tensor) -> Tensor:
    """Where a sample is misclassified by more than rounding: bool (n,).

    >>> decided(torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0, 0]))
    tensor([ True, False, False])
    """
    own, other = _logit(logits, y), _others(logits, y).amax(1)
    # An infinite lead is a lead.
    scale = own.abs().maximum(other.abs()).clamp_max(torch.finfo(logits.dtype).max)
    return other - own > _ROUNDING * scale
