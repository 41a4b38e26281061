"""Where the files of data sets may lie, and which of them are there."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from platformdirs import user_cache_path

from benchmark.spec.run_spec import Part

# Debian's dataset-fashion-mnist lies there; it is searched, and never written.
_SYSTEM = Path("/usr/share/datasets")

# The places of one file, as paths from a root. Any of them will do, and a download makes the first.
Places = Sequence[str]


def data_roots(root: Path | None) -> list[Path]:
    """Where data files may lie: `root`, the variable BESTATTACK_DATA, the user's cache folder."""
    given = [root, os.environ.get("BESTATTACK_DATA"), user_cache_path("bestattack") / "data"]
    return [Path(place).expanduser() for place in given if place]


def find(places: Places, root: Path | None) -> Path | None:
    """The first of the places of a file where there is one, in the first root that has any."""
    folders = [*data_roots(root), _SYSTEM]
    paths = (folder / place for folder in folders for place in places)
    return next((path for path in paths if os.path.isfile(path)), None)


def files_of(base: str, part: Part) -> list[Places]:
    """The places of each file that a split of a data set is read from.

    >>> files_of("mnist", "test")[1]
    ['mnist/t10k-labels-idx1-ubyte.gz', 'mnist/t10k-labels-idx1-ubyte']
    """
    return _FILES[base](part)


def _idx(base: str, part: Part) -> list[Places]:
    prefix = "train" if part == "train" else "t10k"
    files = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
    return [[f"{base}/{file}.gz", f"{base}/{file}"] for file in files]


def _cifar10(part: Part) -> list[Places]:
    batches = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
    releases = [
        [f"cifar-10-batches-py/{batch}", f"cifar-10-batches-bin/{batch}.bin"] for batch in batches
    ]
    return [[*(f"cifar10/{file}" for file in files), *files] for files in releases]


def _cifar100(part: Part) -> list[Places]:
    unpacked = f"cifar-100-python/{part}"
    archives = [f"cifar100/cifar-100-{release}.tar.gz" for release in ("python", "binary")]
    return [[f"cifar100/{unpacked}", unpacked, *archives]]


def _svhn(part: Part) -> list[Places]:
    return [[f"svhn/{part}_32x32.mat"]]


def _tiny_imagenet(part: Part) -> list[Places]:
    del part  # both splits are in one archive
    return [["tiny-imagenet/tiny-imagenet-200.zip"]]


_FILES: Mapping[str, Callable[[Part], list[Places]]] = {
    "mnist": partial(_idx, "mnist"),
    "fashion-mnist": partial(_idx, "fashion-mnist"),
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "tiny-imagenet": _tiny_imagenet,
}

# The data sets that are read from files, by name.
IN_FILES = tuple(_FILES)
