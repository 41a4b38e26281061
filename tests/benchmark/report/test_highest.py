"""Which row is the highest, and whether that may be chance."""

from collections import Counter

import numpy as np
import pytest

from benchmark.report import tables
from benchmark.report.columns.best_columns import clearly_best, on_highest
from benchmark.report.report import Report
from benchmark.terminal import text
from tests.benchmark.by_hand import report_of

TOTAL = 60


def _row(name: str, broken: list[int]) -> Report:
    report = report_of("l2", TOTAL, [], pgd=broken)
    report.name = name
    return report


def test_a_lead_beyond_chance_is_marked_and_one_that_may_be_chance_is_told() -> None:
    best, close, far = _row("a", list(range(10))), _row("b", list(range(12))), _row("c", [])
    far = _row("c", list(range(40)))
    assert clearly_best([best, far]) is best
    assert on_highest([best, far]) == ""
    assert clearly_best([best, close, far]) is None
    told = on_highest([best, close, far])
    lead = "a has the highest best-attack. Its lead over b may be chance"
    assert told.partition(" (")[0] == f"{lead}; over each other row it is beyond chance"
    assert on_highest([close, best]).partition(" (")[0] == lead
    assert "* 83.3" in text(tables.page([best, far], None))
    shown = " ".join(text(tables.page([best, close, far], None)).split())
    assert "*" not in shown
    assert told in shown
    assert told.replace("'", "&#x27;") in tables.notebook([best, close, far], None)


@pytest.mark.parametrize("why", ["alone", "flag", "unfinished", "fewer attacks"])
def test_nothing_is_said_where_it_means_nothing(why: str) -> None:
    best, close = _row("a", list(range(10))), _row("b", list(range(12)))
    if why == "flag":
        best.noted = ["zero-gradient"]
    if why == "fewer attacks":
        close = report_of("l2", TOTAL, [], pgd=list(range(12)), cw=[])
    if why == "unfinished":
        close.awaited = ["cw"]
    assert on_highest([best] if why == "alone" else [best, close]) == ""


def test_a_tie_is_no_lead() -> None:
    rows = [_row("a", list(range(TOTAL))), _row("b", list(range(TOTAL)))]
    assert on_highest(rows) == "a and b share the highest best-attack."
    rows = [_row("a", list(range(10))), _row("b", list(range(5, 15))), _row("c", list(range(40)))]
    assert on_highest(rows) == "a and b share the highest best-attack."


def test_equal_rows_are_seldom_told_apart() -> None:
    generator, said = np.random.default_rng(0), Counter[bool]()
    for _ in range(200):
        rows = [
            _row(str(place), np.flatnonzero(generator.random(TOTAL) < 0.5).tolist())
            for place in range(4)
        ]
        said[clearly_best(rows) is not None] += 1
    assert said[True] <= 12
