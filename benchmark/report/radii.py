"""What is proven beside attacks: certified radii and what bounds prove, held against attacks."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmark.judge.records import Block, IntArray

# How much nearer than a certified radius a misclassified point must be to contradict it: less is
# rounding, in the radius or in the model.
ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Radii:
    """What a model's certificate says of its samples.

    radius  (n,) the distance within which the predicted class does not change, in the run's norm.
    right   (n,) whether the predicted class is the label.
    """

    radius: NDArray[np.float64]
    right: NDArray[np.bool_]

    @classmethod
    def of(cls, blocks: Iterable[Block], total: int) -> "Radii":
        """The radii in some records. Raises ValueError where they lack some of `total` samples."""
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

    def widened(self, proven: NDArray[np.bool_], eps: float) -> "Radii":
        """These, and eps at least where bounds prove that (n,)."""
        radius = np.where(proven, np.maximum(self.radius, eps), self.radius)
        return Radii(radius, self.right | proven)

    def proves(self, eps: float) -> NDArray[np.bool_]:
        """Which samples (n,) are proven to be classified as their label everywhere within eps."""
        return self.right & (self.radius >= eps)

    def contradicted(self, eps: float, frames: Iterable[pd.DataFrame]) -> IntArray:
        """The samples (k,) with misclassified points, in the records of attacks, where the
        certificate says that there are none: broken though certified at eps, or misclassified at a
        point that is nearer than the radius by more than ROUNDING."""
        proven, contradicted = self.proves(eps), np.zeros_like(self.right)
        for frame in frames:
            frame = frame[frame["index"].between(0, len(contradicted) - 1)]
            index, distance = frame["index"].to_numpy(), frame["distance"].to_numpy()
            too_near = self.right[index] & (distance < self.radius[index] - ROUNDING)
            # A randomised model is contradicted by most of its draws, and not by one.
            rate, trial = frame["rate"].to_numpy(), frame["trial"].to_numpy()
            too_near &= (rate > 0.5) | (rate + trial == 0)
            broken = frame["broken"].to_numpy(dtype=bool)
            contradicted[index] |= too_near | (proven[index] & broken)
        return np.flatnonzero(contradicted)


@dataclass(frozen=True, eq=False)
class Proved:
    """What the search for proofs says of a model's samples.

    by     (n,) text, what proved that nothing within eps breaks the sample: "crown", "alpha-crown",
           "branching" or "solver"; empty where nothing did.
    bound  (n,) by how much the label leads at least, by linear bounds; NaN where it was not tried.
    """

    by: NDArray[np.str_]
    bound: NDArray[np.float64]

    @classmethod
    def of(cls, blocks: Iterable[Block], total: int) -> "Proved":
        """What some records say, of as many of `total` samples as they have."""
        by, bound = np.full(total, "", dtype="U16"), np.full(total, np.nan)
        for block in blocks:
            by[block.index] = np.where(block.broken, "", np.asarray(block.stage))
            bound[block.index] = block.bound
        return cls(by, bound)

    @property
    def proven(self) -> NDArray[np.bool_]:
        """(n,), the samples of which something is proven."""
        proven: NDArray[np.bool_] = self.by != ""
        return proven
