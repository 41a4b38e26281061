"""The accuracies, examples and counts that reports are made of."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmark.columns import percent
from benchmark.judge.records import Cell, IntArray, blocks_of


@dataclass(frozen=True)
class Examples:
    """Adversarial examples: index (k,) of the samples, and points (k, *shape)."""

    index: IntArray
    points: NDArray[np.floating]


@dataclass(frozen=True)
class Accuracy:
    """A share of n samples with its Wilson 95% interval.

    count  how many samples count. Under a randomised model each counts by the share of its draws.
           The interval then includes the draws, and is wide enough: a share between 0 and 1 varies
           at most as much as a verdict of the same mean.
    """

    count: float
    n: int

    @property
    def value(self) -> float:
        return self.count / self.n

    @cached_property
    def interval(self) -> tuple[float, float]:
        from scipy.stats import binomtest, norm

        if self.count == round(self.count):
            test = binomtest(round(self.count), self.n)
            interval = test.proportion_ci(0.95, method="wilson")
            return float(interval.low), float(interval.high)
        # The same formula, which holds for shares of samples too.
        z, share = float(norm.ppf(0.975)), self.value
        middle = share + z**2 / (2 * self.n)
        reach = z * (share * (1 - share) / self.n + z**2 / (4 * self.n**2)) ** 0.5
        scale = 1 + z**2 / self.n
        return (middle - reach) / scale, (middle + reach) / scale

    def __str__(self) -> str:
        low, high = self.interval
        return f"{percent(self.value)} [{percent(low)}, {percent(high)}]"


@dataclass(frozen=True)
class LeftOut:
    """Attacks that a run's folder holds, and its table leaves out, though they broke more.

    attacks      the share of all samples that each leaves, by a name of the attack.
    best_attack  what best-attack accuracy would be with them.
    """

    attacks: dict[str, float]
    best_attack: float


@dataclass(frozen=True, eq=False)
class Begun:
    """An attack or a certificate that is not finished.

    key     the name of its cell.
    cell    what is recorded, as yet.
    places  (k,), the samples that it works on.
    after   the attacks before it in its series.
    """

    key: str
    cell: Cell
    places: IntArray
    after: tuple[str, ...] = ()

    @property
    def progress(self) -> tuple[int, int]:
        """How many samples are recorded, and how many of these are broken."""
        blocks = list(blocks_of(self.cell, self.places, images=False))
        return sum(len(b.index) for b in blocks), sum(int(b.broken.sum()) for b in blocks)

    def __str__(self) -> str:
        done, broken = self.progress
        return f"{done} of {len(self.places)} so far: {broken} broken"


def robust_shares(
    frames: Iterable[pd.DataFrame], total: int, draws: str = "rate"
) -> NDArray[np.float64]:
    """In what share of its draws a model is right on each sample (n,) at the worst of its points in
    some records: 0 or 1 unless it is randomised.

    The worst is chosen by other draws, so that the choice adds no bias; of several that are equally
    bad by those it is the mean.
    """
    worst, wrong, tied = np.full(total, -1.0), np.zeros(total), np.zeros(total)
    for frame in frames:
        index, trial = frame["index"].to_numpy(), frame["trial"].to_numpy()
        share = frame[draws].to_numpy()
        worse, same = trial > worst[index], trial == worst[index]
        worst[index[worse]], wrong[index[worse]], tied[index[worse]] = trial[worse], share[worse], 1
        tied[index[same]] += 1
        wrong[index[same]] += (share[same] - wrong[index[same]]) / tied[index[same]]
    return 1 - wrong


def work(frame: pd.DataFrame) -> dict[str, object]:
    """What an attack did, from its records: how many samples it attacked and broke, the distances
    of those that it broke, and its mean passes per attacked sample."""
    distance = frame["distance"][frame["broken"]]
    return {
        "attacked": len(frame),
        "broken": int(frame["broken"].sum()),
        "unbroken, left out of distance": int((~frame["broken"]).sum()),
        "median distance": distance.median(),
        "mean distance": distance.mean(),
        "forwards": frame["forwards"].mean(),
        "backwards": frame["backwards"].mean(),
    }


def doubtful(frame: pd.DataFrame, allowed: int | None = None) -> "pd.Series[bool]":
    """Which rows of some records the judge saw misclassified in one precision only, `allowed` being
    a class that does not count as that."""
    wrong = (frame["predicted"] != frame["label"]) & (frame["predicted"] != allowed)
    return wrong & frame["distance"].isna()
