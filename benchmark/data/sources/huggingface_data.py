"""Data sets of Hugging Face: from a folder, or by a name from the cache of its library."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attacks.messages import one_line
from benchmark.data.dataset import Dataset
from benchmark.data.files import DataError
from benchmark.data.sources.class_names import by_value, checked
from benchmark.data.sources.given_options import Given
from benchmark.data.sources.image_files import Cut, Picture, shape_of
from benchmark.data.sources.image_folder import TEST, pools_of
from benchmark.data.sources.split_rule import dataset_of
from benchmark.errors import did_you_mean
from benchmark.images import Rows


def huggingface(given: Given) -> Dataset:
    """Images of a data set of Hugging Face, in a folder that save_to_disk made or that holds
    Parquet files or images, or by a name such as OWNER/NAME.

    A name is sought in the cache of the package `datasets`, and fetched only with download=true.
    The columns of images and of labels are told by their types. Images are read as with
    folder=PATH. Raises DataError, in one line, for what is not so.
    """
    tables = _tables(given)
    first = next(iter(tables.values()))
    image, label = _image_column(given, first), _label_column(given, first)
    cut = Cut(given.pixels("size"), given.pixels("crop"))
    classes, y = _classes(tables, label, given.base)
    pictures = {split: _pictures(table, image, given.base) for split, table in tables.items()}
    shape = shape_of([picture for each in pictures.values() for picture in each], cut)
    by_split = {split: (None, y[split]) for split in tables}
    name = given.name(
        image=given.options.get("image"), label=given.options.get("label"), size=cut.size,
        crop=cut.crop, split=given.options.get("split"),
    )  # fmt: skip
    return dataset_of(name, classes, shape, pools_of(pictures, by_split, cut, shape), given.share())


def _tables(given: Given) -> dict[str, Any]:
    """The tables of `datasets`, by their splits; under "" where there is none. Raises DataError."""
    download = given.options.get("download", "false")
    if download not in ("true", "false"):
        raise DataError(f"{given.base}: download is true or false, not {download!r}")
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{given.base} needs a package: pip install 'bestattack[huggingface]'"
        ) from error
    try:
        with _alone(datasets, may_fetch=download == "true"):
            loaded = _loaded(datasets, given)
    except Exception as error:  # of the package, of what it calls, or of the network
        if given.path is None and download == "false":
            raise DataError(
                f"{given.base} is no folder, and not in the cache of datasets: add download=true "
                f"to fetch it ({type(error).__name__})"
            ) from error
        raise DataError(f"{given.base} cannot be loaded: {one_line(error)}") from error
    splits = loaded if isinstance(loaded, dict) else {"": loaded}
    test = next((name for name in TEST if name in splits), None)
    if "train" in splits and test is not None:
        splits = {"train": splits["train"], "test": splits[test]}
    elif len(splits) > 1:
        held = ", ".join(map(str, splits))
        raise DataError(f"{given.base} has the splits {held}, and not both train and test")
    else:
        splits = {"": next(iter(splits.values()))}
    for split, table in splits.items():
        if not len(table):
            raise DataError(f"{given.base}: {split or 'it'} holds no images")
    return splits


def _loaded(datasets: Any, given: Given) -> Any:
    """What the package loads, from a folder or by a name."""
    if given.path is None:
        return datasets.load_dataset(given.place)
    if any((given.path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return datasets.load_from_disk(str(given.path))
    return datasets.load_dataset(str(given.path.absolute()))


@contextmanager
def _alone(datasets: Any, may_fetch: bool) -> Iterator[None]:
    """While the context lasts, the package shows no progress and, unless it may fetch, does not ask
    the network, not even for a newer version of what is in its cache."""
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    was_shown = not datasets.are_progress_bars_disabled()
    level = datasets.logging.get_verbosity()
    try:
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        if not may_fetch:
            datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
        datasets.logging.set_verbosity(level)
        if was_shown:
            datasets.enable_progress_bars()


def _image_column(given: Given, table: Any) -> str:
    """The column of images."""
    columns = [name for name, kind in table.features.items() if type(kind).__name__ == "Image"]
    hint = "name one of images that are files; for rows of numbers write csv=FILE or parquet=FILE"
    return _column(given, "image", columns, columns, hint)


def _label_column(given: Given, table: Any) -> str:
    """The column of labels."""
    columns = [name for name, kind in table.features.items() if type(kind).__name__ == "ClassLabel"]
    others = [name for name, kind in table.features.items() if type(kind).__name__ == "Value"]
    return _column(given, "label", columns, [*columns, *others], "name that of the labels")


def _column(given: Given, option: str, usual: list[str], known: list[str], hint: str) -> str:
    """The column that an option names, or else the only one that is usual for it."""
    named = given.options.get(option)
    if named is None:
        if len(usual) == 1:
            return usual[0]
        held = ", ".join(known) or "none that fits"
        raise DataError(f"{given.base}: which column is the {option}? Add {option}=COLUMN: {held}")
    if named not in known:
        raise DataError(
            f"{given.base} has no column {named!r} for {option}: {did_you_mean(named, known, hint)}"
        )
    return named


def _classes(
    tables: Mapping[str, Any], label: str, where: str
) -> tuple[tuple[str, ...], dict[str, Rows]]:
    """The names of the classes, and the labels (n,) of each split."""
    values = {split: list(table[label]) for split, table in tables.items()}
    together = [value for of_split in values.values() for value in of_split]
    kind = next(iter(tables.values())).features[label]
    if type(kind).__name__ == "ClassLabel":
        classes = checked(list(kind.names), where)
        for row, value in enumerate(together):
            if value is None or not 0 <= value < len(classes):
                raise DataError(f"{where}: the label in row {row + 1} is missing")
        numbers = np.array(together, np.int64)
    else:
        classes, numbers = by_value(together, where)
    ends = np.cumsum([len(of_split) for of_split in values.values()])[:-1]
    return classes, dict(zip(values, np.split(numbers, ends), strict=True))


def _pictures(table: Any, column: str, where: str) -> list[Picture]:
    """The images of a table, not read yet."""
    from datasets import Image

    encoded = table.cast_column(column, Image(decode=False))

    def content(row: int) -> Path | bytes:
        held = encoded[row][column]
        if held is None:
            raise ValueError("it is missing")
        return held["bytes"] if held["bytes"] is not None else Path(held["path"])

    return [
        Picture(f"{where}: the image in row {row + 1}", partial(content, row))
        for row in range(len(encoded))
    ]
