"""Rows of features with labels, in tables of files."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attacks.messages import one_line
from benchmark.data.dataset import Dataset
from benchmark.data.files import DataError
from benchmark.data.sources.class_names import by_value
from benchmark.data.sources.given_options import Given
from benchmark.data.sources.image_folder import TEST
from benchmark.data.sources.split_rule import Pool, dataset_of
from benchmark.data.sources.table_columns import Table, scaled
from benchmark.errors import did_you_mean
from benchmark.images import Rows

# What the column of labels is called where the name does not say.
_LABEL = ("label", "class", "target", "y")


def csv(given: Given) -> Dataset:
    """Rows of a table: one column of labels, and features, each scaled to [0, 1] by its bounds.
    FILE may be a folder with train.csv and test.csv.

    Numbers with a fraction may be attacked. Columns of whole numbers, of texts and of yes or no are
    frozen: attacks must not change them. Texts become the number of the category in alphabetical
    order. A column that has one value alone becomes 0, and is frozen. Bounds are those of all rows,
    so that no row has to be moved into them, or those that are given.

    Raises DataError, in one line, for what cannot be used, among it values that are missing.
    """
    return _dataset(given, ".csv")


def parquet(given: Given) -> Dataset:
    """Rows of a table as with csv=FILE, in the format of Apache Parquet, which needs pyarrow."""
    return _dataset(given, ".parquet")


def _dataset(given: Given, ending: str) -> Dataset:
    """The data set of a table, or of the tables of a folder, in files that end so."""
    frames = {split: _read(path) for split, path in _files(given.at, ending).items()}
    first, where = next(iter(frames.values())), str(given.at)
    for frame in frames.values():
        if set(frame.columns) != set(first.columns):
            odd = sorted(set(frame.columns) ^ set(first.columns))[0]
            raise DataError(f"{where}: column {odd!r} is in one of its two tables alone")
    # All rows together have the categories and the bounds.
    rows = pd.concat([frame[first.columns] for frame in frames.values()], ignore_index=True)
    label = _label(given, rows, where)
    missing = rows[label].isna()
    if missing.any():
        raise DataError(f"{where}: the label in row {int(missing.argmax()) + 1} is missing")
    classes, y = by_value(rows[label].tolist(), where)
    features = [name for name in rows.columns if name != label]
    if not features:
        raise DataError(f"{where} has no column but {label!r}: there is nothing to classify by")
    bounds, frozen, free = (
        given.file("bounds"),
        _columns(given, "frozen", features),
        _columns(given, "free", features),
    )
    limits = {} if bounds is None else _bounds(bounds, features)
    table = scaled(rows[features], limits, frozen, free, where)
    name = given.name(
        label=label, split=given.options.get("split"),
        bounds=None if bounds is None else bounds.name,
        frozen="+".join(frozen) or None, free="+".join(free) or None,
    )  # fmt: skip
    return dataset_of(
        name, classes, (len(features),), _pools(frames, table, y), given.share(),
        frozen=table.frozen if bool(table.frozen.any()) else None, features=table.features,
    )  # fmt: skip


def _pools(frames: Mapping[str, pd.DataFrame], table: Table, y: Rows) -> dict[str, Pool]:
    """The rows of each of the tables that were put together."""
    ends = np.cumsum([len(frame) for frame in frames.values()])[:-1]
    values, labels = np.split(table.values, ends), np.split(y, ends)

    def taken(of_split: np.ndarray, rows: Rows) -> Tensor:
        return torch.from_numpy(of_split[rows])

    return {split: Pool(labels[i], partial(taken, values[i])) for i, split in enumerate(frames)}


def _files(path: Path, ending: str) -> dict[str, Path]:
    """The file, or those of train and test where the path is that of a folder."""
    if not path.is_dir():
        return {"": path}
    test = next((name for name in TEST if (path / (name + ending)).is_file()), None)
    train = path / f"train{ending}"
    if test is None or not train.is_file():
        raise DataError(
            f"{path} is a folder without train{ending} and test{ending}: name a file in it"
        )
    return {"train": train, "test": path / (test + ending)}


def _read(path: Path) -> pd.DataFrame:
    """The table in a file. Raises DataError."""
    try:
        if path.suffix == ".parquet":
            import pyarrow  # noqa: F401 (which pandas uses)

            frame = pd.read_parquet(path, engine="pyarrow")
        else:
            frame = pd.read_csv(path)
    except ImportError as error:
        raise DataError(f"{path} needs a package: pip install 'bestattack[parquet]'") from error
    except Exception as error:  # of pandas or of pyarrow
        raise DataError(f"{path} is no table: {one_line(error)}") from error
    frame.columns = [str(name) for name in frame.columns]
    if frame.shape[1] < 2:
        raise DataError(f"{path} has one column: put commas between columns, and a header on top")
    if frame.empty:
        raise DataError(f"{path} has no rows")
    for name in frame.columns:
        if not name.strip() or name.startswith("Unnamed: "):
            raise DataError(
                f"{path} has a column without a name: name it, or leave row numbers out "
                "(to_csv(index=False))"
            )
    return frame


def _label(given: Given, rows: pd.DataFrame, where: str) -> str:
    """The column of labels."""
    names = list(rows.columns)
    label = given.options.get("label")
    if label is None:
        usual = [name for name in names if name.lower() in _LABEL]
        if len(usual) != 1:
            raise DataError(
                f"{where}: which column has the labels? Add label=COLUMN to the name: there are "
                f"{_listed(names)}"
            )
        return usual[0]
    if label not in names:
        hint = did_you_mean(label, names, f"there are {_listed(names)}")
        raise DataError(f"{where} has no column {label!r}: {hint}")
    return label


def _columns(given: Given, option: str, features: list[str]) -> list[str]:
    """The features that an option names, with + between them, in the order of the table."""
    value = given.options.get(option)
    if value is None:
        return []
    named = [value] if value in features else value.split("+")
    for name in named:
        if name not in features:
            hint = did_you_mean(name, features, f"there are {_listed(features)}")
            raise DataError(f"{given.base}: {option} names {name!r}, which is no feature: {hint}")
    return [name for name in features if name in named]


def _bounds(path: Path, features: list[str]) -> dict[str, tuple[float, float]]:
    """The bounds of features, by their names, in a table."""
    frame = _read(path)
    if list(frame.columns) != ["feature", "lower", "upper"]:
        raise DataError(f"{path} must have the columns feature, lower and upper")
    limits: dict[str, tuple[float, float]] = {}
    for feature, lower, upper in frame.itertuples(index=False):
        name = str(feature)
        if name not in features:
            hint = did_you_mean(name, features, f"there are {_listed(features)}")
            raise DataError(f"{path} bounds {name!r}, which is no feature: {hint}")
        try:
            limits[name] = float(lower), float(upper)
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: the bounds of {name!r} are no numbers") from error
        if not -np.inf < limits[name][0] < limits[name][1] < np.inf:
            raise DataError(f"{path}: the lower bound of {name!r} must be below the upper one")
    return limits


def _listed(names: list[str]) -> str:
    """Names, of which there may be many, for a message."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
