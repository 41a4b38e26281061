"""Pairs of rows: their differences, with intervals and corrected probabilities."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmark.judge.records import IntArray
from benchmark.report.paired import LEVEL, Paired, PairedShares


@dataclass(frozen=True, eq=False)
class Pair:
    """Two rows on the same samples, compared.

    first, second    the names of the rows.
    difference       the accuracy of the first less that of the second.
    interval         its 95% interval, of this pair by itself.
    p                the chance of so uneven a result if the rows were equal.
    p_holm           the same, corrected for all pairs that were compared at once.
    only_first       (k,), the places of the samples that only the first counts or, of randomised
                     models, that count more for the first.
    only_second      (k,), the same of the second.
    by_shares        whether samples count by shares of draws.
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    p: float
    p_holm: float
    only_first: IntArray
    only_second: IntArray
    by_shares: bool

    @property
    def better(self) -> str | None:
        """The name of the better row; None where they are not told apart at 5%."""
        if self.p_holm >= LEVEL:
            return None
        return self.first if self.difference > 0 else self.second

    @property
    def verdict(self) -> str:
        """Which row is better, in words."""
        return "not told apart" if self.better is None else f"{self.better} is better"


def paired_up(
    shares: Mapping[str, NDArray[np.float64]],
    names: Sequence[tuple[str, str]],
    drawn: Collection[str] = (),
) -> tuple[Pair, ...]:
    """Pairs of rows, by their names.

    shares  how much each sample (n,) counts for a row: 1 or 0, or a share of draws for those that
            are `drawn`.
    """
    tests: list[Paired | PairedShares] = [
        PairedShares.of(shares[first], shares[second])
        if first in drawn or second in drawn
        else Paired.of(shares[first] > 0, shares[second] > 0)
        for first, second in names
    ]
    chances = [test.chance() for test in tests]
    return tuple(
        Pair(
            first, second, test.difference, test.interval, chance, corrected,
            np.flatnonzero(shares[first] > shares[second]),
            np.flatnonzero(shares[second] > shares[first]),
            isinstance(test, PairedShares),
        )
        for (first, second), test, chance, corrected in zip(
            names, tests, chances, holm(chances), strict=True
        )
    )  # fmt: skip


def holm(chances: Sequence[float]) -> list[float]:
    """Probabilities corrected for being several: where those below a level are called significant,
    the chance that any of these is so by accident is at most the level.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(chances), 0.0
    for rank, place in enumerate(np.argsort(chances, kind="stable").tolist()):
        least = min(max(least, (len(chances) - rank) * chances[place]), 1.0)
        corrected[place] = least
    return corrected
