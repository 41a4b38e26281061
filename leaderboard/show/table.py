"""The tables of the board: rows in order, with ranks, as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmark.columns import captions, percent
from benchmark.pages.figures import Figure, trade_off
from benchmark.report.captions import threat_name
from benchmark.report.flags import explain
from benchmark.report.paired import better
from benchmark.report.report import Report
from benchmark.spec.components import BEST
from leaderboard.show.board_columns import (
    BoardColumn,
    Entry,
    attack_columns,
    board_columns,
    paper_columns,
)
from leaderboard.submission.record import Record
from leaderboard.submission.submission import Row
from leaderboard.tasks import Claim, Task


@dataclass(frozen=True)
class Line:
    """One row of a table as text.

    record   what the row says of itself.
    kind     the registered name of its defense.
    flags    the codes of its flags.
    folder   where its files lie, seen from the board's folder.
    cells    what each column of the table holds, by the column's heading.
    links    of some columns, the texts of the cell that lead to files, and the files.
    attacks  what each column of the table of all attacks holds.
    """

    record: Record
    kind: str
    flags: Sequence[str]
    folder: str
    cells: dict[str, str]
    links: dict[str, Mapping[str, str]]
    attacks: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A task's tables: their columns, and their lines, the best first.

    caption   what the table is over; notes, what the table of all attacks shows.
    papers    what papers report, by the heading of each column; sources, where.
    claims    what became of the papers' claims.
    trade_off natural against best-attack accuracy; None of fewer than two rows.
    """

    task: Task
    columns: list[BoardColumn]
    attack_columns: list[BoardColumn]
    lines: list[Line]
    caption: str
    notes: str
    papers: list[dict[str, str]]
    sources: list[str]
    claims: list[str]
    trade_off: Figure | None


def make_table(task: Task, rows: Sequence[Row]) -> Table:
    """The table of a task's rows. Their reports are taken as they are."""
    rows = sorted(rows, key=lambda row: (-row.report.best_attack, row.record.row))
    columns, attacks = board_columns(task), attack_columns(task)
    named = {row.record.row: row for row in rows}
    ranks = ranked([robust(row.report) for row in rows])
    told = [said for name in named for said in task.reported if said.row == name]
    sources = list(dict.fromkeys(said.source for said in told))
    of_papers = paper_columns(sources)
    return Table(
        task,
        columns,
        attacks,
        [
            _line(task, Entry(row, rank), columns, attacks)
            for row, rank in zip(rows, ranks, strict=True)
        ],
        _caption(task, columns),
        _notes(task, rows, attacks),
        [{each.heading("papers"): each.cell(said) for each in of_papers} for said in told],
        sources,
        [_tested(claim, named) for claim in task.claims],
        trade_off([row.report for row in rows]),
    )


def _line(
    task: Task, entry: Entry, columns: Sequence[BoardColumn], attacks: Sequence[BoardColumn]
) -> Line:
    row = entry.row
    defenses = {component.label: component.name for component in row.spec.defenses}
    return Line(
        row.record,
        defenses.get(row.record.row, row.record.row),
        list(explain(row.report)),
        f"rows/{task.name}/{row.folder.name}",
        {column.heading("board"): column.cell(entry) for column in columns},
        {column.heading("board"): column.links(entry) for column in columns if column.links},
        {column.heading("attacks"): column.cell(entry) for column in attacks},
    )


def robust(report: Report, label: str = BEST) -> NDArray[np.bool_]:
    """The samples (n,) that count under a label that was measured: see `Report.robust_to`."""
    counted = report.robust_to(label)
    assert counted is not None
    return counted


def ranked(verdicts: Sequence[NDArray[np.bool_]]) -> list[int]:
    """The rank of each row, given its verdicts (n,) on the same samples: 1 more than there are rows
    that are better by McNemar's exact test."""
    return [1 + sum(better(rival, verdict) for rival in verdicts) for verdict in verdicts]


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


def _caption(task: Task, columns: Sequence[BoardColumn]) -> str:
    """What the numbers of a task's table are over."""
    spec = task.spec
    return (
        f"Accuracy in % over {'all' if spec.samples is None else 'the first'} {len(task.samples)} "
        f"test images of {task.data['name']}, {threat_name(spec.threat)}. "
        + " ".join(captions("board", columns))
    )


def _notes(task: Task, rows: Sequence[Row], columns: Sequence[BoardColumn]) -> str:
    """What the table of all attacks shows."""
    extra = sorted(
        {label for row in rows for label in row.report.measured} - task.lineup.entries.keys()
    )
    text = "Robust accuracy in % under each attack. " + " ".join(captions("attacks", columns))
    if extra:
        text += f" Also run on some rows, and counted in best-attack: {', '.join(extra)}."
    if bounded := [row.record.row for row in rows if row.report.proofs is not None]:
        text += f" Certified by bounds, too: {', '.join(bounded)}."
    return text
