"""What an attack is shown in place of a model's logits, so that any search pushes on anything."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.objectives import margin

Push = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class View:
    """Two logits per sample, of which the first is the label's: (z, z + v).

    v has the value of the true margin, so that a sample counts as broken exactly where it is
    misclassified, and the gradient of `push`, so that any search on any objective climbs `push`.
    z is the largest of the viewed outputs, which gives rounding its true scale.

    push    from outputs (n, m) and data to one value per sample (n,), which the attack is to raise.
    y       labels (n,), the true ones.
    data    what `push` needs beside the outputs, one row per sample (n, ...): classes, arms.
    value   from outputs and y to the true margin (n,): above 0 where misclassified.
    """

    push: Push
    y: Tensor
    data: Tensor
    value: Callable[[Tensor, Tensor], Tensor] = margin

    def select(self, keep: Tensor) -> "View":
        """The view of some samples."""
        return replace(self, y=self.y[keep], data=self.data[keep])

    def __call__(self, outputs: Tensor) -> Tensor:
        push = self.push(outputs, self.data)
        known = outputs.detach()
        lead = self.value(known, self.y) + push - push.detach()
        scale = known.abs().amax(1)
        return torch.stack([scale, scale + lead], dim=1)
