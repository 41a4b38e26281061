"""The run's table in LaTeX: its numbers, what is bold in it, and what stands below it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from attacks import PGD, ThreatModel
from benchmark.judge.records import Block, MemoryCell
from benchmark.report import tables
from benchmark.report.report import Report
from benchmark.spec.components import NATURAL
from benchmark.spec.run_spec import make_spec
from tests.benchmark.small import evaluate_small
from tests.benchmark.test_latex import assert_well_formed, compiled

N = 40
SPEC = make_spec({"data": "mnist/pair=4-9", "eps": 0.5, "defenses": ["d"], "suite": "none"})


def _cell(broken: Iterable[int]) -> MemoryCell:
    """A cell of N samples, of which some are misclassified at a distance of 0.1."""
    hit = np.isin(np.arange(N), list(broken))
    ones, distance = np.ones(N, dtype=np.int64), np.where(hit, 0.1, np.nan)
    points = np.full((int(hit.sum()), 2), 0.5, dtype=np.float32)
    cell = MemoryCell()
    cell.add(
        Block(np.arange(N), ones, np.where(hit, 0, 1), hit, distance, ones, ones,
              np.zeros(N, dtype=bool), ones * 0.1, points)
    )  # fmt: skip
    cell.close({})
    return cell


def _row(name: str, broken: Iterable[int], error: str | None = None) -> Report:
    """A row in which an attack breaks some samples, and maybe another one fails."""
    report = Report(name, ThreatModel("l2", 0.5), "table", N)
    report.add(NATURAL, "k", _cell([]), None)
    report.add("a_1", "ka", _cell(broken), None)
    if error:
        report.add("b", "kb", _cell([]), error)
    return report


def _bold(*rows: Report) -> list[str]:
    """The names of the rows of which something is bold."""
    lines = tables.latex(rows, SPEC).splitlines()
    return [line.split("&")[0].strip() for line in lines if r"\textbf" in line]


def test_numbers_and_caption_are_those_of_the_report() -> None:
    report = _row("first", range(10))
    assert report.best_attack == 0.75
    text = tables.latex([report], SPEC)
    assert_well_formed(text)
    assert r"first & 100.0 & 75.0 & 75.0 {\scriptsize [59.8, 85.8]} \\" in text
    assert r"defense & natural & a\_1 & best-attack \\" in text
    assert r"Accuracy in \% over all 40 mnist/pair=4-9 test images, L2 eps 0.5." in text
    assert r"worst case per sample over a\_1" in text
    assert r"\label{tab:mnist-pair-4-9-l2-0.5}" in text


def test_columns_of_attacks_can_be_left_out() -> None:
    text = tables.latex([_row("first", range(10))], SPEC, with_attacks=False)
    assert_well_formed(text)
    assert r"defense & natural & best-attack \\" in text
    assert "Columns of attacks" not in text
    assert r"worst case per sample over a\_1" in text  # what best-attack is over stays


@pytest.mark.parametrize(
    ("second", "third", "bold"),
    [
        (range(7), range(10), ["first"]),  # 7 that only the first withstands: p = 0.016, for two
        (range(6), range(10), []),  # 6: p = 0.031
        ([], range(10), []),
        (range(7), range(35, 40), []),  # surely better than one of them alone
    ],
)
def test_what_is_surely_best_alone_is_bold(
    second: Iterable[int], third: Iterable[int], bold: list[str]
) -> None:
    rows = [_row("first", []), _row("second", second), _row("third", third)]
    assert _bold(*rows) == bold
    assert ("McNemar" in tables.latex(rows, SPEC)) == bool(bold)
    assert _bold(*reversed(rows)) == bold


def test_a_row_that_is_flagged_or_alone_is_never_bold() -> None:
    assert _bold(_row("first", [])) == []
    # Its lead may come of the attack that failed.
    assert _bold(_row("first", [], error="it broke"), _row("second", range(30))) == []
    # A failure of the others' only makes the lead smaller than it is.
    assert _bold(_row("first", []), _row("second", range(30), error="it broke")) == ["first"]


def test_what_failed_is_an_error_and_is_told_below() -> None:
    text = tables.latex([_row("first", range(10), error="50% of {it}")], SPEC)
    assert_well_formed(text)
    assert r"& 75.0 & error & 75.0 {\scriptsize [59.8, 85.8]} & attack-error \\" in text
    assert r"first: b failed: 50\% of \{it\}" in text
    assert "attack-error: an attack failed" in text


def test_reports_of_models_in_hand_have_one_too() -> None:
    report = evaluate_small(attacks=[PGD(steps=5)], name="mine_#1")
    assert_well_formed(report.to_latex())
    assert r"mine\_\#1 &" in report.to_latex()


def test_a_table_with_remarks_compiles(tmp_path: Path) -> None:
    rows = [_row("first_#", []), _row("second", range(30), error="50% of {it}")]
    said = compiled(tmp_path, tables.latex(rows, SPEC))
    assert "Overfull" not in said
