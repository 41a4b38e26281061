"""Which samples of a split are measured: the first, random ones, or each class by its share."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from attacks import noise
from benchmark.spec.run_spec import Choose

# The stream of the noise that choices draw, which no attack and no judge draws from.
_STREAM = 3 << 16


@dataclass(frozen=True)
class Choice:
    """What readers of a table must know of how its samples were chosen.

    choose   how: see `RunSpec`.
    seed     what the choice was drawn by.
    of       how many samples the split has.
    missing  the names of the classes of the data set that no chosen sample is of.
    """

    choose: Choose
    seed: int
    of: int
    missing: list[str]


def ordered(labels: NDArray[np.int64], choose: Choose, seed: int) -> NDArray[np.int64]:
    """The numbers (n,) of all samples of a split with labels (n,), in the order in which they are
    chosen: a choice of k samples is the first k of them, so that a larger choice has all of a
    smaller one.

    "stratified" begins with one sample of each class. Then each class gets its next sample by the
    rule of Sainte-Laguë, which keeps the shares of the classes as near to those in the split as
    whole numbers can be. Which sample of a class comes next is random.

    >>> labels = np.array([0, 0, 0, 0, 1, 1])  # sorted: the first three are of one class
    >>> sorted(labels[ordered(labels, "stratified", seed=0)[:3]].tolist())
    [0, 0, 1]
    """
    drawn = noise.uniform(seed, torch.arange(len(labels)), _STREAM, ()).numpy()
    if choose == "first":
        return np.arange(len(labels))
    if choose == "random":
        return np.argsort(drawn, kind="stable")
    turn = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turns = (np.arange(len(members)) + 0.5) / len(members)
        turns[0] = 0
        turn[members[np.argsort(drawn[members], kind="stable")]] = turns
    return np.lexsort((drawn, turn))
