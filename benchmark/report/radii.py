"""Certified radii beside attacks: what a defense proves, held against what was found."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmark.judge.records import Block, IntArray

# How much nearer than a radius a misclassified point must be to contradict it: less is rounding, of
# the radius or of the model.
ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Radii:
    """What a certificate says of a model's samples.

    radius   (n,) within which the class that is predicted does not change, in the run's norm.
    right    (n,) whether that class is the label.
    """

    radius: NDArray[np.float64]
    right: NDArray[np.bool_]

    @classmethod
    def of(cls, blocks: Iterable[Block], total: int) -> "Radii":
        """Those in some records. Raises ValueError where they lack some of `total` samples."""
        blocks = list(blocks)
        index = np.concatenate([np.empty(0, np.int64), *(block.index for block in blocks)])
        # A sample without a record must never count as certified.
        if not np.array_equal(np.sort(index), np.arange(total)):
            raise ValueError(f"incomplete: {len(index)} of {total} samples are recorded")
        radius, right = np.empty(total), np.empty(total, dtype=bool)
        for block in blocks:
            radius[block.index], right[block.index] = block.distance, ~block.broken
        if not bool((radius >= 0).all()):
            raise ValueError("radii that are negative or NaN are recorded")
        return cls(radius, right)

    def proves(self, eps: float) -> NDArray[np.bool_]:
        """The samples (n,) that keep their label within eps."""
        return self.right & (self.radius >= eps)

    def contradicted(self, eps: float, frames: Iterable[pd.DataFrame]) -> IntArray:
        """The samples with misclassified points, in the records of attacks, where the certificate
        says that there are none: broken though certified at eps, or nearer than the radius by more
        than ROUNDING."""
        proven, found = self.proves(eps), np.zeros_like(self.right)
        for frame in frames:
            frame = frame[frame["index"].between(0, len(found) - 1)]
            at = frame["index"].to_numpy()
            near = self.right[at] & (frame["distance"].to_numpy() < self.radius[at] - ROUNDING)
            found[at] |= near | (proven[at] & frame["broken"].to_numpy(dtype=bool))
        return np.flatnonzero(found)
