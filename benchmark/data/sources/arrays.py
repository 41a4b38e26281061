"""Images, or rows of features, in arrays of NumPy's files."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacks.messages import one_line
from benchmark.data.dataset import Dataset
from benchmark.data.files import DataError
from benchmark.data.sources.class_names import by_number, by_value
from benchmark.data.sources.given_options import Given
from benchmark.data.sources.split_rule import Pool, dataset_of
from benchmark.images import BLOCK, MOST_BYTES, Rows, too_dark

Array = NDArray[Any]

# The names of arrays in a file, in lower case. Those of a split are called so too, with a part of
# _SPLITS before or behind.
_X, _Y = ("x", "images", "data", "inputs"), ("y", "labels", "label", "targets", "target")
_NAMES = ("class_names", "label_names", "classes", "names")
_SPLITS = {"": ("",), "train": ("train", "training"), "test": ("test", "val", "valid")}


class _InFile:
    """A large array, which stays in its file until some of its rows are read."""

    def __init__(self, path: Path) -> None:
        self._opened = partial(np.load, path, "r", allow_pickle=False)
        array = self._opened()
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, array.dtype

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> Array:
        # Opened anew, so that what was read of the file does not stay in memory.
        return np.array(self._opened()[rows])


def npz(given: Given) -> Dataset:
    """Images and labels in a file of NumPy: arrays x and y, or x_train, y_train, x_test and y_test,
    also called images and labels.

    Images are (n, H, W), (n, H, W, C) or (n, C, H, W), and rows of features (n, features). An array
    class_names may name the classes. Labels are numbers from 0 or, without class_names, texts.
    Raises DataError, in one line, for what is none of that.
    """
    arrays = _read(given.at)
    if not isinstance(arrays, dict):
        raise DataError(f"{given.at} holds one array: write npy={given.place}/labels=FILE.npy")
    if len(lower := {name.lower(): array for name, array in arrays.items()}) < len(arrays):
        raise DataError(f"{given.at} holds {', '.join(arrays)}, of which some differ in case alone")
    arrays = lower
    names = _named(arrays, _NAMES)
    by_split: dict[str, tuple[Array | _InFile, Array]] = {}
    for split in _SPLITS:
        x, y = _pair(arrays, split)
        if y is None and x is not None and not split:
            y = _labels_beside(given)
        if x is not None and y is None:
            wanted = f"y_{split}" if split else "y, or write labels=FILE.npy"
            raise DataError(f"{given.at} has images and no labels: add an array {wanted}")
        if x is not None and y is not None:
            by_split[split] = x, y
    if not by_split:
        held = ", ".join(arrays) or "nothing"
        raise DataError(
            f"{given.at} holds {held}: call its arrays x and y, or x_train, y_train, x_test, y_test"
        )
    if len(by_split) > 1:
        by_split.pop("", None)
    if len(by_split) == 1 and "" not in by_split:
        (split,) = by_split
        raise DataError(
            f"{given.at} has the arrays of {split} alone: add those of the other split, or call "
            "them x and y"
        )
    return _dataset(given, by_split, names)


def npy(given: Given) -> Dataset:
    """Images in a file of NumPy, one array, with labels in another: npy=x.npy/labels=y.npy.

    Arrays are as in npz=FILE. Raises DataError, in one line, for what is not.
    """
    x, y = _read(given.at), _labels_beside(given)
    if isinstance(x, dict):
        raise DataError(f"{given.at} holds several arrays: write npz={given.place}")
    if y is None:
        raise DataError(f"{given.at} has no labels: write npy={given.place}/labels=FILE.npy")
    return _dataset(given, {"": (x, y)}, None)


def _dataset(
    given: Given, by_split: Mapping[str, tuple[Array | _InFile, Array]], names: Array | None
) -> Dataset:
    """The data set of the arrays x and y of each split."""
    scale, where = given.scale(), str(given.at)
    y = [_labels(labels, where) for _, labels in by_split.values()]
    for (x, _), labels in zip(by_split.values(), y, strict=True):
        if x.ndim == 0 or len(x) != len(labels):
            raise DataError(f"{where} has {x.shape} images and {len(labels)} labels: one for each")
        if not len(labels) or 0 in x.shape:
            raise DataError(f"{where} holds no images: one of its arrays is empty")
    # All splits together have the classes.
    together = np.concatenate(y)
    if together.dtype.kind == "U":
        classes, numbers = by_value(together.tolist(), where)
    else:
        texts = None if names is None else [str(name) for name in names.ravel().tolist()]
        classes, numbers = by_number(together, texts, where), together.astype(np.int64)
    ends = np.cumsum([len(labels) for labels in y])[:-1]
    pools = {
        split: _pool(x, labels, scale, where)
        for (split, (x, _)), labels in zip(by_split.items(), np.split(numbers, ends), strict=True)
    }
    shapes = [tuple(pool.samples(np.arange(1)).shape[1:]) for pool in pools.values()]
    if len(set(shapes)) > 1:
        raise DataError(f"{where}: images to train on are {shapes[0]}, and to test {shapes[1]}")
    file = given.file("labels")
    name = given.name(
        scale=scale, split=given.options.get("split"), labels=None if file is None else file.name
    )
    return dataset_of(name, classes, shapes[0], pools, given.share())


def _read(path: Path) -> dict[str, Array] | Array | _InFile:
    """All arrays of a file, none of which may run code. Raises DataError."""
    try:
        if path.suffix == ".npy" and path.stat().st_size > MOST_BYTES // 4:
            return _InFile(path)
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return {name: content[name] for name in content.files}
    except Exception as error:  # damaged headers and archives raise anything
        if any(word in str(error) for word in ("allow_pickle", "pickled", "Python objects")):
            raise DataError(
                f"{path} holds Python objects, which are not loaded, since they may run code: save "
                "arrays of numbers"
            ) from error
        raise DataError(f"{path} is damaged, or no file of NumPy: {one_line(error)}") from error


def _pair(arrays: Mapping[str, Array], split: str) -> tuple[Array | None, Array | None]:
    """Images and labels of a split, of the first of its names under which there are both; or what
    there is under any, and None for the other."""
    pairs = [(_named(arrays, _X, word), _named(arrays, _Y, word)) for word in _SPLITS[split]]
    whole = [pair for pair in pairs if pair[0] is not None and pair[1] is not None]
    some = [pair for pair in pairs if pair[0] is not None or pair[1] is not None]
    return next(iter(whole or some), (None, None))


def _named(arrays: Mapping[str, Array], names: tuple[str, ...], word: str = "") -> Array | None:
    """The array of one of the names, with a word for the split before or behind it. The first that
    fits is taken."""
    for name in names:
        for key in (f"{name}_{word}", f"{word}_{name}") if word else (name,):
            if key in arrays:
                return arrays[key]
    return None


def _labels_beside(given: Given) -> Array | None:
    """The labels in a file of their own."""
    path = given.file("labels")
    labels = None if path is None else _read(path)
    if isinstance(labels, dict):
        raise DataError(f"{path} holds several arrays: labels must be one, in a file .npy")
    return labels[:] if isinstance(labels, _InFile) else labels


def _labels(labels: Array, where: str) -> Array:
    """Labels (n,), whole numbers or texts, also from (n, 1) or from one-hot rows (n, classes)."""
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "biuf":
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
            raise DataError(f"{where}: labels {labels.shape} are neither numbers nor one-hot rows")
        numbers: Array = labels.argmax(1)
        return numbers
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"{where}: labels must be (n,), one for each image, not {labels.shape}")
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "f" and (labels == labels.round()).all():
        return labels.astype(np.int64)
    if labels.dtype.kind not in "iuU":
        raise DataError(f"{where}: labels must be whole numbers or texts, not {labels.dtype}")
    return labels


def _pool(x: Array | _InFile, y: Rows, scale: float | None, where: str) -> Pool:
    """The samples x, which are checked, with labels y (n,)."""
    if x.ndim not in (2, 3, 4):
        raise DataError(
            f"{where}: images must be (n, H, W), (n, H, W, C) or (n, C, H, W), not {x.shape}"
        )
    if x.ndim == 4 and x.shape[3] not in (1, 3, 4) and x.shape[3] < min(x.shape[1:3]):
        raise DataError(
            f"{where}: images {x.shape} seem to have {x.shape[3]} channels, last: put channels "
            "other than 1, 3 or 4 second, (n, C, H, W)"
        )
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where}: images must be numbers, not {x.dtype}")
    least, most, undefined = _extremes(x)
    if scale is None and x.dtype.kind in "iu":
        raise DataError(
            f"{where}: images are whole numbers, {x.dtype}, up to {most:g}: add scale=255 to the "
            "name, or whatever white is"
        )
    if undefined:
        raise DataError(f"{where}: {undefined} of {len(x)} images hold NaN: leave them out")
    white = scale or 1
    if least < 0 or most > white:
        raise DataError(
            f"{where}: images go from {least:g} to {most:g}, not from 0 to {white:g}: add the "
            "largest value that there can be, as in scale=255, and put any normalisation inside "
            "the model"
        )
    if scale is not None and (wrong := too_dark(most, scale)):
        raise DataError(f"{where}: {wrong}")

    def samples(rows: Rows) -> Tensor:
        return torch.from_numpy(np.divide(_channels_first(x[rows]), white, dtype=np.float32))

    return Pool(y, samples)


def _extremes(x: Array | _InFile) -> tuple[float, float, int]:
    """The least and the largest value of images, and how many of these hold NaN."""
    blocks = (x[start : start + BLOCK] for start in range(0, len(x), BLOCK))
    of_each = [
        (block.min(), block.max(), np.isnan(block).reshape(len(block), -1).any(1).sum())
        for block in blocks
    ]
    least, most, undefined = zip(*of_each, strict=True)
    return float(min(least)), float(max(most)), int(sum(undefined))


def _channels_first(x: Array) -> Array:
    """Images as (n, C, H, W); rows of features as they are."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x
