"""The names of data in files: KIND=PATH, options, and variants, as in "folder=photos/size=64".

A path holds slashes as well, so it is the longest part of the name that exists on disk. What may
stand for KIND, and which options it has, is in `benchmark.data.sources.kinds`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# The options that name a further file, and the kinds of data that are rows of a table.
FILES = ("labels", "bounds")
TABLES = ("csv", "parquet")

# The kind whose names need be no paths.
HUGGINGFACE = "huggingface"

# The variants that are a word without a value, which a missing file could be taken for.
FLAGS = ("binarize", "edge")


@dataclass(frozen=True)
class SourceName:
    """The parts of a name.

    kind   what stands before the first "=".
    place  the path, as it was written, and `path`, what it leads to; None where nothing is there.
    words  the options and variants behind it, each a word and, behind "=", its value.
    files  what options that name a file lead to, by their words; those are left out that lead
           nowhere.
    """

    kind: str
    place: str
    path: Path | None
    words: tuple[str, ...]
    files: dict[str, Path]


def is_source(name: str) -> bool:
    """Whether a name is one of data in files, and not that of a registered data set.

    >>> is_source("npz=images.npz/pair=0-1"), is_source("mnist/pair=4-9")
    (True, False)
    """
    return "=" in name.partition("/")[0]


def read_source(name: str, folders: Sequence[Path] = (Path(),)) -> SourceName:
    """The parts of a name for which `is_source` holds. A relative path is sought in each of the
    folders, in turn; that of a file which an option names also beside the data, and in its folder.

    >>> parts = read_source("npz=no/such.npz/scale=255/pair=0-1")
    >>> parts.place, parts.path, parts.words
    ('no/such.npz', None, ('scale=255', 'pair=0-1'))
    """
    kind, _, rest = name.partition("=")
    segments = rest.split("/")
    path, count = _longest(segments, folders)
    # What exists may be only a folder on the way to what was meant.
    if path is None or not all(map(_is_word, segments[count : count + 1])):
        path = None
        count = next((i for i, segment in enumerate(segments) if _is_word(segment)), len(segments))
    place, left = "/".join(segments[:count]), segments[count:]
    words, files = list[str](), dict[str, Path]()
    beside = folders if path is None else (*folders, path.parent, path)
    while left:
        key, _, value = left[0].partition("=")
        used = 1
        if key in FILES:
            file, found = _longest([value, *left[1:]], beside)
            if file is not None:
                used = found
                files["/".join(left[:used])] = file
        words.append("/".join(left[:used]))
        left = left[used:]
    return SourceName(kind, place, path, tuple(words), files)


def with_absolute_paths(name: str) -> str:
    """The name with absolute paths, which is that of the same data in any working directory."""
    if not is_source(name):
        return name
    source = read_source(name)
    place = source.place if source.path is None else str(source.path.absolute())
    files = {word: str(file.absolute()) for word, file in source.files.items()}
    return _joined(source, place, files)


def without_places(name: str) -> str:
    """The name with the names of files alone, as captions and the names of folders have it.

    >>> without_places("npz=/home/me/images.npz/scale=255"), without_places("mnist/pair=4-9")
    ('npz=images.npz/scale=255', 'mnist/pair=4-9')
    """
    if not is_source(name):
        return name
    source = read_source(name)
    is_elsewhere = source.path is None and source.kind == HUGGINGFACE
    place = source.place if is_elsewhere else Path(source.path or source.place).absolute().name
    return _joined(source, place, {word: file.name for word, file in source.files.items()})


def noun_of(name: str) -> str:
    """What captions call the samples of a data set.

    >>> noun_of("csv=patients.csv/split=0.8"), noun_of("mnist")
    ('rows', 'images')
    """
    return "rows" if name.partition("=")[0] in TABLES else "images"


def _is_word(segment: str) -> bool:
    """Whether a part of a name is an option or a variant, and not of a path that does not exist."""
    return "=" in segment or segment in FLAGS


def _longest(segments: Sequence[str], folders: Sequence[Path]) -> tuple[Path | None, int]:
    """The path that the most of the first segments make and that exists, and how many these are."""
    for count in range(len(segments), 0, -1):
        text = "/".join(segments[:count])
        for folder in folders if text else ():
            path = folder / Path(text).expanduser()
            if os.path.exists(path):  # which also says no to what is too long for a path
                return path, count
    return None, 0


def _joined(source: SourceName, place: str, files: dict[str, str]) -> str:
    """The name with another path, and with other values of the options that name files."""
    words = [
        f"{word.partition('=')[0]}={files[word]}" if word in files else word
        for word in source.words
    ]
    return "/".join([f"{source.kind}={place}", *words])
