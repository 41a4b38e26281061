"""Two verdicts on the same samples, compared by McNemar's exact test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Paired:
    """How many samples only the first of two verdicts counts, and how many only the second."""

    first: int
    second: int

    @classmethod
    def of(cls, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> "Paired":
        """Two verdicts (n,) on the same samples, compared."""
        return cls(int((first & ~second).sum()), int((second & ~first).sum()))

    def chance(self, alternative: Literal["two-sided", "greater"] = "two-sided") -> float:
        """The probability of so uneven a split if each of these samples fell to either side by a
        fair coin: in either direction, or in favour of the first ("greater").

        Source: McNemar 1947, "Note on the sampling error of the difference between correlated
        proportions or percentages"; exact, by the binomial distribution.
        """
        from scipy.stats import binomtest

        total = self.first + self.second
        if not total:
            return 1.0
        return float(binomtest(self.first, total, alternative=alternative).pvalue)


def clearly_highest(verdicts: Sequence[NDArray[np.bool_]], chance: float) -> int | None:
    """Which of several verdicts (n,) on the same samples counts the most of them, beyond chance: by
    McNemar's two-sided test against each other one, where the probabilities of all together are
    below `chance` (Bonferroni). None where none does, or there is only one.

    >>> counts = np.arange(20)
    >>> clearly_highest([counts < 5, counts < 18, counts < 4], 0.05)
    1
    >>> clearly_highest([counts < 16, counts < 18, counts < 4], 0.05)
    """
    if len(verdicts) < 2:
        return None
    best = max(range(len(verdicts)), key=lambda place: int(verdicts[place].sum()))
    others = [verdict for place, verdict in enumerate(verdicts) if place != best]
    chances = [Paired.of(verdicts[best], other).chance() for other in others]
    return best if max(chances) * len(others) < chance else None
