"""Images in a folder, sorted into a folder for each class, or with a table of their labels."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from attacks.messages import one_line
from benchmark.data.dataset import Dataset
from benchmark.data.files import DataError
from benchmark.data.sources.class_names import by_value, checked
from benchmark.data.sources.given_options import Given
from benchmark.data.sources.image_files import SUFFIXES, Cut, Picture, read_pictures, shape_of
from benchmark.data.sources.split_rule import Pool, dataset_of
from benchmark.images import Rows

# The names of folders that hold a split. Where there are several for testing, the first counts.
TEST = ("test", "val", "valid", "validation")


def folder(given: Given) -> Dataset:
    """Images in PATH/CLASS/, or in PATH/train/CLASS/ and PATH/test/CLASS/ (or val), or in PATH with
    labels=FILE.csv.

    Classes are in the order of the alphabet, and so are the images of each. Images have 8 bits for
    a channel, which are divided by 255. They are grey where all are, and have three channels
    otherwise; transparency is left out. Raises DataError, in one line, for what is not so.
    """
    cut = Cut(given.pixels("size"), given.pixels("crop"))
    table, where = given.file("labels"), str(given.at)
    if table is not None:
        classes, (files, y) = _labelled(given.at, table)
        by_split = {"": (files, y)}
    else:
        classes, by_split = _sorted_into_folders(given.at)
    pictures = {
        split: [_picture(path, given.at) for path in files]
        for split, (files, _) in by_split.items()
    }
    shape = shape_of([picture for each in pictures.values() for picture in each], cut)
    name = given.name(
        size=cut.size, crop=cut.crop, split=given.options.get("split"),
        labels=None if table is None else table.name,
    )  # fmt: skip
    return dataset_of(
        name,
        checked(classes, where),
        shape,
        pools_of(pictures, by_split, cut, shape),
        given.share(),
    )


def pools_of(
    pictures: Mapping[str, Sequence[Picture]],
    by_split: Mapping[str, tuple[object, Rows]],
    cut: Cut,
    shape: tuple[int, int, int],
) -> dict[str, Pool]:
    """The pictures of each split, with their labels, the second in each of `by_split`."""

    def read(each: Sequence[Picture], rows: Rows) -> Tensor:
        return read_pictures([each[row] for row in rows], cut, shape)

    return {split: Pool(y, partial(read, pictures[split])) for split, (_, y) in by_split.items()}


def _sorted_into_folders(root: Path) -> tuple[list[str], dict[str, tuple[list[Path], Rows]]]:
    """The names of all classes, and for each split the images and their labels (n,)."""
    inside = _folders(root)
    test = next((name for name in TEST if name in inside), None)
    homes = {"": root}
    if "train" in inside or test is not None:
        if "train" not in inside or test is None:
            raise DataError(
                f"{root} has {test or 'train'}/ alone, and not both train/ and test/: write "
                f"folder={root / (test or 'train')}"
            )
        homes = {"train": root / "train", "test": root / test}
    classes = sorted({name for home in homes.values() for name in _folders(home)})
    if not classes:
        raise DataError(
            f"{root} has no folders, one for each class: make them, or write "
            "labels=FILE.csv with a table of the images' names and labels"
        )
    by_split = {}
    for split, home in homes.items():
        files, labels = list[Path](), list[int]()
        for number, name in enumerate(classes):
            of_class = _images(home / name)
            if not of_class and (home / name).is_dir():
                raise DataError(f"{home / name} holds no images: fill or delete it")
            files += of_class
            labels += [number] * len(of_class)
        if not files:
            raise DataError(f"{home} holds no images")
        by_split[split] = files, np.array(labels, np.int64)
    return classes, by_split


def _labelled(root: Path, table: Path) -> tuple[list[str], tuple[list[Path], Rows]]:
    """The names of the classes, and the images that a table names, with their labels."""
    try:
        frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{table} is no table: {one_line(error)}") from error
    if frame.shape[1] < 2 or frame.empty:
        raise DataError(f"{table} needs a header, and two columns: names of images, and labels")
    names, labels = frame.iloc[:, 0].tolist(), frame.iloc[:, 1].tolist()
    files = [root / name for name in names]
    missing = [name for name, path in zip(names, files, strict=True) if not path.is_file()]
    if missing:
        raise DataError(
            f"{table} names {missing[0]!r}, which is not in {root} ({len(missing)} of {len(names)} "
            "are missing)"
        )
    # Whole numbers are sorted as numbers.
    whole = all(label.strip().lstrip("-").isdecimal() for label in labels)
    classes, y = by_value([int(label) for label in labels] if whole else labels, str(table))
    return list(classes), (files, y)


def _folders(root: Path) -> list[str]:
    return sorted(
        path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _images(root: Path) -> list[Path]:
    """The images in a folder and those in it, in the order of their names."""
    found = root.rglob("*") if root.is_dir() else ()
    return sorted(
        path
        for path in found
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def _picture(path: Path, root: Path) -> Picture:
    return Picture(str(path.relative_to(root.parent)), lambda: path)
