"""Two verdicts on the same samples, compared by McNemar's exact test."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Two rows differ where the chance of as uneven a split of the samples that only one of them
# withstands is below this.
LEVEL = 0.05


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


def better(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> bool:
    """Whether the first row is better than the second by McNemar's exact test (McNemar 1947), at
    level LEVEL, given their verdicts (n,) on the same samples."""
    paired = Paired.of(first, second)
    return paired.first > paired.second and paired.chance() < LEVEL
