"""The kinds of data in files, their options, and how a name such as "npz=images.npz/scale=255"
becomes a data set. A kind is added here alone: a function, and an entry in SOURCES."""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmark.data.dataset import Dataset
from benchmark.data.files import DataError
from benchmark.data.places import data_roots
from benchmark.data.sources.arrays import npy, npz
from benchmark.data.sources.given_options import Given
from benchmark.data.sources.huggingface_data import huggingface
from benchmark.data.sources.image_folder import folder
from benchmark.data.sources.table_files import csv, parquet
from benchmark.data.transforms import to_number
from benchmark.data.variants import VARIANTS
from benchmark.errors import did_you_mean
from benchmark.spec.source_names import HUGGINGFACE, SourceName, read_source


@dataclass(frozen=True)
class Source:
    """A kind of data in files.

    form     how it is written, such as "npz=FILE".
    make     gives the data set. The first paragraph of its docstring is what `bestattack list
             datasets` says of the kind.
    options  what each option does, by how it is written.
    """

    form: str
    make: Callable[[Given], Dataset]
    options: Mapping[str, str]

    @property
    def keys(self) -> list[str]:
        """The names of the options."""
        return [form.partition("=")[0] for form in self.options]


_SPLIT = {"split=0.8": "the share of each class to train on, where there is no train and test"}
_CUT = {
    "size=224": "resizes the shorter side to that, and cuts a square out of the middle",
    "crop=224": "the side of that square, where it is another",
}
_TABLE = {
    "label=COLUMN": "of the classes",
    **_SPLIT,
    "bounds=FILE.csv": "feature, lower, upper: the values that become 0 and 1, if not the data's",
    "frozen=COLUMN+COLUMN": "what attacks must not change",
    "free=COLUMN+COLUMN": "whole numbers that attacks may change",
}

SOURCES = {
    source.form.partition("=")[0]: source
    for source in (
        Source(
            "npz=FILE",
            npz,
            {"scale=255": "what whole numbers are divided by", **_SPLIT}
            | {"labels=FILE.npy": "the labels, where they are in a file of their own"},
        ),
        Source(
            "npy=FILE",
            npy,
            {"labels=FILE.npy": "the labels", "scale=255": "what whole numbers are divided by"}
            | _SPLIT,
        ),
        Source(
            "folder=PATH",
            folder,
            _CUT
            | _SPLIT
            | {"labels=FILE.csv": "the images' names in its first column, and labels"},
        ),
        Source("csv=FILE", csv, _TABLE),
        Source("parquet=FILE", parquet, _TABLE),
        Source(
            "huggingface=FOLDER-OR-NAME",
            huggingface,
            _CUT
            | _SPLIT
            | {
                "image=COLUMN": "of images, where there are several",
                "label=COLUMN": "of classes, where there are several",
                "download=true": "lets a name be fetched, which otherwise must be in the cache",
            },
        ),
    )
}


def load_source(name: str, root: Path | None) -> tuple[Dataset, list[str]]:
    """The data set that a name of data in files begins with, and the variants behind it.

    A relative path is sought in the working directory, and then where the files of all data sets
    are. Raises DataError, in one line.
    """
    kind = name.partition("=")[0]
    if kind not in SOURCES:
        forms = ", ".join(source.form for source in SOURCES.values())
        hint = did_you_mean(kind, SOURCES, f"there are {forms}")
        raise DataError(f"{name}: unknown kind of data {kind!r}: {hint}")
    source, parts = SOURCES[kind], read_source(name, [Path(), *data_roots(root)])
    _check_path(source, parts)
    options: dict[str, str] = {}
    files: dict[str, Path] = {}
    words = list(parts.words)
    while words and _is_option(source, words[0]):
        key, _, value = words[0].partition("=")
        if key in options:
            raise DataError(f"{name} gives {key} twice")
        options[key] = value
        if words[0] in parts.files:
            files[key] = parts.files[words[0]]
        words.pop(0)
    for word in words:
        key = word.partition("=")[0]
        if key in source.keys and key not in VARIANTS:
            raise DataError(f"{name}: {key} is about {source.form}: put it before {words[0]}")
        if key not in VARIANTS:
            known = [*source.keys, *VARIANTS]
            hint = did_you_mean(key, known, f"there are {', '.join(known)}")
            raise DataError(f"{name}: unknown option or variant {key!r}: {hint}")
    return source.make(Given(kind, parts.place, parts.path, options, files)), words


