"""Slopes s and reliabilities b of a belief ensemble, chosen or trained on data (Qian 2021,
"Robustness via fractal divide and fractal aggregation", section 3.1).

The criterion is what holds under an adversarial offset, by a worst-case shift of the outputs.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from defenses.fractal.ensemble import BeliefEnsemble
from defenses.fractal.output_ensemble import AT_ONCE

SLOPES = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0)
RELIABILITIES = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)

# Steps of the training, at the rate that they begin with; it falls to 0 along a half cosine.
_STEPS, _RATE = 200, 0.05

# Where training begins b at most: from 1 the logistic function has no way back.
_HIGHEST = 0.999


@torch.no_grad()
def set_uniform(ensemble: BeliefEnsemble, slope: float, reliability: float) -> None:
    """Give all subtasks the same s and b."""
    ensemble.slope.fill_(slope)
    ensemble.reliability.fill_(reliability)


@torch.no_grad()
def choose(
    ensemble: BeliefEnsemble,
    outputs: Tensor,
    y: Tensor,
    offset: float,
    slopes: Sequence[float] = SLOPES,
    reliabilities: Sequence[float] = RELIABILITIES,
) -> None:
    """Set the uniform s and b by which the most samples, outputs (n, k) and labels y (n,), are
    predicted and kept for certain under the offset; the first of equally good ones."""
    best, chosen = -1.0, (slopes[0], reliabilities[0])
    for values in itertools.product(slopes, reliabilities):
        set_uniform(ensemble, *values)
        share = ensemble.share_kept(outputs, y, offset)
        if share > best:
            best, chosen = share, values
    set_uniform(ensemble, *chosen)


def train_each(ensemble: BeliefEnsemble, outputs: Tensor, y: Tensor, offset: float) -> None:
    """Train each subtask's s and b on samples that no subtask has seen, outputs (n, k) and labels
    y (n,). Adam takes all samples at once, and lowers the cross-entropy of their worst cases under
    the offset.

    What is trained is the logarithm of s > 0, and b in (0, 1] before a logistic function.

    Unstated in the source, which says only that reserved data are needed: loss and optimiser.
    """
    worst_case = _WorstCase(ensemble)
    slope = ensemble.slope.detach().log()
    reliability = ensemble.reliability.detach().clamp(max=_HIGHEST).logit()

    def loss() -> None:
        for part, labels in zip(outputs.split(AT_ONCE), y.split(AT_ONCE), strict=True):
            values = {"ensemble.slope": slope.exp(), "ensemble.reliability": reliability.sigmoid()}
            worst = functional_call(worst_case, values, (part, labels, offset))
            total = nn.functional.cross_entropy(worst, labels, reduction="sum")
            torch.autograd.backward(total / len(y))

    descend([slope, reliability], loss, _STEPS, _RATE)
    with torch.no_grad():
        ensemble.slope.copy_(slope.exp())
        ensemble.reliability.copy_(reliability.sigmoid())


def descend(
    values: Sequence[Tensor], backward: Callable[[], None], steps: int, rate: float
) -> None:
    """Minimise a loss over tensors, in place, by Adam, whose rate falls to 0 along a half cosine.
    `backward` adds the gradients of the loss to the tensors."""
    with torch.enable_grad():
        for value in values:
            value.requires_grad_()
        optimizer = torch.optim.Adam(values, lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            backward()
            optimizer.step()
            schedule.step()
        for value in values:
            value.requires_grad_(False)


class _WorstCase(nn.Module):
    """An ensemble's worst case as a module's forward, whose parameters can be replaced."""

    def __init__(self, ensemble: BeliefEnsemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, outputs: Tensor, label: Tensor, offset: float) -> Tensor:
        return self.ensemble.worst_case(outputs, label, outputs.new_full(label.shape, offset))
