"""The columns of a table: what kind of feature each is, and its values scaled to [0, 1]."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pandas.api import types
from torch import Tensor

from benchmark.data.dataset import Feature
from benchmark.data.files import DataError

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Features of n rows: their values (n, features), float32 in [0, 1], which of them attacks must
    not change, bool (features,), and the bounds that were scaled by."""

    values: NDArray[np.float32]
    frozen: Tensor
    features: tuple[Feature, ...]


def scaled(
    rows: pd.DataFrame,
    limits: Mapping[str, tuple[float, float]],
    frozen: Collection[str],
    free: Collection[str],
    where: str,
) -> Table:
    """The features of a table, each by its bounds: those in `limits`, or its least and its largest
    value.

    frozen  columns that attacks must not change, besides those of whole numbers and of categories.
    free    columns of whole numbers that attacks may change all the same.

    Raises DataError, in a line that begins with `where`, for columns that cannot be used.
    """
    for name in free:
        if name in frozen:
            raise DataError(f"{where}: {name!r} is named in frozen and in free: it is one of them")
    columns, are_frozen, features = [], [], []
    for name in rows.columns:
        values, is_fixed, is_category = _numbers(rows[name], name, where)
        if is_category and (name in free or name in limits):
            option = "free" if name in free else "bounds"
            raise DataError(f"{where}: column {name!r} holds categories: leave it out of {option}")
        lower, upper = limits.get(name, (float(values.min()), float(values.max())))
        for beyond in np.flatnonzero((values < lower) | (values > upper))[:1]:
            raise DataError(
                f"{where}: {name!r} is {values[beyond]:g} in row {beyond + 1}, out of its bounds "
                f"{lower:g} and {upper:g}"
            )
        is_constant = lower == upper
        if is_constant and name in free:
            raise DataError(
                f"{where}: {name!r} has one value alone, so that it has no range: give its bounds"
            )
        columns.append(np.zeros_like(values) if is_constant else (values - lower) / (upper - lower))
        are_frozen.append(is_constant or name in frozen or (is_fixed and name not in free))
        features.append(Feature(name, lower, upper))
    if all(are_frozen):
        raise DataError(
            f"{where}: all features are frozen, so that nothing can be attacked: name whole "
            "numbers that may change, as in free=COLUMN+COLUMN"
        )
    table = np.stack(columns, 1).astype(np.float32)
    return Table(table, torch.tensor(are_frozen), tuple(features))


def _numbers(column: "pd.Series[Any]", name: str, where: str) -> tuple[Values, bool, bool]:
    """The values (n,) of a column as numbers, whether these must be left as they are, and whether
    that is because they stand for categories."""
    undefined = column.isna()
    if undefined.any():
        raise DataError(
            f"{where}: column {name!r} lacks {int(undefined.sum())} of {len(column)} values, the "
            f"first in row {int(undefined.to_numpy().argmax()) + 1}: fill them, or leave the rows "
            "or the column out"
        )
    if types.is_bool_dtype(column.dtype):
        return np.asarray(column, np.float64), True, True
    if types.is_integer_dtype(column.dtype):
        return np.asarray(column, np.float64), True, False
    if types.is_float_dtype(column.dtype):
        values = np.asarray(column, np.float64)
        if not np.isfinite(values).all():
            row = int(np.isinf(values).argmax()) + 1
            raise DataError(f"{where}: column {name!r} is infinite in row {row}")
        return values, False, False
    texts = column.astype(object).tolist()
    for text in texts:
        if not isinstance(text, str):
            raise DataError(
                f"{where}: column {name!r} holds {type(text).__name__} values: make them numbers "
                "or texts, or leave the column out"
            )
    _refuse_mixed(texts, name, where)
    categories = {text: number for number, text in enumerate(sorted(set(texts)))}
    return np.array([categories[text] for text in texts], np.float64), True, True


def _refuse_mixed(texts: list[str], name: str, where: str) -> None:
    """Raises DataError where texts stand among numbers, as a question mark for a missing one."""
    are_numbers = pd.to_numeric(pd.Series(texts), errors="coerce").notna().to_numpy()
    if len(texts) / 2 <= are_numbers.sum() < len(texts):
        row = int(are_numbers.argmin())
        raise DataError(
            f"{where}: column {name!r} holds numbers and, in row {row + 1}, {texts[row]!r}: fill "
            "it, or leave the row out"
        )
