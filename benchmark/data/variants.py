"""Variants of data sets: classes kept, in another order or merged; training labels scrambled, and
training images left out. Those that change images are in `benchmark.data.transforms`."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from attacks import noise
from benchmark.data.dataset import Dataset, Split
from benchmark.data.files import DataError
from benchmark.data.transforms import TRANSFORMS, Variant, to_number
from benchmark.errors import did_you_mean
from benchmark.spec.run_spec import Part

# What `other` calls the class that it makes.
OTHER = "other"

# Of the labels that `scramble` draws.
_SCRAMBLE = 0


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
            raise DataError(f"{dataset.name}: unknown label {label!r}{hint(label, dataset.labels)}")
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


def order(dataset: Dataset, value: str) -> Dataset:
    """The variant order=SEED. Raises DataError unless SEED is an integer of at least 0.

    The classes are sorted by the sha256 of "SEED CLASS", with CLASS their number: a rule that no
    library's version changes.
    """
    if not (value.isascii() and value.isdecimal()):
        raise DataError(
            f"{dataset.name}: order needs an integer of at least 0, as in order=3, not {value!r}"
        )
    seed = value.lstrip("0") or "0"
    classes = sorted(
        range(dataset.classes), key=lambda one: hashlib.sha256(f"{seed} {one}".encode()).digest()
    )
    places = sorted(range(dataset.classes), key=classes.__getitem__)
    labels = [dataset.labels[one] for one in classes]
    return _renumbered(dataset, f"order={seed}", places, labels)


def other(dataset: Dataset, value: str) -> Dataset:
    """The variant other=J. Raises DataError unless J is from 2 to the number of classes, or where
    one of the classes before the J-th is called "other" already.

    The classes J, ..., k, counted from 1, become one: OTHER[J] of RoBin (section 3.2). J classes
    are left. With J = k there is nothing to merge, and the result is the data set itself.
    """
    counts = {str(count): count for count in range(2, dataset.classes + 1)}
    if value not in counts:
        raise DataError(
            f"{dataset.name}: other needs a number of classes from 2 to {dataset.classes}, as in "
            f"other={dataset.classes}, not {value!r}"
        )
    count = counts[value]
    if count == dataset.classes:
        return dataset
    kept = dataset.labels[: count - 1]
    if OTHER in kept:
        raise DataError(f"{dataset.name}: there is already a class that is called {OTHER!r}")
    places = [min(one, count - 1) for one in range(dataset.classes)]
    return _renumbered(dataset, f"other={count}", places, [*kept, OTHER])


def _renumbered(
    dataset: Dataset, variant: str, places: Sequence[int], labels: Sequence[str]
) -> Dataset:
    """The data set with each class, in turn, given the number that `places` says."""
    return replace(
        dataset,
        name=f"{dataset.name}/{variant}",
        labels=tuple(labels),
        load=partial(_load_renumbered, dataset, torch.tensor(places)),
    )


def _load_renumbered(dataset: Dataset, places: Tensor, part: Part) -> Split:
    # Its own splits, which are checked, and kept for other variants of it.
    split = dataset.split(part)
    return Split(split.x, places[split.y])


def scramble(dataset: Dataset, value: str) -> Dataset:
    """The variant scramble=P. Raises DataError unless P is a number from 0 to 100.

    P percent of the training labels, at random places, are drawn anew, each from all classes alike,
    so that some stay what they were (L2NNN, section 3.3). Test labels are left alone. The places
    and labels are those of a fixed seed.
    """
    percent = to_number(value)
    if not 0 <= percent <= 100:
        raise DataError(
            f"{dataset.name}: scramble needs a percentage, as in scramble=50, not {value!r}"
        )
    percent = int(percent) if percent.is_integer() else percent
    return replace(
        dataset,
        name=f"{dataset.name}/scramble={percent}",
        load=partial(_load_scrambled, dataset, percent / 100),
    )


def _load_scrambled(dataset: Dataset, share: float, part: Part) -> Split:
    split = dataset.load(part)
    if part == "test":
        return split
    index = torch.arange(len(split.y))
    places, labels = (noise.uniform(_SCRAMBLE, index, stream, ()) for stream in range(2))
    chosen = places.argsort(stable=True)[: round(share * len(index))]
    y = split.y.clone()
    y[chosen] = (labels[chosen] * dataset.classes).long().clamp_max(dataset.classes - 1)
    return Split(split.x, y)


def train(dataset: Dataset, value: str) -> Dataset:
    """The variant train=N, which keeps the first N training images alone. Raises DataError unless N
    is an integer of at least 1 and, when they are loaded, where there are fewer."""
    count = to_number(value)
    if not (count >= 1 and count.is_integer()):
        raise DataError(
            f"{dataset.name}: train needs an integer of at least 1, as in train=1000, not {value!r}"
        )
    return replace(
        dataset,
        name=f"{dataset.name}/train={int(count)}",
        load=partial(_load_first, dataset, int(count)),
    )


def _load_first(dataset: Dataset, count: int, part: Part) -> Split:
    split = dataset.load(part)
    if part == "test":
        return split
    if len(split.y) < count:
        raise DataError(f"{dataset.name} has {len(split.y)} training images, not {count}")
    # A copy, so that the rest can go.
    return Split(split.x[:count].clone(), split.y[:count].clone())


VARIANTS: dict[str, Variant] = {
    "pair": pair,
    "order": order,
    "other": other,
    "scramble": scramble,
    "train": train,
    **TRANSFORMS,
}


def hint(word: str, known: Collection[str]) -> str:
    """How the line on an unknown word goes on."""
    there_are = f"there are {', '.join(known)}"
    return f": {did_you_mean(word, known, there_are)}"
