"""Cascades whose rows were attacked in different orders: what is known of them, and what is not."""

import pytest

from attacks import ThreatModel
from benchmark.errors import UserError
from benchmark.report.breaks import soonest
from benchmark.report.breaks.attribution import TOGETHER, attribution, render
from benchmark.report.report import Report
from benchmark.spec.components import NATURAL
from tests.benchmark.by_hand import EPS, cell_of

TOTAL = 8


def _cascade(name: str, **broken: list[int]) -> Report:
    """A cascade whose attacks broke some samples, in order."""
    report = Report(name, ThreatModel("l2", EPS), "cascade", TOTAL)
    report.add(NATURAL, "n", cell_of(TOTAL, list(range(TOTAL)), {}), None)
    for attack, places in broken.items():
        left = report.survivors().tolist()
        report.add(attack, attack, cell_of(TOTAL, left, dict.fromkeys(places, 0.4)), None)
    return report


@pytest.mark.parametrize("more", [0, 8])
def test_rows_of_other_orders_are_told_one_by_one(more: int) -> None:
    others = {f"weak-{number}": list[int]() for number in range(more)}
    first, second = _cascade("a", p=[0, 1], q=[2], **others), _cascade("b", q=[0], p=[1], **others)
    told = [attribution(report) for report in (first, second)]
    assert [each.orders.given.best_attack.value for each in told if each.orders.given] == [
        5 / TOTAL,
        6 / TOTAL,
    ]
    assert TOGETHER not in render(told, [first, second])
    with pytest.raises(UserError, match="attacked in different orders"):
        soonest([first, second])


def test_an_attack_that_counts_later_on_an_earlier_row() -> None:
    """The second row's order is q, p; q failed on the first, and so comes last among all labels."""
    first, second = _cascade("a", p=[0, 1]), _cascade("b", q=[0], p=[1])
    first.add("q", "q", cell_of(TOTAL, first.survivors().tolist(), {}), "out of memory")
    told = [attribution(report) for report in (first, second)]
    text = render(told, [first, second])
    assert TOGETHER in text
    assert soonest([first, second]) == ("q", "p")
