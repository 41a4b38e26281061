"""How far the values that an operation is given spread, sample by sample."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """The temperature of a smoothing, in the units of what it smooths.

    samples  how many images the model was given: what tells a tensor's samples apart.
    """

    temperature: float
    samples: int

    def mean(self, z: Tensor) -> Tensor:
        """The mean absolute value of each sample, in a shape that broadcasts over z."""
        return _mean(z.detach().abs(), self.samples)

    def width(self, z: Tensor) -> Tensor:
        """Over how much of z to smooth: the temperature times the mean absolute value."""
        tiny = torch.finfo(z.dtype).tiny
        return (self.temperature * self.mean(z)).clamp_min(tiny)

    def rise(self, z: Tensor) -> Tensor:
        """A step from 0 to 1 at z = 0 that is as wide as the temperature says."""
        z = z.detach()
        return torch.sigmoid(z / self.width(z))

    def slack(self, z: Tensor) -> Tensor:
        """The factor, at most 1, that brings z to where saturating functions are not flat."""
        return 1 / (1 + self.temperature * self.mean(z))


def _mean(size: Tensor, samples: int) -> Tensor:
    """The mean of each sample, whichever dimension tells samples apart."""
    shape = tuple(size.shape)
    if not shape or size.numel() == 0:
        return size
    if shape[0] != samples and shape.count(samples) == 1 and samples > 1:
        batch = shape.index(samples)
        rest = [axis for axis in range(len(shape)) if axis != batch]
        return size.mean(rest, keepdim=True) if rest else size
    if shape[0] != samples and samples > 0 and shape[0] % samples == 0:
        # Several rows of each sample, such as patches.
        means = size.reshape(samples, -1).mean(1)
        rows = means.repeat_interleave(shape[0] // samples)
        return rows.view(-1, *[1] * (len(shape) - 1))
    if len(shape) == 1:
        return size
    return size.mean(list(range(1, len(shape))), keepdim=True)
