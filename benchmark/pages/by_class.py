"""What became of the samples of each class: accuracies, and what they were taken for."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmark.report.measurements import Measurements
from benchmark.spec.components import BEST, NATURAL


@dataclass(frozen=True, eq=False)
class ByClass:
    """The samples of a report by their labels.

    labels  (c,), the labels that samples have, sorted.
    count   (c,), how many samples have each.
    natural (c,), how many of these are classified correctly; best, how many of them no attack broke
            either, all zero where nothing was attacked. Of a randomised model, in shares of draws.
    taken   what samples that were broken were taken for, at the closest point that breaks them: by
            (label, class), how many.
    """

    labels: NDArray[np.int64]
    count: NDArray[np.int64]
    natural: NDArray[np.float64]
    best: NDArray[np.float64]
    taken: dict[tuple[int, int], int]

    @classmethod
    def of(cls, report: Measurements, labels: NDArray[np.int64] | None = None) -> "ByClass":
        """Those of a report, by some labels, sorted, among which its own are; else by its own."""
        label = report.labels
        labels = np.unique(label) if labels is None else labels
        place = np.searchsorted(labels, label)
        count = np.bincount(place, minlength=len(labels))

        def summed(shares: NDArray[np.float64] | None) -> NDArray[np.float64]:
            if shares is None:
                return np.zeros(len(labels))
            return np.bincount(place, shares, minlength=len(labels)).astype(np.float64)

        natural, best = report.shares(NATURAL), report.shares(BEST)
        return cls(labels, count, summed(natural), summed(best), _taken(report, label))

    @property
    def pairs(self) -> list[tuple[int, int, int]]:
        """What was taken for what, the most frequent first: label, class, how many."""
        pairs = [(label, other, count) for (label, other), count in self.taken.items()]
        return sorted(pairs, key=lambda pair: (-pair[2], pair[:2]))


def _taken(report: Measurements, label: NDArray[np.int64]) -> dict[tuple[int, int], int]:
    closest = report.closest(report.measured, broken=True).label
    taken: dict[tuple[int, int], int] = {}
    for attack in report.measured:
        frame = report.frames[attack].set_index("index")["predicted"]
        for sample in np.flatnonzero(closest == attack):
            pair = int(label[sample]), int(frame[sample])
            taken[pair] = taken.get(pair, 0) + 1
    return taken
