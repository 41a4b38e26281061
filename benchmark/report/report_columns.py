"""The columns of what is measured: those with a row per defense, and those with a row per attack.

A column is added here alone: an entry in one of the two lists below. The tables that it names show
it, with what their captions say of it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from attacks.threat import Norm
from benchmark.columns import Column, Shown, Table, decimals, percent, shown_in
from benchmark.report.accuracy import Accuracy, work
from benchmark.report.flags import explain
from benchmark.report.measurements import Measurements
from benchmark.spec.components import BEST, CERTIFIED, NATURAL

# What captions add where bounds prove something too.
_OR = {False: ("", ""), True: (", or bounds prove it of the threat", ", or by bounds")}
_WITHIN = {"l2": "eps", "linf": "eps * sqrt(dimensions) in L2", "l1": "eps in L2"}


def report_columns(
    norm: Norm, attacks: Iterable[str], measured: Iterable[str] = (), by_bounds: bool = False
) -> list[Column[Measurements]]:
    """The columns of tables with a row per defense, in order.

    attacks   the labels that have a column of their own.
    measured  the labels that best-attack accuracy is over, for the caption.
    """
    certified = _certified_column(norm, by_bounds)
    return [
        Column(
            dict.fromkeys(("run", "page", "json", "board"), Shown("defense")),
            lambda report: report.name,
            left=True,
        ),
        Column(
            dict.fromkeys(("run", "page", "seeds", "json", "board"), Shown(NATURAL)),
            _accuracy(NATURAL), _share, _plain_share,
        ),
        certified.only("json"),
        _json("contradictions", lambda report: report.contradictions.tolist()),
        _json("per_attack", _per_attack),
        *map(_attack_column, attacks),
        certified.only("run", "seeds"),
        _best_column(measured),
        certified.only("page", "board"),
        _json("interval", _interval),
        Column(
            dict.fromkeys(("run", "page", "json", "board"), Shown("flags")),
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


def _certified_column(norm: Norm, by_bounds: bool) -> Column[Measurements]:
    proven = Shown(
        CERTIFIED,
        "certified: if it is classified correctly and the defense's own certificate proves "
        f"that nothing within {_WITHIN[norm]} changes that{_OR[by_bounds][0]}.",
        optional=True,
    )
    shown: dict[Table, Shown] = {
        "run": proven,
        "page": proven,
        "seeds": proven,
        "json": Shown(CERTIFIED),
        "board": Shown(CERTIFIED, f"certified: proven by the defense itself{_OR[by_bounds][1]}."),
    }
    return Column(shown, _accuracy(CERTIFIED), _share, _plain_share)


def _best_column(measured: Iterable[str]) -> Column[Measurements]:
    """Best-attack accuracy with its interval, over the labels `measured`."""
    over = f"worst case per sample over {', '.join(measured) or 'none yet'}"
    said = (
        f"best-attack: if no attack breaks it ({over}). Samples that are misclassified clean count "
        "as broken in every column and are not attacked."
    )
    shown: dict[Table, Shown] = {
        "run": Shown(f"{BEST} [95% interval]", said),
        "seeds": Shown(BEST, said),
        "page": Shown(
            f"{BEST} [95%]",
            f"best-attack: the share that is classified correctly and that no attack broke ({over})"
            ", with its 95% interval. A better attack may lower it.",
        ),
        "json": Shown("best_attack"),
        "board": Shown(
            f"{BEST} [95%]",
            "best-attack: classified correctly and broken by no attack; images misclassified clean "
            "count as broken in every column.",
        ),
    }
    return Column(shown, _best, str, _plain_share, style="best")


def run_columns(
    reports: Sequence[Measurements], table: Table = "run"
) -> list[Column[Measurements]]:
    """The columns of a run's table, or of what that over several seeds takes from it. A cascade has
    none of single attacks, and columns that not every run has are left out where no report has a
    value there."""
    attacks = dict.fromkeys(label for report in reports for label in report.attacks)
    measured = dict.fromkeys(label for report in reports for label in report.measured)
    cascade = all(report.mode == "cascade" for report in reports)
    by_bounds = any(report.proofs is not None for report in reports)
    columns = report_columns(
        reports[0].threat.norm, () if cascade else attacks, measured, by_bounds
    )
    return [
        column
        for column in shown_in(table, columns)
        if not column.shown[table].optional
        or any(column.value(report) is not None for report in reports)
    ]


def _attack_column(label: str) -> Column[Measurements]:
    """The column of one attack, which is headed by its label."""
    shown: dict[Table, Shown] = {name: Shown(label) for name in ("run", "seeds", "board")}
    return Column(shown, _accuracy(label), _share)


def _json(heading: str, value: Callable[[Measurements], Any]) -> Column[Measurements]:
    """A column of table.json alone."""
    return Column({"json": Shown(heading)}, value)


def _accuracy(label: str) -> Callable[[Measurements], Accuracy | str | None]:
    """What a column holds: the accuracy under a label, or that the attack failed."""

    def value(report: Measurements) -> Accuracy | str | None:
        return report.accuracy(label) or ("error" if label in report.errors else None)

    return value


def _best(report: Measurements) -> Accuracy | str | None:
    return report.accuracy(BEST) or ("error" if report.failed else None)


def _share(accuracy: Accuracy) -> str:
    """An accuracy without its interval."""
    return percent(accuracy.value)


def _plain_share(accuracy: Accuracy | str | None) -> float | None:
    return accuracy.value if isinstance(accuracy, Accuracy) else None


def _per_attack(report: Measurements) -> dict[str, float | None]:
    """JSON has no NaN."""
    shares = report.per_attack.items()
    return {label: None if math.isnan(share) else share for label, share in shares}


def _interval(report: Measurements) -> list[float] | None:
    best = report.accuracy(BEST)
    return list(best.interval) if best else None


@dataclass(frozen=True)
class Line:
    """A row of the details: one label of one report."""

    report: Measurements
    label: str

    @cached_property
    def accuracy(self) -> Accuracy | None:
        return self.report.accuracy(self.label)

    @cached_property
    def work(self) -> dict[str, Any]:
        """What the attack did; empty for natural and certified, and where it does not apply."""
        if self.label == NATURAL or self.label not in self.report.frames:
            return {}
        return work(self.report.frames[self.label])

    @property
    def interval(self) -> tuple[float, float] | tuple[None, None]:
        return self.accuracy.interval if self.accuracy else (None, None)

    @property
    def seconds(self) -> float | None:
        timed = self.label == CERTIFIED or bool(self.work)
        return self.report.seconds[self.label] if timed else None


def lines(reports: Sequence[Measurements]) -> list[Line]:
    """The rows of the details: natural, each attack, certified where the defense offers a
    certificate, and best-attack, of each report."""
    return [
        Line(report, label)
        for report in reports
        for label in (
            NATURAL, *report.attacks, *([CERTIFIED] if CERTIFIED in report.keys else []), BEST
        )
    ]  # fmt: skip


def detail_columns() -> list[Column[Line]]:
    """The columns of tables with a row per defense and attack, in order."""
    left_out = _done("unbroken, left out of distance", 0, "left out")
    return [
        Column(
            {"details": Shown("defense"), "numbers": Shown("defense")},
            lambda line: line.report.name,
            left=True,
        ),
        Column(
            {"details": Shown("attack"), "numbers": Shown("attack")},
            lambda line: line.label,
            left=True,
        ),
        Column({"details": Shown("robust % [95% interval]")}, lambda line: line.accuracy),
        _number("accuracy", lambda line: _plain_share(line.accuracy)),
        _number("low", lambda line: line.interval[0]),
        _number("high", lambda line: line.interval[1]),
        _done("attacked", 0),
        _done("broken", 0),
        left_out.only("numbers"),
        _done("median distance", 3),
        _done("mean distance", 3),
        left_out.only("details"),
        _done("forwards", 1),
        _done("backwards", 1),
        Column(
            {"details": Shown("seconds"), "numbers": Shown("seconds")},
            lambda line: line.seconds,
            decimals(1),
        ),
        _number("error", lambda line: line.report.errors.get(line.label)),
        _number("does not apply", lambda line: line.report.inapplicable.get(line.label)),
    ]


def _number(heading: str, value: Callable[[Line], Any]) -> Column[Line]:
    """A column that is written, and not printed."""
    return Column({"numbers": Shown(heading)}, value)


def _done(name: str, digits: int, printed: str | None = None) -> Column[Line]:
    """A column of what attacks did: see `benchmark.report.accuracy.work`."""
    return Column(
        {"details": Shown(printed or name), "numbers": Shown(name)},
        lambda line: line.work.get(name),
        decimals(digits),
    )
