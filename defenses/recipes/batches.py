"""What a training step is given, and what an epoch is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from attacks import ThreatModel


@dataclass(frozen=True)
class Batch:
    """What a loss is given at one training step.

    x, y      images (n, *shape) in [0, 1]; labels (n,), int64.
    index     (n,), int64: each sample's number in the training set.
    threat    what `Recipe.trains_against` made of the threat of the run.
    seed      of the training; step counts all its steps from 0. With index, they name the noise.
    progress  t / T in epoch t of T, where t counts from 1.
    networks  how many networks the samples are for: sample i is for network i mod networks.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    threat: ThreatModel | None
    seed: int
    step: int
    progress: float
    networks: int = 1

    def first(self, count: int) -> "Batch":
        """The same batch with its first `count` samples alone."""
        return replace(self, x=self.x[:count], y=self.y[:count], index=self.index[:count])


@dataclass(frozen=True)
class Epoch:
    """One pass over the training set, as the loop plans it.

    number  counts the epochs from 0; there are `epochs` in all.
    split   for each step the numbers (m,), int64, of its samples: all samples in random order, cut
            into parts whose sizes differ by at most one.
    threat  what `Recipe.trains_against` made of the threat of the run.
    seed    of the training.
    """

    number: int
    epochs: int
    split: Sequence[Tensor]
    threat: ThreatModel | None
    seed: int

    def batch(self, step: int, x: Tensor, y: Tensor, index: Tensor, networks: int = 1) -> Batch:
        """The batch of a step, which counts from 0 within the epoch, made of samples as `Batch` has
        them."""
        total = self.number * len(self.split) + step
        progress = (self.number + 1) / self.epochs
        return Batch(x, y, index, self.threat, self.seed, total, progress, networks)
