"""Variants of data sets, by name: VARIANTS has them all.

Here are those that choose, order or merge classes, scramble training labels, or leave out training
images; those that change images are in `benchmark.data.transforms`. A variant is added in one of
the two files alone: a function, and a line in its table. The first paragraph of the function's
docstring is what `bestattack list datasets` says of it.
"""

import hashlib
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from attacks import noise
from benchmark.data.dataset import Dataset, Split, Variant
from benchmark.data.files import DataError
from benchmark.data.transforms import TRANSFORMS, to_number
from benchmark.errors import did_you_mean
from benchmark.spec.run_spec import Part

# What the variant `other` calls the class that it makes.
OTHER = "other"

# The seed of the labels that `scramble` draws.
_SCRAMBLE = 0


def pair(dataset: Dataset, value: str) -> Dataset:
    """Keep two labels, given by name or number, and relabel them 0 and 1 in that order, as in
    mnist/pair=4-9 and fashion-mnist/pair=pullover-coat.

    A word that is both a name and a number is the name. The result is named after the labels'
    names, however they were given. Raises DataError unless A and B are two labels of the data set.
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
    kept = split.only(keep)
    return Split(kept.x, (kept.y == second).long())


def order(dataset: Dataset, value: str) -> Dataset:
    """Put the classes into the random order that a number from 0 on names.

    The classes are sorted by the sha256 of "SEED CLASS", with CLASS their number: a rule that no
    library's version changes. Raises DataError unless SEED is an integer of at least 0.
    """
    if not (value.isascii() and value.isdecimal()):
        raise DataError(
            f"{dataset.name}: order needs an integer of at least 0, as in order=3, not {value!r}"
        )
    seed = value.lstrip("0") or "0"
    classes = sorted(
        range(dataset.classes),
        key=lambda label: hashlib.sha256(f"{seed} {label}".encode()).digest(),
    )
    places = sorted(range(dataset.classes), key=classes.__getitem__)
    labels = [dataset.labels[label] for label in classes]
    return _renumbered(dataset, f"order={seed}", places, labels)


def other(dataset: Dataset, value: str) -> Dataset:
    """Merge the classes from the J-th on, counted from 1, into one that is called other:
    cifar10/other=2 is airplane against all else, and cifar10/order=3/other=4 has the first three
    classes of that order, and other.

    Source: OTHER[J] of RoBin (section 3.2). J classes are left. Where J is the number of classes
    there is nothing to merge, and the result is the data set itself. Raises DataError unless J is
    from 2 to the number of classes, and where a class before the J-th is called "other" already.
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
    places = [min(label, count - 1) for label in range(dataset.classes)]
    return _renumbered(dataset, f"other={count}", places, [*kept, OTHER])


def _renumbered(
    dataset: Dataset, variant: str, places: Sequence[int], labels: Sequence[str]
) -> Dataset:
    """The data set with its classes renumbered: `places` has the new number of each, in turn."""
    return replace(
        dataset,
        name=f"{dataset.name}/{variant}",
        labels=tuple(labels),
        load=partial(_load_renumbered, dataset, torch.tensor(places)),
    )


def _load_renumbered(dataset: Dataset, places: Tensor, part: Part) -> Split:
    # The splits of the data set itself, which are checked, and kept for other variants of it.
    split = dataset.split(part)
    return Split(split.x, places[split.y])


def scramble(dataset: Dataset, value: str) -> Dataset:
    """Draw P percent of the training labels at random; test labels stay what they are.

    The labels drawn anew are at random places, and each is drawn from all classes alike, so that
    some stay what they were. Places and labels are those of a fixed seed. Source: "L2-nonexpansive
    neural networks" (Qian and Wegman 2019), section 3.3. Raises DataError unless P is a number from
    0 to 100.
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
    """Keep the first N training images; test images stay what they are.

    Raises DataError unless N is an integer of at least 1 and, when they are loaded, where there are
    fewer.
    """
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
    first = split.only(slice(count))
    # A copy, so that the memory of the rest can be freed.
    return Split(first.x.clone() if isinstance(first.x, Tensor) else first.x, first.y.clone())


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant.of("pair=A-B", pair),
        Variant.of("order=SEED", order),
        Variant.of("other=J", other),
        *TRANSFORMS,
        Variant.of("scramble=P", scramble),
        Variant.of("train=N", train),
    )
}


def hint(word: str, known: Collection[str]) -> str:
    """How the line on an unknown word goes on."""
    there_are = f"there are {', '.join(known)}"
    return f": {did_you_mean(word, known, there_are)}"


def describe_variants() -> str:
    """What each variant does, as text."""
    column = max(len(variant.form) for variant in VARIANTS.values()) + 2
    lines = [
        textwrap.fill(
            f"{variant.form:{column}}{variant.about}", 100, subsequent_indent=" " * column,
            break_on_hyphens=False, break_long_words=False,
        )
        for variant in VARIANTS.values()
    ]  # fmt: skip
    title = "Variants, after a slash and read from left to right, as in mnist/pair=4-9/binarize:"
    return "\n".join([title, *lines])
