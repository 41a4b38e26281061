"""What an attack is shown in place of a model's logits, so that any search pushes on anything."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.objectives import margin

# From outputs (n, m), labels (n,) and the view's data (n, ...) to one value per sample (n,).
Score = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class View:
    """Two logits per sample, of which the first is the label's: (z, z + v).

    v is above 0 exactly where the sample is misclassified, and has the gradient of `push`, so that
    any search on any objective climbs `push`. Its value is the true margin where the sample is
    misclassified, else that of `progress`, which a search can follow. z gives rounding its true
    scale: the largest of the viewed outputs where misclassified, else 0.

    y         labels (n,), the true ones.
    data      what the scores need beside the outputs, one row per sample: targets, arms.
    push      what the attack is to raise.
    progress  how far the push is from its aim: never above 0 where the sample is not misclassified.
              Default: the true margin.
    margin    from outputs and y to the true margin (n,): above 0 where misclassified.
    """

    y: Tensor
    data: Tensor
    push: Score
    progress: Score | None = None
    margin: Callable[[Tensor, Tensor], Tensor] = margin

    def select(self, keep: Tensor) -> "View":
        """The view of some samples."""
        return replace(self, y=self.y[keep], data=self.data[keep])

    def __call__(self, outputs: Tensor) -> Tensor:
        push = self.push(outputs, self.y, self.data)
        known = outputs.detach()
        lead = self.margin(known, self.y)
        wrong = lead > 0
        if self.progress is not None:
            lead = torch.where(wrong, lead, self.progress(known, self.y, self.data))
        # Infinite outputs have no rounding and no gradient.
        scale = torch.where(wrong, known.nan_to_num(0, 0, 0).abs().amax(1), 0)
        rise = (push - push.detach()).nan_to_num(0)
        return torch.stack([scale, scale + lead + rise], dim=1)
