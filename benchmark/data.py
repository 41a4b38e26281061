"""The data sets to measure on, by name: `base/key=value/...`, read from left to right.

Bases: digits, mnist, fashion-mnist and cifar10, besides what others register. Variants:

    pair=A-B    keeps two labels, given by name or number, and relabels them 0 and 1 in that order:
                mnist/pair=4-9, fashion-mnist/pair=pullover-coat, cifar10/pair=cat-dog

Labels of fashion-mnist: t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag,
ankle-boot. Labels of cifar10: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.
"""

import difflib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark.data_files import DataError, Part, read_cifar10, read_idx
from benchmark.registry import DATASETS

__all__ = [
    "VARIANTS",
    "DataError",
    "Dataset",
    "Part",
    "Split",
    "cifar10",
    "digits",
    "fashion_mnist",
    "fingerprint",
    "load_dataset",
    "mnist",
]

_TEN = tuple("0123456789")
_FASHION = "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot"
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"


@dataclass(frozen=True, eq=False)
class Split:
    """Images `x`, float32 (n, C, H, W) in [0, 1], and labels `y`, int64 (n,), on the CPU."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set, whose splits are loaded when first asked for, each on its own.

    `labels` are the names of the classes and `shape` is (C, H, W). `load` gives either split;
    `train` and `test` keep what it gave, and raise DataError where that is not what `Split` says.
    """

    name: str
    labels: tuple[str, ...]
    shape: tuple[int, int, int]
    load: Callable[[Part], Split]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.labels)

    @cached_property
    def train(self) -> Split:
        """The split to train on."""
        return self._checked("train")

    @cached_property
    def test(self) -> Split:
        """The split to measure on."""
        return self._checked("test")

    def _checked(self, part: Part) -> Split:
        try:
            split = self.load(part)
        except DataError:
            raise
        except Exception as error:  # a plugin's own
            raise DataError(f"{self.name}: {type(error).__name__}: {error}") from error
        x, y, n = split.x, split.y, len(split.y)
        if n == 0 or x.shape != (n, *self.shape) or y.shape != (n,):
            got = f"images {tuple(x.shape)} and labels {tuple(y.shape)}"
            raise DataError(f"{self.name}: the {part} split has {got}, not (n, *{self.shape})")
        if x.dtype != torch.float32 or not (x.min() >= 0 and x.max() <= 1):
            raise DataError(f"{self.name}: the {part} images are not float32 in [0, 1]")
        if y.dtype != torch.int64 or not (y.min() >= 0 and y.max() < self.classes):
            raise DataError(
                f"{self.name}: the {part} labels are not int64 from 0 to {self.classes - 1}"
            )
        return split


def load_dataset(name: str, root: str | Path | None = None) -> Dataset:
    """The data set of that name; its files are sought in `root` first.

    Raises DataError, in one line, for an unknown variant or label. Files are read, and missing
    ones downloaded, when a split is first asked for.
    """
    base, *variants = name.split("/")
    make: Callable[[Path | None], Dataset] = DATASETS.get(base)
    dataset = make(None if root is None else Path(root))
    for variant in variants:
        key, _, value = variant.partition("=")
        if key not in VARIANTS:
            raise DataError(f"{name}: unknown variant {key!r}{_hint(key, VARIANTS)}")
        dataset = VARIANTS[key](dataset, value)
    return dataset


def fingerprint(x: Tensor, y: Tensor) -> str:
    """The sha256, in hex, of shape, dtype and bytes of images and labels."""
    digest = hashlib.sha256()
    for tensor in (x, y):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def digits(root: Path | None) -> Dataset:
    """Scikit-learn's 1797 handwritten digits of 8 x 8 pixels, without files (`root` is not used).

    Every fifth image of each class is in the test split: 355 images, and 1442 to train on.
    """
    return Dataset("digits", _TEN, (1, 8, 8), _load_digits)


def mnist(root: Path | None) -> Dataset:
    """MNIST: 60000 and 10000 handwritten digits of 28 x 28 pixels."""
    return Dataset("mnist", _TEN, (1, 28, 28), partial(_load_idx, "mnist", root))


def fashion_mnist(root: Path | None) -> Dataset:
    """Fashion-MNIST: 60000 and 10000 pieces of clothing of 28 x 28 pixels."""
    load = partial(_load_idx, "fashion-mnist", root)
    return Dataset("fashion-mnist", tuple(_FASHION.split()), (1, 28, 28), load)


def cifar10(root: Path | None) -> Dataset:
    """CIFAR-10: 50000 and 10000 colour photographs of 32 x 32 pixels."""
    load = partial(_load_cifar10, root)
    return Dataset("cifar10", tuple(_CIFAR10.split()), (3, 32, 32), load)


def _load_digits(part: Part) -> Split:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits needs scikit-learn: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    split = _split(images.reshape(-1, 1, 8, 8), 16, labels)
    # A rule, not a random draw: it cannot change with a library's version.
    nth = (split.y[:, None] == torch.arange(10)).cumsum(0).gather(1, split.y[:, None])[:, 0]
    keep = (nth % 5 == 0) == (part == "test")
    return Split(split.x[keep], split.y[keep])


def _load_idx(base: str, root: Path | None, part: Part) -> Split:
    images, labels = read_idx(base, part, root)
    return _split(images, 255, labels)


def _load_cifar10(root: Path | None, part: Part) -> Split:
    images, labels = read_cifar10(part, root)
    return _split(images, 255, labels)


def _split(images: NDArray[Any], white: int, labels: NDArray[Any]) -> Split:
    x = np.divide(images, white, dtype=np.float32)
    return Split(torch.from_numpy(x), torch.from_numpy(labels.astype(np.int64)))


def pair(dataset: Dataset, value: str) -> Dataset:
    """The variant pair=A-B. Raises DataError unless A and B are two labels of the data set.

    A word that is both a name and a number is the name. The result is named after the labels'
    names, however they were given.
    """
    numbers = {str(i): i for i in range(dataset.classes)}
    numbers |= {label: i for i, label in enumerate(dataset.labels)}
    words = value.split("-")
    cuts = [("-".join(words[:i]), "-".join(words[i:])) for i in range(1, len(words))]
    if not cuts:
        raise DataError(f"{dataset.name}: pair needs two labels, as in pair=A-B, not {value!r}")
    # A label may hold hyphens itself: cut where that leaves two labels, or else one.
    kept = max(cuts, key=lambda cut: sum(label in numbers for label in cut))
    for label in kept:
        if label not in numbers:
            raise DataError(
                f"{dataset.name}: unknown label {label!r}{_hint(label, dataset.labels)}"
            )
    first, second = (numbers[label] for label in kept)
    if first == second:
        raise DataError(f"{dataset.name}: pair needs two labels that differ, not {value!r}")
    labels = (dataset.labels[first], dataset.labels[second])
    return replace(
        dataset,
        name=f"{dataset.name}/pair={labels[0]}-{labels[1]}",
        labels=labels,
        load=partial(_load_pair, dataset.load, first, second),
    )


def _load_pair(load: Callable[[Part], Split], first: int, second: int, part: Part) -> Split:
    split = load(part)
    keep = (split.y == first) | (split.y == second)
    return Split(split.x[keep], (split.y[keep] == second).long())


VARIANTS: dict[str, Callable[[Dataset, str], Dataset]] = {"pair": pair}


def _hint(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f": did you mean {close[0]!r}?" if close else f": there are {', '.join(known)}"
