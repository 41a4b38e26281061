"""What is told of works that are under way where there is no terminal."""

import time

import pytest

from benchmark.executors import progress
from benchmark.executors.progress import AttackBar, underway


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tests set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_says_all_that_is_under_way(clock: list[float]) -> None:
    who = "2 tasks on 1 host"
    with (
        underway("a PGD", 100, True, lambda: who) as first,
        underway("training b", 10, True, lambda: who) as second,
    ):
        bar = AttackBar(first, 100, 0, 10, 200)
        bar.advance(10, 0, True)
        clock[0] += 61
        bar.advance(20, 10)
        second.update(1, "loss 0.300")
        # What was there before says nothing of how long the rest takes.
        assert progress.board.line() == (
            "a PGD 30% (4 min left, robust <= 45.0%); training b 10% (9 min left, loss 0.300); "
            "2 tasks on 1 host"
        )


def test_lines_come_by_themselves_until_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LINE", 0.02)
    told, end = "", time.monotonic() + 20
    with underway("a", 100, True):
        while told.count("a 0%\n") < 2 and time.monotonic() < end:
            time.sleep(0.01)
            told += capsys.readouterr().err
    assert told.count("a 0%\n") >= 2
    time.sleep(0.1)
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_nothing_is_told_where_nobody_asked(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with underway("a", 10, False) as work:
        clock[0] += 100
        work.update(5, "")
    assert capsys.readouterr().err == ""


def test_calls_within_a_block_count_as_a_part_of_it(clock: list[float]) -> None:
    with underway("a", 100, False) as work:
        bar = AttackBar(work, 100, 40, 20, 100)
        clock[0] += 1
        bar.tick(10)
        assert work.done == 5
        bar.tick(20)  # too soon to be shown again
        assert work.done == 5
        bar.advance(20, 0)
        clock[0] += 1
        bar.tick(100)
        assert work.done == 40
