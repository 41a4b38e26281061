"""Classifiers that decide by nonexpansive outputs, and what an adversarial offset does to them
(Qian 2021, "Robustness via fractal divide and fractal aggregation", section 4.3)."""

import copy
from typing import Self

import torch
from torch import Tensor, nn

# The slope of a surrogate's sigmoids (section 4.1).
SURROGATE_SLOPE = 5.0

# Images at once when all of a training set is asked.
AT_ONCE = 1024

# Halvings of a threshold's interval: below the rounding of float32.
_HALVINGS = 30


class OutputEnsemble(nn.Module):
    """A classifier, from images (n, *shape) to logits (n, classes), that decides by the outputs
    G (n, k) of subtasks. Each is of Lipschitz constant at most 1, so that an attack moves none of
    them by more than its L2 distance.

    slope  s (k,) of the sigmoids that outputs go through.
    """

    classes: int
    slope: nn.Parameter

    def outputs(self, x: Tensor) -> Tensor:
        """G (n, k) of all subtasks at images (n, *shape)."""
        raise NotImplementedError

    def aggregate(self, outputs: Tensor) -> Tensor:
        """The logits (n, classes) that outputs G (n, k) give."""
        raise NotImplementedError

    def worst_case(self, outputs: Tensor, label: Tensor, offset: Tensor) -> Tensor:
        """The worst case for labels (n,) while each output G (n, k) moves by at most an offset
        (n,): logits (n, classes) in which every other label leads the given one by as much as it
        ever does, or more."""
        raise NotImplementedError

    def outputs_of(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """G (n, k) of some subtasks at any number of images (n, *shape)."""
        return torch.cat([self.outputs(part)[:, rows] for part in x.split(AT_ONCE)])

    def forward(self, x: Tensor) -> Tensor:
        return self.aggregate(self.outputs(x))

    def surrogate(self) -> Self:
        """A copy whose sigmoids have slopes of at most 5, so that they saturate less."""
        easier = copy.deepcopy(self)
        with torch.no_grad():
            easier.slope.clamp_(max=SURROGATE_SLOPE)
        return easier

    @torch.no_grad()
    def certified_radius(self, x: Tensor) -> Tensor:
        """The L2 radius (n,) around images (n, *shape) within which the predicted label stays: the
        least by which all outputs, each in its own direction, would have to move (section 4.3)."""
        return self.threshold(self.outputs(x))

    @torch.no_grad()
    def threshold(self, outputs: Tensor) -> Tensor:
        """The adversarial offset (n,) up to which outputs G (n, k) keep the predicted label for
        certain: by the worst case, and found by bisection."""
        label = self.aggregate(outputs).argmax(1)
        # Beyond it every subtask that knows the label is against it.
        far = outputs.abs().amax(1)
        near = torch.zeros_like(far)
        for _ in range(_HALVINGS):
            middle = (near + far) / 2
            holds = self.withstands(outputs, label, middle)
            near, far = torch.where(holds, middle, near), torch.where(holds, far, middle)
        return near

    def withstands(self, outputs: Tensor, label: Tensor, offset: Tensor) -> Tensor:
        """Whether outputs (n, k) give the labels (n,) for certain under an offset (n,)."""
        worst = self.worst_case(outputs, label, offset)
        is_label = nn.functional.one_hot(label, self.classes).bool()
        kept: Tensor = worst[is_label] > worst.masked_fill(is_label, -torch.inf).amax(1)
        return kept

    @torch.no_grad()
    def share_kept(self, outputs: Tensor, y: Tensor, offset: float) -> float:
        """The share of any number of samples, outputs (n, k), whose labels y (n,) are predicted
        and kept for certain under an offset."""
        parts = zip(outputs.split(AT_ONCE), y.split(AT_ONCE), strict=True)
        kept = [self.withstands(g, label, g.new_full((len(g),), offset)) for g, label in parts]
        return float(torch.cat(kept).double().mean())
