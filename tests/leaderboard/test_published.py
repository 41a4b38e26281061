"""The board that is published: its rows are whole, small, and say nothing impossible."""

import os
from pathlib import Path

import pytest

import leaderboard
from defenses.training.saved import WEIGHTS
from leaderboard.board import check
from leaderboard.show.table import robust
from leaderboard.submission.record import EVIDENCE, RECORD, SCHEMA, Record, read_record, schema
from leaderboard.submission.submission import open_row
from leaderboard.tasks import ROWS, load_tasks

BOARD = Path(leaderboard.__file__).parent
TASKS = load_tasks(BOARD)
FOLDERS = sorted(path.parent for path in (BOARD / ROWS).glob(f"*/*/{RECORD}"))
DATA = os.environ.get("BESTATTACK_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="BESTATTACK_DATA is not set")


def _records(task: str) -> list[Record]:
    return [read_record(folder) for folder in FOLDERS if folder.parent.name == task]


def test_the_schema_is_the_one_that_is_published() -> None:
    assert (BOARD / SCHEMA).read_text() == schema()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_its_rows(task: str) -> None:
    records = _records(task)
    ten = "pair=" not in TASKS[task].spec.data
    assert len(records) >= (8 if ten else 6)
    rows = {record.row for record in records}
    assert {component.label for component in TASKS[task].spec.defenses} == rows
    assert {reported.row for reported in TASKS[task].reported} <= rows
    for record in records:
        assert record.samples >= 1000
        assert record.about


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_row_says_nothing_impossible(folder: Path) -> None:
    record = read_record(folder)
    numbers = record.numbers
    low, high = numbers.interval
    assert low <= numbers.best_attack <= high
    shares = [share for share in numbers.per_attack.values() if share is not None]
    assert numbers.best_attack <= min(shares)
    assert max(shares) <= numbers.natural
    assert (numbers.certified or 0) <= numbers.best_attack
    assert numbers.contradictions == []
    assert (folder / EVIDENCE).stat().st_size < 3e6


def test_weights_are_small_in_all() -> None:
    assert sum(path.stat().st_size for path in (BOARD / ROWS).rglob(WEIGHTS)) < 100e6


@needs_data
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_nothing_that_is_certified_is_broken(folder: Path) -> None:
    assert DATA is not None
    report = open_row(folder, load_tasks(BOARD, Path(DATA))).report
    proven = report.certified_within(report.threat.eps)
    if proven is not None:
        assert not (proven & ~robust(report)).any()


@needs_data
@pytest.mark.parametrize("row", ["vanilla", "fractal"])
def test_a_row_is_replayed(row: str) -> None:
    """One of each kind here; `.ci/run` replays a whole task."""
    assert DATA is not None
    check(BOARD / ROWS / "mnist-4-9" / row, load_tasks(BOARD, Path(DATA)), False)
