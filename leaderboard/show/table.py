"""The tables of the board: rows in order, with ranks, as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmark.columns import captions, percent
from benchmark.report.captions import threat_name
from benchmark.report.paired import LEVEL, Paired
from benchmark.report.report import Report
from benchmark.spec.components import BEST
from leaderboard.show.board_columns import BoardColumn, Entry, board_columns
from leaderboard.submission.record import Record
from leaderboard.submission.submission import Row
from leaderboard.tasks import Claim, Task


@dataclass(frozen=True)
class Line:
    """One row of a table as text.

    record  what the row says of itself.
    folder  where its files lie, seen from the board's folder.
    cells   what each column holds, by the column's name.
    links   of some columns, the texts of the cell that lead to files, and the files.
    """

    record: Record
    folder: str
    cells: dict[str, str]
    links: dict[str, Mapping[str, str]]


@dataclass(frozen=True)
class Table:
    """A task's table: its columns, its lines, the best first, what it is over, the sources of its
    figures from papers, and what became of the papers' claims."""

    task: Task
    columns: list[BoardColumn]
    lines: list[Line]
    caption: str
    sources: list[str]
    claims: list[str]


def make_table(task: Task, rows: Sequence[Row]) -> Table:
    """The table of a task's rows. Their reports are taken as they are."""
    columns = board_columns(task)
    entries = _entries(task, rows)
    named = {entry.row.record.row: entry.row for entry in entries}
    return Table(
        task,
        columns,
        [_line(task, entry, columns) for entry in entries],
        _caption(task, [entry.row for entry in entries], columns),
        list(entries[0].sources) if entries else [],
        [_tested(claim, named) for claim in task.claims],
    )


def _entries(task: Task, rows: Sequence[Row]) -> list[Entry]:
    """The rows, the best first, each with its rank and with what papers report of it."""
    rows = sorted(rows, key=lambda row: (-row.report.best_attack, row.record.row))
    reported = [[said for said in task.reported if said.row == row.record.row] for row in rows]
    sources = list(dict.fromkeys(said.source for of_row in reported for said in of_row))
    ranks = ranked([robust(row.report) for row in rows])
    return [
        Entry(row, rank, of_row, sources)
        for row, rank, of_row in zip(rows, ranks, reported, strict=True)
    ]


def _line(task: Task, entry: Entry, columns: Sequence[BoardColumn]) -> Line:
    return Line(
        entry.row.record,
        f"rows/{task.name}/{entry.row.folder.name}",
        {column.name: column.cell(entry) for column in columns},
        {column.name: column.links(entry) for column in columns if column.links},
    )


def robust(report: Report, label: str = BEST) -> NDArray[np.bool_]:
    """The samples (n,) that count under a label that was measured: see `Report.robust_to`."""
    counted = report.robust_to(label)
    assert counted is not None
    return counted


def ranked(verdicts: Sequence[NDArray[np.bool_]]) -> list[int]:
    """The rank of each row, given its verdicts (n,) on the same samples: 1 more than there are rows
    that are better by McNemar's exact test, at level LEVEL."""
    return [1 + sum(better(rival, verdict) for rival in verdicts) for verdict in verdicts]


def better(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> bool:
    """Whether the first row is better than the second by McNemar's exact test (McNemar 1947), at
    level LEVEL, given their verdicts (n,) on the same samples."""
    paired = Paired.of(first, second)
    return paired.first > paired.second and paired.chance() < LEVEL


def _tested(claim: Claim, rows: Mapping[str, Row]) -> str:
    """A line on an order that a paper claims: how large it is there, and what came of it here."""
    (high_row, high_column), (low_row, low_column) = claim.above, claim.below
    text = (
        f"{high_row} {high_column} above {low_row} {low_column}: by {claim.paper:g} points in the "
        f"paper; {claim.by:g} or more were asked for here"
    )
    high, low = (_verdicts(rows.get(row), column) for row, column in (claim.above, claim.below))
    if high is None or low is None:
        return f"{text}, and it was not measured"
    points = 100 * (high.mean() - low.mean())
    holds = "found" if points >= claim.by else "not found"
    sure = "" if better(high, low) or better(low, high) else ", which may be chance"
    return (
        f"{text}: {holds}, {percent(high.mean())} and {percent(low.mean())} ({points:+.1f}{sure})"
    )


def _verdicts(row: Row | None, column: str) -> NDArray[np.bool_] | None:
    """The samples (n,) that a column counts as robust; None where it is not measured."""
    return None if row is None else row.report.robust_to(column)


def _caption(task: Task, rows: Sequence[Row], columns: Sequence[BoardColumn]) -> str:
    """What the numbers of a task's table are over."""
    spec = task.spec
    extra = sorted(
        {label for row in rows for label in row.report.measured} - task.lineup.entries.keys()
    )
    text = (
        f"Accuracy in % over {'all' if spec.samples is None else 'the first'} {len(task.samples)} "
        f"test images of {task.data['name']}, {threat_name(spec.threat)}. "
        + " ".join(captions("board", columns))
    )
    if extra:
        text += f" Also run on some rows, and counted in best-attack: {', '.join(extra)}."
    return text
