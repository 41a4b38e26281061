"""The tables of the board: rows in order, with ranks, as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmark.report.captions import NORMS
from benchmark.report.report import Report
from benchmark.spec.components import BEST
from leaderboard.submission.record import ASSUMED, Numbers, Record
from leaderboard.submission.submission import Row
from leaderboard.tasks import Claim, Reported, Task

# Two rows differ where the chance of as uneven a split of the samples that only one of them
# withstands is below this.
LEVEL = 0.05

NONE = "-"


@dataclass(frozen=True)
class Line:
    """One row of a table: `cells` by column, as text; where the row's files lie, from the board's
    folder; what its paper reports."""

    record: Record
    folder: str
    cells: dict[str, str]
    reported: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A task's table: its lines, the best first, what it is over, what its figures from papers are
    from, and what became of the papers' claims."""

    task: Task
    lines: list[Line]
    caption: str
    sources: list[str]
    claims: list[str]


def make_table(task: Task, rows: Sequence[Row]) -> Table:
    """The table of a task's rows. Their reports are taken as they are."""
    rows = sorted(rows, key=lambda row: (-row.report.best_attack, row.record.row))
    ranks = ranked([robust(row.report) for row in rows])
    sources: list[str] = []
    lines = []
    for row, rank in zip(rows, ranks, strict=True):
        reported = [one for one in task.reported if one.row == row.record.row]
        lines.append(
            Line(
                row.record,
                f"rows/{task.name}/{row.folder.name}",
                {"rank": str(rank), "defense": row.record.row} | _cells(row, task),
                _reported(reported, sources),
            )
        )
    named = {row.record.row: row for row in rows}
    claims = [_tested(claim, named) for claim in task.claims]
    return Table(task, lines, _caption(task, rows), sources, claims)


def robust(report: Report, label: str = BEST) -> NDArray[np.bool_]:
    """The samples (n,) that count under a label that was measured: see `Report.robust_to`."""
    found = report.robust_to(label)
    assert found is not None
    return found


def ranked(verdicts: Sequence[NDArray[np.bool_]]) -> list[int]:
    """The rank of each row, given its verdicts (n,) on the same samples: 1 more than there are rows
    that are better by McNemar's exact test, at level LEVEL."""
    return [1 + sum(better(one, other) for one in verdicts) for other in verdicts]


def better(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Whether the first row is better than the second by McNemar's exact test (McNemar 1947), at
    level LEVEL, given their verdicts (n,) on the same samples."""
    from scipy.stats import binomtest

    first, second = int((one & ~other).sum()), int((other & ~one).sum())
    return first > second and bool(binomtest(first, first + second).pvalue < LEVEL)


def columns(task: Task) -> list[str]:
    """The columns of a task's table that are measured."""
    assumed = [_assumed_column()] if task.spec.norm == "l2" else []
    return [
        "rank", "defense", "natural", *task.lineup.entries, "best-attack [95%]", "certified",
        *assumed, "queries", "flags",
    ]  # fmt: skip


def _assumed_column() -> str:
    return f"if Lipschitz ≤ {ASSUMED:g} (of these broken)"


def _cells(row: Row, task: Task) -> dict[str, str]:
    numbers = row.record.numbers
    low, high = numbers.interval
    cells = {
        "natural": _percent(numbers.natural),
        **{label: _percent(numbers.per_attack[label]) for label in task.lineup.entries},
        "best-attack [95%]": f"{_percent(numbers.best_attack)} [{_percent(low)}, {_percent(high)}]",
        "certified": _percent(numbers.certified),
        "queries": _queries(numbers),
        "flags": ", ".join(row.record.flags) or NONE,
    }
    if numbers.assumed:
        share, broken = numbers.assumed.certified, numbers.assumed.broken
        cells[_assumed_column()] = f"{_percent(share)} ({broken})"
    return {column: cells.get(column, NONE) for column in columns(task)[2:]}


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def _queries(numbers: Numbers) -> str:
    work = [done for done in numbers.work.values() if done.attacked]
    forwards, backwards = sum(d.forwards for d in work), sum(d.backwards for d in work)
    return f"{forwards:.0f} + {backwards:.0f}"


def _reported(reported: Sequence[Reported], sources: list[str]) -> dict[str, str]:
    """What papers say of a row, in one cell. `sources` gains what is cited."""
    shown = []
    for one in reported:
        if one.source not in sources:
            sources.append(one.source)
        figures = {
            "natural": one.natural, **one.attacks, "best-attack": one.best_attack,
            "certified": one.certified,
        }  # fmt: skip
        text = ", ".join(
            f"{name} {value:g}" for name, value in figures.items() if value is not None
        )
        shown.append(f"{one.named}: {text} [{sources.index(one.source) + 1}]")
    return {"reported by papers": "; ".join(shown) or NONE}


def _tested(claim: Claim, rows: Mapping[str, Row]) -> str:
    """What a paper has of an order and what came of it here, in a line."""
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
        f"{text}: {holds}, {100 * high.mean():.1f} and {100 * low.mean():.1f} ({points:+.1f}{sure})"
    )


def _verdicts(row: Row | None, column: str) -> NDArray[np.bool_] | None:
    """The samples (n,) that a column counts as robust; None where it is not measured."""
    return None if row is None else row.report.robust_to(column)


def _caption(task: Task, rows: Sequence[Row]) -> str:
    spec = task.spec
    extra = sorted(
        {label for row in rows for label in row.report.measured} - task.lineup.entries.keys()
    )
    text = (
        f"Accuracy in % over {'all' if spec.samples is None else 'the first'} {len(task.samples)} "
        f"test images of {task.data['name']}, {NORMS[spec.norm]} eps {spec.eps:g}. best-attack: "
        "classified correctly and broken by no attack; images misclassified clean count as broken "
        "in every column. certified: proven by the defense itself. queries: mean forward + "
        "backward passes per attacked image, of all attacks together."
    )
    if spec.norm == "l2":
        text += (
            f" if Lipschitz ≤ {ASSUMED:g}: what would be certified if that bound held, which is "
            "not proven, and how many of these images are broken nevertheless."
        )
    if extra:
        text += f" Also run on some rows, and counted in best-attack: {', '.join(extra)}."
    return text
