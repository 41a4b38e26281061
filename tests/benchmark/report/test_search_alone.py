"""Where what certifies failed, or is all that counts, each table says so."""

import numpy as np
import pytest

from benchmark.analysis.comparison import compare
from benchmark.errors import UserError
from benchmark.export.thresholds import Thresholds
from benchmark.judge.records import MemoryCell
from benchmark.report.breaks.attribution import page_table
from benchmark.report.report import Report
from benchmark.spec.components import CERTIFIED, SEARCH
from tests.benchmark.by_hand import cell_of, report_of


def _searched(error: str | None, inapplicable: str | None = None) -> Report:
    report = report_of("l2", 6, [0])
    cell = MemoryCell() if inapplicable else cell_of(6, [1, 2, 3, 4, 5], {})
    options = {"method": "branch", "seconds": 1.0}
    cell.close({"identity": {"attack": {"name": SEARCH, "options": options}}})
    report.add(SEARCH, "s", cell, error, inapplicable=inapplicable)
    return report


def test_a_search_that_is_all_that_counts_has_no_attack_to_attribute() -> None:
    report = _searched(None)
    assert report.measured == [SEARCH]
    assert report.finished_attacks == []
    assert page_table([report])[1] == []


def test_a_search_that_failed_is_an_error_of_what_it_would_certify() -> None:
    report = _searched("out of memory")
    assert report.why_failed(CERTIFIED) == "out of memory"
    frame = report.to_frame().set_index("attack")
    assert frame["error"][CERTIFIED] == "out of memory"
    other = _searched(None)
    with pytest.raises(UserError, match="it failed: out of memory"):
        compare(report, other, of=CERTIFIED)
    written = Thresholds.of("50", None)._as_junit([report], [])
    assert '<error message="out of memory"' in written


def test_a_search_that_does_not_apply_is_told_as_such() -> None:
    report = _searched(None, "its operation exp is not supported")
    assert np.isnan(report.certified)
    assert "exp" in str(report.why_inapplicable(CERTIFIED))
    with pytest.raises(UserError, match="it does not apply: its operation exp"):
        compare(report, _searched(None), of=CERTIFIED)
