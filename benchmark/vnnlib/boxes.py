"""Boxes of inputs in a network's own precision, and their points as text."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark.errors import UserError
from benchmark.vnnlib.properties import Interval

# Digits that bounds are written with where nothing shorter lies between them.
_DIGITS = Context(prec=60)


@dataclass(frozen=True, eq=False)
class Box:
    """The points of a box that a network can be given, in its precision: those from `low` to `high`
    (*shape). Both lie in the box, unless it holds no number of that precision; then they are what
    the numbers in it are rounded to."""

    intervals: tuple[Interval, ...]
    low: Tensor
    high: Tensor
    takes: torch.dtype

    @classmethod
    def of(
        cls, intervals: tuple[Interval, ...], shape: tuple[int, ...], takes: torch.dtype
    ) -> "Box":
        """The box in a precision. Raises UserError for bounds that are beyond it."""
        number = torch.empty(0, dtype=takes).numpy().dtype
        sides = np.array([[_float(i.lower), _float(i.upper)] for i in intervals])
        # Far below the largest, so that the width of the box is a number too.
        beyond = np.abs(sides) > torch.finfo(takes).max / 4
        if beyond.any():
            place = int(beyond.any(1).argmax())
            raise UserError(f"the bounds of X_{place} are beyond the network's {number.name}")
        rounded = sides.astype(number)
        low, high = rounded[:, 0], rounded[:, 1]
        for i, interval in enumerate(intervals):
            below, above = _inward(interval, low[i], high[i])
            # A box that is narrower than the precision has one point.
            low[i], high[i] = (below, above) if below <= above else (low[i], low[i])
        wide = torch.float64 if takes is torch.float64 else torch.float32
        least, most = (torch.from_numpy(side.copy()).view(shape).to(wide) for side in (low, high))
        return cls(intervals, least, most, takes)

    @property
    def is_point(self) -> bool:
        """Whether the network can be given a single point of the box."""
        return torch.equal(self.low, self.high)

    @property
    def middle(self) -> Tensor:
        """The point (*shape) half of the way through the box."""
        return self.place(torch.full_like(self.low, 0.5))

    def place(self, shares: Tensor) -> Tensor:
        """The points (n, *shape) at some shares of the way through the box, which `lerp` leaves
        neither by rounding nor misses at its ends."""
        points = torch.lerp(self.low, self.high, shares)
        return points.to(self.takes) if self.takes is torch.float16 else points

    def texts(self, point: Tensor) -> list[str] | None:
        """The numbers of a point (*shape) as text, each in the box as it is written, and rounded to
        the point by who reads it; None where that cannot be."""
        values: NDArray[np.floating] = point.flatten().to(self.takes).numpy()
        found = []
        for interval, value in zip(self.intervals, values, strict=True):
            text = next((t for t in _texts(interval, value) if _fits(t, interval, value)), None)
            if text is None:
                return None
            found.append(text)
        return found


def _inward(
    interval: Interval, low: np.floating, high: np.floating
) -> tuple[np.floating, np.floating]:
    """The least and the largest number of a precision in an interval, whose ends are rounded to
    these."""
    infinity = low.dtype.type(np.inf)
    if not _is_above(interval, low):
        low = np.nextafter(low, infinity)
    if not _is_below(interval, high):
        high = np.nextafter(high, -infinity)
    return low, high


def _is_above(interval: Interval, value: np.floating) -> bool:
    exact = Fraction(float(value))
    return exact > interval.lower or (exact == interval.lower and not interval.is_open_below)


def _is_below(interval: Interval, value: np.floating) -> bool:
    exact = Fraction(float(value))
    return exact < interval.upper or (exact == interval.upper and not interval.is_open_above)


def _texts(interval: Interval, value: np.floating) -> Iterator[str]:
    """A number as text, the shortest first; then numbers of the interval that may be rounded to
    it."""
    yield repr(float(value))
    middle = (interval.lower + interval.upper) / 2
    for number in (Fraction(float(value)), interval.lower, interval.upper, middle):
        yield str(_DIGITS.divide(*(_DIGITS.create_decimal(part) for part in _parts(number))))


def _float(number: Fraction) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _parts(number: Fraction) -> tuple[int, int]:
    return number.numerator, number.denominator


def _fits(text: str, interval: Interval, value: np.floating) -> bool:
    """Whether a text lies in the interval and is read as the number."""
    return interval.holds(Fraction(text)) and value.dtype.type(float(text)) == value