def suggestion(name: str) -> str | None:
    """What to write in place of a name that is a plain path; None where it is none."""
    parts = read_source(f"={name}")
    endings = {".npz": "npz", ".npy": "npy", ".csv": "csv", ".parquet": "parquet"}
    path = parts.path or Path(parts.place)
    kind = endings.get(path.suffix.lower())
    if path.is_dir():
        saved = any((path / file).is_file() for file in ("dataset_dict.json", "dataset_info.json"))
        kind = HUGGINGFACE if saved else "folder"
    if kind is None:
        if parts.path is None:
            return None
        forms = ", ".join(source.form for source in SOURCES.values())
        return f"{parts.place} is no data that can be loaded: there are {forms}"
    place = parts.place.rstrip("/") or parts.place
    further = {"npy": "/labels=FILE.npy", "csv": "/label=COLUMN", "parquet": "/label=COLUMN"}
    words = "".join(f"/{word}" for word in parts.words) or further.get(kind, "")
    return f"{name} is a path, and not the name of a data set: write {kind}={place}{words}"


def describe_sources() -> str:
    """What each kind of data in files is, and its options, as text."""
    width = max(len(source.form) for source in SOURCES.values()) + 2
    lines, table = [], SOURCES["csv"]
    for source in SOURCES.values():
        about = (inspect.getdoc(source.make) or "").partition("\n\n")[0].replace("\n", " ")
        lines.append(_filled(f"{source.form:{width}}{about}", width))
        if source is not table and source.options is table.options:
            lines.append(f"{'':{width}}(options as with {table.form})")
            continue
        option_width = max(map(len, source.options)) + 2
        lines += [
            _filled(f"{'':{width}}{form:{option_width}}{text}", width + option_width)
            for form, text in source.options.items()
        ]
    title = (
        "Data in files of yours, with options and then variants after slashes, as in\n"
        "npz=images.npz/scale=255/split=0.8/pair=0-1:"
    )
    return "\n".join([title, *lines])


def _filled(text: str, indent: int) -> str:
    return textwrap.fill(
        text, 100, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False
    )


def _is_option(source: Source, word: str) -> bool:
    """Whether a word is an option. A scale below 1 is the variant of that name: it darkens."""
    key, _, value = word.partition("=")
    return key in source.keys and not (key == "scale" and 0 < to_number(value) < 1)


def _check_path(source: Source, parts: SourceName) -> None:
    """Raises DataError where there is no file or folder of that name, or one that does not fit."""
    if parts.path is None:
        if parts.kind == HUGGINGFACE:
            return  # which also goes by names
        place = Path(parts.place).expanduser()
        beside = [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []
        hint = did_you_mean(place.name, beside, f"the working directory is {Path().absolute()}")
        raise DataError(f"{source.form}: there is no file or folder {parts.place!r}: {hint}")
    unfit = {"folder": parts.path.is_file(), HUGGINGFACE: parts.path.is_file()}
    unfit |= {"npz": parts.path.is_dir(), "npy": parts.path.is_dir()}
    if unfit.get(parts.kind):
        what = "a file" if parts.path.is_file() else "a folder"
        hint = suggestion(parts.place) or f"write {source.form}"
        raise DataError(f"{parts.kind}={parts.place} is {what}: {hint.rpartition(': ')[2]}")
