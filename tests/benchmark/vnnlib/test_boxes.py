"""Boxes in a precision: their points lie in them, as numbers and as text."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from benchmark.errors import UserError
from benchmark.vnnlib.boxes import Box
from benchmark.vnnlib.properties import Interval

TYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}


def _box(takes: torch.dtype, *intervals: Interval) -> Box:
    return Box.of(intervals, (len(intervals),), takes)


def _interval(low: str, high: str, *is_open: bool) -> Interval:
    return Interval(Fraction(low), Fraction(high), *is_open)


@pytest.mark.parametrize("takes", TYPES)
@pytest.mark.parametrize(
    "interval",
    [
        _interval("-1.26769066", "-1.25481796"),
        _interval("0.1", "0.7"),
        _interval("-0.3", "1e-7"),
        _interval("0", "1", True, True),
        _interval("1", "1.0001"),
        _interval("0.1", "0.1"),
        _interval("0.30000000000000000001", "0.30000000000000000002"),
        _interval("0.1", "0.10000000000000000001", True),
    ],
)
def test_points_and_their_text_lie_in_the_box(takes: torch.dtype, interval: Interval) -> None:
    box = _box(takes, interval)
    for share in (0.0, 0.25, 0.5, 1 - 2**-24, 1.0):
        point = box.place(torch.full_like(box.low, share)[None])[0]
        texts = box.texts(point)
        assert texts is not None
        assert interval.holds(Fraction(texts[0]))
        assert TYPES[takes](texts[0]) == point.double().item()


@pytest.mark.parametrize("takes", [torch.float32, torch.float64])
def test_the_ends_are_the_outermost_numbers_in_the_box(takes: torch.dtype) -> None:
    box = _box(takes, _interval("0.1", "0.7"), _interval("0", "1", True, True))
    number = TYPES[takes]
    for interval, low, high in zip(box.intervals, box.low, box.high, strict=True):
        inner = number(low.item()), number(high.item())
        outer = np.nextafter(inner[0], number(-9)), np.nextafter(inner[1], number(9))
        assert all(interval.holds(Fraction(float(value))) for value in inner)
        assert not any(interval.holds(Fraction(float(value))) for value in outer)
    ones = torch.ones_like(box.low)
    assert torch.equal(box.place(0 * ones), box.low)
    assert torch.equal(box.place(ones), box.high)


def test_bounds_beyond_the_precision_are_refused() -> None:
    with pytest.raises(UserError, match=r"^the bounds of X_1 are beyond the network's float32$"):
        _box(torch.float32, _interval("0", "1"), _interval("0", "1e39"))
    with pytest.raises(UserError, match=r"^the bounds of X_0 are beyond the network's float64$"):
        _box(torch.float64, Interval(Fraction(0), Fraction(10) ** 400))
