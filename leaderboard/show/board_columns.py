"""The columns of the board's tables: those of every run that the board shows, and its own.

A column that runs have too is added in `benchmark.report.report_columns`; one of the board alone is
added here, in `board_columns`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmark.columns import Column, Shown, percent, shown_in
from benchmark.report.measurements import Measurements
from benchmark.report.report_columns import report_columns
from benchmark.spec.components import BEST, CERTIFIED, NATURAL
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

    rank  by best-attack accuracy, among the rows of the task.
    """

    row: Row
    rank: int


@dataclass(frozen=True)
class BoardColumn(Column[Entry]):
    """A column of the board's tables.

    links     the texts of a cell that lead to files of the row, each with its file.
    sortable  whether a click on its heading sorts the page.
    """

    links: Callable[[Entry], Mapping[str, str]] | None = None
    sortable: bool = True


def board_columns(task: Task) -> list[BoardColumn]:
    """The columns of a task's table, in order."""
    shared = shown_in("board", report_columns(task.spec.norm, task.lineup.entries))
    defense, natural, best, certified, flags = [_of_entry(column) for column in shared]
    return [
        BoardColumn(
            {
                "board": Shown(
                    "rank",
                    "rank: 1 more than there are rows that are surely better (McNemar's exact "
                    "test on the same images, 5%, for each pair alone); rows of one rank may stand "
                    "in either order.",
                )
            },
            lambda entry: entry.rank,
            style="minor",
        ),
        replace(defense, links=lambda entry: {entry.row.record.row: CARD_TEXT}),
        best,
        natural,
        certified,
        replace(flags, style="wide minor"),
        BoardColumn(
            {"board": Shown("files")},
            lambda entry: ", ".join(_FILES),
            left=True, links=lambda entry: _FILES, sortable=False, style="minor",
        ),
    ]  # fmt: skip


def attack_columns(task: Task) -> list[BoardColumn]:
    """The columns of a task's table of all attacks, in order."""
    shared = shown_in("attacks", report_columns(task.spec.norm, task.lineup.entries))
    return [
        *map(_of_entry, shared),
        *([_assumed_column()] if task.spec.norm == "l2" else []),
        BoardColumn(
            {
                "attacks": Shown(
                    "queries",
                    "queries: mean forward + backward passes per attacked image, of all attacks "
                    "together.",
                )
            },
            lambda entry: list(entry.row.record.numbers.work.values()),
            _queries,
        ),
    ]


def paper_columns(sources: Sequence[str]) -> list[Column[Reported]]:
    """The columns of the table of what papers report, in order; `sources` are numbered."""

    def share(heading: str, value: Callable[[Reported], float | None]) -> Column[Reported]:
        return Column({"papers": Shown(heading)}, value, "{:g}".format)

    return [
        Column({"papers": Shown("beside")}, lambda told: told.row, left=True),
        Column({"papers": Shown("the paper's name")}, lambda told: told.named, left=True),
        share(BEST, lambda told: told.best_attack),
        share(NATURAL, lambda told: told.natural),
        share(CERTIFIED, lambda told: told.certified),
        Column({"papers": Shown("attacks")}, lambda told: told.attacks or None, _listed, left=True),
        Column({"papers": Shown("source")}, lambda told: f"[{sources.index(told.source) + 1}]"),
    ]


def _listed(attacks: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:g}" for name, share in attacks.items())


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
    return BoardColumn({"attacks": shown}, lambda entry: entry.row.record.numbers.assumed, _assumed)


def _assumed(assumed: Assumed) -> str:
    return f"{percent(assumed.certified)} ({assumed.broken})"


def _queries(work: Sequence[Work]) -> str:
    """The mean passes of all attacks together, forward and backward."""
    attacks = [done for done in work if done.attacked]
    forwards = sum(done.forwards for done in attacks)
    backwards = sum(done.backwards for done in attacks)
    return f"{forwards:.0f} + {backwards:.0f}"
