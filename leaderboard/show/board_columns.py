"""The columns of the board's tables: those of every run that the board shows, and its own.

A column that runs have too is added in `benchmark.report.report_columns`; one of the board alone is
added here, in `board_columns`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.columns import Column, Shown, percent, shown_in
from benchmark.report.measurements import Measurements
from benchmark.report.report_columns import report_columns
from leaderboard.submission.record import (
    ASSUMED,
    CARD_TEXT,
    EVIDENCE,
    RECORD,
    SPEC,
    Assumed,
    Work,
)
from leaderboard.submission.submission import Row
from leaderboard.tasks import Reported, Task

# What the cell of a row's files calls each of them.
_FILES = {"spec": SPEC, "record": RECORD, "examples": EVIDENCE}


@dataclass(frozen=True)
class Entry:
    """A row of the board in its table.

    rank      by best-attack accuracy, among the rows of the task.
    reported  what papers report of the row; `sources` are all that the table cites, in order.
    """

    row: Row
    rank: int
    reported: Sequence[Reported]
    sources: Sequence[str]


@dataclass(frozen=True)
class BoardColumn(Column[Entry]):
    """A column of the board's tables.

    links     the texts of a cell that lead to files of the row, each with its file.
    quoted    whether its figures are those of papers, which are set apart.
    sortable  whether a click on its heading sorts the page.
    """

    links: Callable[[Entry], Mapping[str, str]] | None = None
    quoted: bool = False
    sortable: bool = True

    @property
    def name(self) -> str:
        """What the column is called on the board."""
        return self.heading("board")

    @property
    def heading_classes(self) -> str:
        """The classes of its heading on the page."""
        return " ".join(["text"] * self.left + ["paper"] * self.quoted)

    @property
    def cell_classes(self) -> str:
        """The classes of its cells on the page."""
        return " ".join([*self.heading_classes.split(), *self.style.split()])


def board_columns(task: Task) -> list[BoardColumn]:
    """The columns of a task's table, in order."""
    measured = shown_in("board", report_columns(task.spec.norm, task.lineup.entries))
    # The board's own columns stand before the last of these, which is flags.
    defense, *shares, flags = [_of_entry(column) for column in measured]
    return [
        BoardColumn({"board": Shown("rank")}, lambda entry: entry.rank),
        BoardColumn(
            defense.shown, defense.value, left=True,
            links=lambda entry: {entry.row.record.row: CARD_TEXT},
        ),
        *shares,
        *([_assumed_column()] if task.spec.norm == "l2" else []),
        BoardColumn(
            {
                "board": Shown(
                    "queries",
                    "queries: mean forward + backward passes per attacked image, of all attacks "
                    "together.",
                )
            },
            lambda entry: list(entry.row.record.numbers.work.values()),
            _queries,
        ),
        flags,
        BoardColumn(
            {"board": Shown("reported by papers")}, _reported, left=True, style="wide", quoted=True
        ),
        BoardColumn(
            {"board": Shown("files")},
            lambda entry: ", ".join(_FILES),
            left=True, links=lambda entry: _FILES, sortable=False,
        ),
    ]  # fmt: skip


def _of_entry(column: Column[Measurements]) -> BoardColumn:
    """A column of reports as one of the board, whose rows hold a report."""

    def value(entry: Entry) -> Any:
        return column.value(entry.row.report)

    return BoardColumn(column.shown, value, column.text, column.data, column.left, column.style)


def _assumed_column() -> BoardColumn:
    """What would be certified under an assumed bound of the local Lipschitz constant."""
    shown = Shown(
        f"if Lipschitz ≤ {ASSUMED:g} (of these broken)",
        f"if Lipschitz ≤ {ASSUMED:g}: what would be certified if that bound held, which is not "
        "proven, and how many of these images are broken nevertheless.",
        optional=True,
    )
    return BoardColumn({"board": shown}, lambda entry: entry.row.record.numbers.assumed, _assumed)


def _assumed(assumed: Assumed) -> str:
    return f"{percent(assumed.certified)} ({assumed.broken})"


def _queries(work: Sequence[Work]) -> str:
    """The mean passes of all attacks together, forward and backward."""
    attacks = [done for done in work if done.attacked]
    forwards = sum(done.forwards for done in attacks)
    backwards = sum(done.backwards for done in attacks)
    return f"{forwards:.0f} + {backwards:.0f}"


def _reported(entry: Entry) -> str | None:
    """What papers say of a row, each with the number of its source."""
    told = []
    for reported in entry.reported:
        figures = {
            "natural": reported.natural, **reported.attacks, "best-attack": reported.best_attack,
            "certified": reported.certified,
        }  # fmt: skip
        shares = [f"{name} {share:g}" for name, share in figures.items() if share is not None]
        number = entry.sources.index(reported.source) + 1
        told.append(f"{reported.named}: {', '.join(shares)} [{number}]")
    return "; ".join(told) or None
