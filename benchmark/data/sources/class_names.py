"""From labels as files have them, numbers or names, to the classes of a data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.data.files import DataError


def by_number(labels: NDArray[Any], names: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """The names of classes that are numbered from 0, as logits are, given the labels (n,).

    names  of the classes, where the files have them; by default, a class is called by its number.

    Raises DataError, in a line that begins with `where`, for labels below 0, above the last, or
    with gaps, since a gap may be a mistake, and for one class alone.
    """
    least, most = int(labels.min()), int(labels.max())
    if least < 0:
        raise DataError(f"{where}: labels are numbered from 0, and one is {least}")
    if names is None:
        present = set(labels.tolist())
        if len(present) == 1:
            return checked([str(most)], where)  # which refuses one class
        missing = next((label for label in range(most) if label not in present), None)
        if missing is not None:
            raise DataError(
                f"{where}: labels go up to {most}, and none is {missing}: number the classes from "
                "0 without gaps, or name them all in an array class_names"
            )
        names = [str(label) for label in range(most + 1)]
    if most >= len(names):
        raise DataError(f"{where}: a label is {most}, and there are {len(names)} class names")
    return checked(names, where)


def by_value(labels: Sequence[Any], where: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The names of the classes and the number (n,) of each label, from labels that are texts or
    whole numbers. Classes are in the order of the alphabet, or in that of the numbers.

    Raises DataError, in a line that begins with `where`, for labels that are missing or neither,
    for nearly as many classes as samples, and for one class alone.

    >>> by_value(["dog", "cat", "dog"], "photos")
    (('cat', 'dog'), array([1, 0, 1]))
    """
    for row, label in enumerate(labels):
        if label is None or label != label or (isinstance(label, str) and not label.strip()):
            raise DataError(f"{where}: the label in row {row + 1} is missing")
    values = [_plain(label, where) for label in labels]
    classes: list[Any] = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    if len(classes) > max(2, len(values) // 2):
        raise DataError(
            f"{where}: {len(classes)} different labels for {len(values)} samples are no classes"
        )
    numbers = {value: number for number, value in enumerate(classes)}
    names = checked([str(value) for value in classes], where)
    return names, np.array([numbers[value] for value in values], np.int64)


def checked(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names of classes. Raises DataError for one alone, and for two that are the same."""
    if len(names) < 2:
        raise DataError(f"{where}: all samples are of one class, {names[0]!r}: there must be two")
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{where}: two classes are called {name!r}")
    return tuple(names)


def _plain(label: Any, where: str) -> int | str:
    """A label as a text or a whole number."""
    if isinstance(label, str):
        return label.strip()
    if isinstance(label, bool | np.bool_):
        return str(bool(label))
    try:
        if float(label).is_integer():
            return int(label)
    except (TypeError, ValueError):
        pass
    raise DataError(f"{where}: the label {label!r} is neither a text nor a whole number")
