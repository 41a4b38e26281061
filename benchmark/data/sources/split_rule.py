"""How samples that come without train and test are split, by a rule, and what becomes of those that
come with both."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.data.dataset import Dataset, Split
from benchmark.data.files import DataError
from benchmark.images import Rows, kept
from benchmark.spec.run_spec import Part


@dataclass(frozen=True)
class Pool:
    """Samples of one origin: their labels y (n,), int64, and what gives those in some rows (k,), as
    float32 (k, *shape) in [0, 1]."""

    y: Rows
    samples: Callable[[Rows], Tensor]


# The samples by the split that they come with; all under "" where they come with none.
Pools = Mapping[Part | str, Pool]


def training_rows(y: Rows, share: float) -> Rows:
    """The rows (k,), in order, of the samples with labels y (n,) that are trained on.

    Of each class, samples are ordered by the SHA-256 of their row, a rule that no library's version
    changes, and the first of them are taken: `share` of them, rounded, but one at least on either
    side where there are two.

    >>> training_rows(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.75)
    array([0, 1, 3, 4, 6, 7])
    """
    chosen = []
    for label in np.unique(y):
        members = sorted(np.flatnonzero(y == label).tolist(), key=_order)
        count = round(share * len(members))
        chosen += members[: min(max(count, 1), max(len(members) - 1, 1))]
    return np.array(sorted(chosen), np.int64)


def _order(row: int) -> bytes:
    return hashlib.sha256(str(row).encode()).digest()


def dataset_of(
    name: str,
    labels: tuple[str, ...],
    shape: tuple[int, ...],
    pools: Pools,
    share: float | None,
    **fields: Any,
) -> Dataset:
    """A data set of samples from files.

    share   what part of them is trained on; None where they come with a train and a test split, or
            where nothing is trained: all samples are then those of the test split.
    fields  further ones of the Dataset.

    Raises DataError where there is something to split, and it is split already.
    """
    base = name.partition("/")[0]
    if {"train", "test"} <= pools.keys():
        if share is not None:
            raise DataError(f"{base} has a train and a test split already: leave split={share} out")
        return Dataset(name, labels, shape, partial(_load_own, pools, shape), **fields)
    (pool,) = pools.values()
    return Dataset(name, labels, shape, partial(_load_part, base, pool, shape, share), **fields)


def _load_own(pools: Pools, shape: tuple[int, ...], part: Part) -> Split:
    return _taken(pools[part], shape, np.arange(len(pools[part].y)))


def _load_part(
    base: str, pool: Pool, shape: tuple[int, ...], share: float | None, part: Part
) -> Split:
    rows = np.arange(len(pool.y))
    if share is None:
        if part == "train":
            raise DataError(
                f"{base} is not split, so that nothing can be trained on it: add split=0.8 to its "
                "name, to train on 80% of each class"
            )
        return _taken(pool, shape, rows)
    training = training_rows(pool.y, share)
    return _taken(pool, shape, training if part == "train" else np.setdiff1d(rows, training))


def _taken(pool: Pool, shape: tuple[int, ...], rows: Rows) -> Split:
    return Split(kept(pool.samples, rows, shape), torch.from_numpy(pool.y[rows]))
