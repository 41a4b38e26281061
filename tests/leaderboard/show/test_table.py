"""Ranks by a paired test, and what a table shows."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from benchmark.report.paired import better
from benchmark.report.pictures.curves import upper
from leaderboard.board import check
from leaderboard.show.pictures import closest_example, shown
from leaderboard.show.table import make_table, ranked, robust
from leaderboard.submission.submission import open_row
from tests.leaderboard.conftest import Small


def _verdicts(first: int, second: int, both: int = 50) -> tuple[NDArray[np.bool_], ...]:
    """Two rows of which the first alone withstands `first` samples, and the second `second`."""
    one = np.repeat([True, True, False, False], [both, first, second, 20])
    other = np.repeat([True, False, True, False], [both, first, second, 20])
    return one, other


@pytest.mark.parametrize(("first", "second"), [(9, 1), (8, 2), (5, 0), (6, 0), (30, 15), (3, 9)])
def test_better_is_mcnemars_exact_test(first: int, second: int) -> None:
    """Under equality, of the samples that one row alone withstands each is either's by a coin."""
    one, other = _verdicts(first, second)
    tail = binom.cdf(min(first, second), first + second, 0.5)
    assert better(one, other) == (first > second and 2 * tail < 0.05)
    assert not (better(one, other) and better(other, one))


def test_rows_that_agree_where_they_differ_share_a_rank() -> None:
    best, second = _verdicts(8, 2)
    assert ranked([best, second]) == [1, 1]
    worst = np.zeros_like(best)
    assert ranked([best, second, worst]) == [1, 1, 3]
    assert ranked([best, best, best]) == [1, 1, 1]
    # Neighbours that cannot be told apart may differ in rank: the last of these is worse than the
    # first alone.
    first, second, third = (np.arange(300) < n for n in (210, 205, 200))
    assert ranked([first, second, third]) == [1, 1, 2]


def test_a_pairing_tells_more_apart_than_intervals_do() -> None:
    """6 samples of 1000 more, none less: intervals overlap nearly whole, and the test is sure."""
    other = np.arange(1000) < 700
    one = np.arange(1000) < 706
    assert better(one, other)


def test_a_table_is_ordered_and_complete(made: Small) -> None:
    (task,) = made.tasks.values()
    rows = [open_row(folder, made.tasks) for folder in sorted(made.rows.iterdir())]
    table = make_table(task, rows)
    best = [line.record.numbers.best_attack for line in table.lines]
    assert best == sorted(best, reverse=True)
    names = [
        *("rank", "defense", "best-attack [95%]", "natural", "certified", "flags", "files"),
    ]
    attacks = [
        *("defense", "PGD", "CW", "SCW", "if Lipschitz ≤ 0.7 (of these broken)", "queries"),
    ]
    assert [column.heading("board") for column in table.columns] == names
    assert len(names) <= 8
    assert len(attacks) <= 8
    for line in table.lines:
        assert list(line.cells) == names
        assert list(line.attacks) == attacks
        numbers = line.record.numbers
        assert line.cells["best-attack [95%]"].startswith(f"{100 * numbers.best_attack:.1f} [")
        assert line.attacks["SCW"] != "-"
        assert (line.cells["certified"] == "-") == (line.record.row == "vanilla")
        assert line.links["defense"] == {line.record.row: "README.md"}
    (told,) = table.papers
    assert (told["beside"], told["the paper's name"]) == ("vanilla", "Plain")
    assert (told["natural"], told["best-attack"], told["source"]) == ("99.5", "-", "[1]")
    assert table.sources == ["A paper, table 1"]


def test_certificates_bound_from_below(made: Small) -> None:
    for name in ("l2nnn", "nbr"):
        report = check(made.rows / name, made.tasks, False).report
        proven = report.certified_within(report.threat.eps)
        assert proven is not None
        assert not (proven & ~robust(report)).any()
        assert not len(report.contradictions)


def test_a_curve_ends_at_best_attack_and_begins_at_natural(made: Small) -> None:
    for folder in made.rows.iterdir():
        report = open_row(folder, made.tasks).report
        curve, eps = upper(report), np.linspace(0, report.threat.eps, 101)
        assert curve is not None
        left = curve(eps)
        assert left[0] <= report.natural
        assert left[-1] == pytest.approx(report.best_attack)
        assert (np.diff(left) <= 0).all()


def test_examples_that_are_shown_are_of_several_labels_and_broken(made: Small) -> None:
    (task,) = made.tasks.values()
    rows = [open_row(folder, made.tasks) for folder in made.rows.iterdir()]
    samples = shown(task, rows)
    assert len({int(task.samples.y[i]) for i in samples}) == len(samples) == 3
    for i in samples:
        for row in rows:
            natural = row.report.frames["natural"]
            correct = not natural.set_index("index")["broken"][i]
            found = closest_example(row.report, i)
            assert (found is not None) == (correct and not robust(row.report)[i])
            if found is not None:
                point, distance, predicted = found
                assert distance == pytest.approx(float((point - task.samples.x[i]).norm()))
                assert predicted != int(task.samples.y[i])


def test_claims_of_papers_are_put_to_the_test(made: Small) -> None:
    (task,) = made.tasks.values()
    rows = [open_row(folder, made.tasks) for folder in made.rows.iterdir()]
    holds, fails, unknown = make_table(task, rows).claims
    (nbr,) = [row.record.numbers for row in rows if row.record.row == "NBR"]
    pgd, best = 100 * (nbr.per_attack["PGD"] or 0), 100 * nbr.best_attack
    assert holds.startswith(
        "NBR PGD above NBR best-attack: by 1 points in the paper; 0 or more were asked for here: "
        f"found, {pgd:.1f} and {best:.1f} (+{pgd - best:.1f}"
    )
    assert ": not found, " in fails
    assert unknown.endswith("5 or more were asked for here, and it was not measured")
