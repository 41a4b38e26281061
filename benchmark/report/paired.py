"""Two models on the same samples: by how much they differ, and whether chance alone would do it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Two models are told apart where the chance of so uneven a result is below this.
LEVEL = 0.05

# How often bisection halves the interval in which a limit lies: to less than 1e-16.
_HALVINGS = 54


@dataclass(frozen=True)
class Paired:
    """Two verdicts on each of some samples: how many only the first counts, how many only the
    second, and how many samples there are."""

    first: int
    second: int
    total: int

    @classmethod
    def of(cls, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> "Paired":
        """Two verdicts (n,) on the same samples, compared."""
        return cls(int((first & ~second).sum()), int((second & ~first).sum()), len(first))

    @property
    def difference(self) -> float:
        """The share of samples that the first counts less that of the second."""
        return (self.first - self.second) / self.total

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the difference: see `score_interval`."""
        return score_interval(self.first, self.second, self.total)

    def chance(self, alternative: Literal["two-sided", "greater"] = "two-sided") -> float:
        """The probability of so uneven a split if each of the samples that only one of them counts
        fell to either side by a fair coin: in either direction, or in favour of the first
        ("greater").

        Exact, and not mid-p: it never calls two equal models different more often than it says, of
        however few samples.

        Source: McNemar 1947, "Note on the sampling error of the difference between correlated
        proportions or percentages"; exact, by the binomial distribution.
        """
        from scipy.stats import binomtest

        either = self.first + self.second
        if not either:
            return 1.0
        return float(binomtest(self.first, either, alternative=alternative).pvalue)


@dataclass(frozen=True, eq=False)
class PairedShares:
    """Two shares of each of some samples, as randomised models have them, compared: `differences`
    (n,), the first less the second, each from -1 to 1.

    The interval is the normal one over these differences and two more, +1 and -1, and `chance` goes
    with it. The two stand for differences that no sample showed, so that no interval is empty, and
    make it wide where samples are few. Of verdicts, whose differences are -1, 0 and 1, it is the
    interval of the source.

    Source: Bonett, Price 2012, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data".
    """

    differences: NDArray[np.float64]

    @classmethod
    def of(cls, first: NDArray[np.float64], second: NDArray[np.float64]) -> "PairedShares":
        """Two shares (n,) on the same samples, compared."""
        return cls(first.astype(np.float64) - second)

    @property
    def difference(self) -> float:
        """The mean of the differences."""
        return float(self.differences.mean())

    @cached_property
    def _middle(self) -> tuple[float, float]:
        """The mean of the differences and the two more, and its standard error."""
        every = np.append(self.differences, [1.0, -1.0])
        return float(every.mean()), float(every.std() / math.sqrt(len(every)))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the difference."""
        middle, error = self._middle
        reach = NormalDist().inv_cdf(0.975) * error
        return max(middle - reach, -1.0), min(middle + reach, 1.0)

    def chance(self) -> float:
        """The probability, in either direction, of so large a difference between equal models."""
        middle, error = self._middle
        return math.erfc(abs(middle) / error / math.sqrt(2))


def score_interval(first: int, second: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of the difference between two paired proportions.

    Of `total` samples only the first verdict counts `first`, and only the second `second`. The
    interval holds each difference d that the score test does not reject, for which
    |first - second - total d| <= z sqrt(total (2 q + d (1 - d))). There q is the most likely share
    of the samples that only the second counts, given d: the larger root of
    2 total q^2 + ((2 total - first + second) d - first - second) q - second d (1 - d).

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions
    for the paired-sample design", the score-based interval, with limits by bisection.

    >>> [round(limit, 3) for limit in score_interval(9, 3, 32)]  # an example of the source
    [-0.027, 0.39]
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    # The upper limit is the lower one of the other order, which negates all differences.
    return _lower(first, second, total, z), -_lower(second, first, total, z)


def _lower(first: int, second: int, total: int, z: float) -> float:
    """The lower limit of `score_interval`."""
    low, high = -1.0, (first - second) / total
    for _ in range(_HALVINGS):
        d = (low + high) / 2
        a, b = 2 * total, (2 * total - first + second) * d - first - second
        c = -second * d * (1 - d)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        reach = z * math.sqrt(max(total * (2 * q + d * (1 - d)), 0.0))
        if first - second - total * d > reach:
            low = d
        else:
            high = d
    return high


def better(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> bool:
    """Whether the first row is better than the second by McNemar's exact test (McNemar 1947), at
    level LEVEL, given their verdicts (n,) on the same samples."""
    paired = Paired.of(first, second)
    return paired.first > paired.second and paired.chance() < LEVEL


def highest(verdicts: Sequence[NDArray[np.bool_]], chance: float) -> tuple[int, list[int]]:
    """Which of several verdicts (n,) on the same samples counts the most of them, and over which
    others that may be chance: by McNemar's two-sided test against each, with Bonferroni's
    correction, the probability that it is not for any is below `chance`.

    >>> counts = np.arange(20)
    >>> highest([counts < 5, counts < 18, counts < 4], 0.05)
    (1, [])
    >>> highest([counts < 16, counts < 18, counts < 4], 0.05)
    (1, [0])
    """
    best = max(range(len(verdicts)), key=lambda place: int(verdicts[place].sum()))
    others = [place for place in range(len(verdicts)) if place != best]
    chances = {place: Paired.of(verdicts[best], verdicts[place]).chance() for place in others}
    return best, [place for place, each in chances.items() if each * len(others) >= chance]
