"""The columns of what is measured, with a row per defense.

A column is added here alone, or in the list of `detail_columns`, which has a row per attack: an
entry. The tables that it names show it, with what their captions say of it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from attacks.threat import Norm
from benchmark.columns import Column, Shown, Table, percent, shown_in
from benchmark.report.accuracy import Accuracy, plain_share
from benchmark.report.columns.best_columns import (
    UNFINISHED,
    best_column,
    best_in_latex,
    clearly_best,
    standing_column,
)
from benchmark.report.flags import explain
from benchmark.report.measurements import Measurements
from benchmark.spec.components import BEST, CERTIFIED, NATURAL

# What proves: the defense's own certificate, bounds, or either.
Proven = Literal["itself", "bounds", "either"]
# The tables with a row per defense, and how the flags stand on a terminal.
_MAIN: tuple[Table, ...] = ("run", "terminal", "page", "latex", "json", "board")
_FLAGS = Shown("flags", optional=True, warns=True)
_WITHIN = {"l2": "eps", "linf": "eps * sqrt(dimensions) in L2", "l1": "eps in L2"}


def report_columns(
    norm: Norm,
    attacks: Iterable[str],
    measured: Iterable[str] = (),
    proven: Proven = "itself",
    clear: Measurements | None = None,
) -> list[Column[Measurements]]:
    """The columns of tables with a row per defense, in order.

    attacks   the labels that have a column of their own.
    measured  the labels that best-attack accuracy is over, and what proves certified accuracy, for
              the caption.
    clear     the report whose best-attack accuracy is marked as clearly the highest.
    """
    certified = _certified_column(norm, proven)
    return [
        Column(
            dict.fromkeys((*_MAIN, "attacks"), Shown("defense")),
            lambda report: report.name,
            left=True,
        ),
        Column(
            dict.fromkeys((*_MAIN, "seeds"), Shown(NATURAL)),
            _accuracy(NATURAL), _share, plain_share,
        ),
        certified.only("json"),
        _json("contradictions", lambda report: report.contradictions.tolist()),
        _json("per_attack", _per_attack),
        *map(_attack_column, attacks),
        certified.only("run", "seeds", "latex"),
        best_column(measured),
        best_in_latex(measured, clear),
        standing_column(measured, clear),
        certified.only("terminal", "page", "board"),
        UNFINISHED,
        _json("interval", _interval),
        Column(
            {
                **dict.fromkeys(_MAIN, Shown("flags")),
                "terminal": _FLAGS,
                "latex": Shown("flags", optional=True),
            },
            lambda report: explain(report) or None,
            text=", ".join,
            data=lambda flags: flags or {},
            left=True,
            style="wide",
        ),
        _json("errors", lambda report: report.errors),
        _json("inapplicable", lambda report: report.inapplicable),
        _json("left_out", lambda report: report.left_out and dataclasses.asdict(report.left_out)),
        _json("after", lambda report: {k: list(labels) for k, labels in report.after.items()}),
        _json("notes", lambda report: report.notes),
    ]  # fmt: skip


def _certified_column(norm: Norm, proven: Proven) -> Column[Measurements]:
    own = f"the defense's own certificate proves that nothing within {_WITHIN[norm]} changes that"
    told = {
        "itself": own,
        "bounds": "bounds prove that nothing within eps changes that",
        "either": f"bounds prove that nothing within eps changes that, or {own}",
    }
    text = f"certified: if it is classified correctly and {told[proven]}."
    shown: dict[Table, Shown] = {
        **dict.fromkeys(("run", "page", "seeds"), Shown(CERTIFIED, text, optional=True)),
        "latex": Shown(
            CERTIFIED,
            f"certified: the share that is classified correctly and for which {told[proven]}.",
            optional=True,
        ),
        "terminal": Shown(
            CERTIFIED,
            f"certified: classified correctly, and {told[proven]}.",
            optional=True,
        ),
        "json": Shown(CERTIFIED),
        "board": Shown(CERTIFIED, "certified: proven by the defense itself."),
    }
    return Column(shown, _accuracy(CERTIFIED), _share, plain_share)


def proven_by(reports: Sequence[Measurements]) -> Proven:
    """What proves the certified accuracy of some reports."""
    if all(report.proofs is None for report in reports):
        return "itself"
    return "either" if any(CERTIFIED in report.keys for report in reports) else "bounds"


def run_columns(
    reports: Sequence[Measurements], table: Table = "run", with_attacks: bool = True
) -> list[Column[Measurements]]:
    """The columns of a run's table, or of what that over several seeds takes from it. A cascade has
    none of single attacks, and columns that not every run has are left out where no report has a
    value there; so are those of attacks unless `with_attacks`."""
    attacks = dict.fromkeys(label for report in reports for label in report.attacks)
    measured = dict.fromkeys(label for report in reports for label in report.measured)
    cascade = all(report.mode == "cascade" for report in reports)
    columns = report_columns(
        reports[0].threat.norm, attacks if with_attacks and not cascade else (), measured,
        proven_by(reports), clearly_best(reports) if table in ("latex", "terminal") else None,
    )  # fmt: skip
    return _with_values(table, columns, reports)


def _with_values(
    table: Table, columns: Iterable[Column[Measurements]], reports: Sequence[Measurements]
) -> list[Column[Measurements]]:
    """The columns that a table shows, without those that may be left out and have no value."""
    return [
        column
        for column in shown_in(table, columns)
        if not column.shown[table].optional
        or any(column.value(report) is not None for report in reports)
    ]


def _attack_column(label: str) -> Column[Measurements]:
    """The column of one attack, which is headed by its label."""
    shown: dict[Table, Shown] = dict.fromkeys(("run", "seeds", "latex", "attacks"), Shown(label))
    return Column(shown, _accuracy(label), _share)


def _json(heading: str, value: Callable[[Measurements], Any]) -> Column[Measurements]:
    """A column of table.json alone."""
    return Column({"json": Shown(heading)}, value)


def _accuracy(label: str) -> Callable[[Measurements], Accuracy | str | None]:
    """What a column holds: the accuracy under a label, or that the attack failed."""

    def value(report: Measurements) -> Accuracy | str | None:
        return report.accuracy(label) or ("error" if report.why_failed(label) else None)

    return value


def _share(accuracy: Accuracy) -> str:
    """An accuracy without its interval."""
    return percent(accuracy.value)


def _per_attack(report: Measurements) -> dict[str, float | None]:
    """JSON has no NaN."""
    shares = report.per_attack.items()
    return {label: None if math.isnan(share) else share for label, share in shares}


def _interval(report: Measurements) -> list[float] | None:
    best = report.accuracy(BEST)
    return list(best.interval) if best else None
