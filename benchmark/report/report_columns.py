"""The columns of what is measured: those with a row per defense, and those with a row per attack.

A column is added here alone: an entry in one of the two lists below. The tables that it names show
it, with what their captions say of it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from attacks.threat import Norm
from benchmark.columns import Column, Shown, Table, decimals, percent, shown_in
from benchmark.latex import Tex
from benchmark.report.accuracy import Accuracy, work
from benchmark.report.flags import CHANCE, explain
from benchmark.report.measurements import Measurements
from benchmark.report.paired import clearly_highest
from benchmark.spec.components import BEST, CERTIFIED, NATURAL, SEARCH

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
            _accuracy(NATURAL), _share, _plain_share,
        ),
        certified.only("json"),
        _json("contradictions", lambda report: report.contradictions.tolist()),
        _json("per_attack", _per_attack),
        *map(_attack_column, attacks),
        certified.only("run", "seeds", "latex"),
        _best_column(measured),
        _best_in_latex(measured, clear),
        _standing_column(measured, clear),
        certified.only("terminal", "page", "board"),
        _UNFINISHED,
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
    return Column(shown, _accuracy(CERTIFIED), _share, _plain_share)


def _best_column(measured: Iterable[str]) -> Column[Measurements]:
    """Best-attack accuracy with its interval, over the labels `measured`."""
    over = f"worst case per sample over {_names(measured)}"
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


def _names(measured: Iterable[str]) -> str:
    """What captions call what best-attack accuracy is over."""
    names = [name if name != SEARCH else "the search for proofs" for name in measured]
    return ", ".join(names) or "none yet"


def proven_by(reports: Sequence[Measurements]) -> Proven:
    """What proves the certified accuracy of some reports."""
    if all(report.proofs is None for report in reports):
        return "itself"
    return "either" if any(CERTIFIED in report.keys for report in reports) else "bounds"


def _best_in_latex(measured: Iterable[str], clear: Measurements | None) -> Column[Measurements]:
    """The same in LaTeX, where the interval is small and one accuracy may be bold."""
    caption = (
        "best-attack: the share that is classified correctly and that no attack breaks (worst case "
        f"per sample over {_names(measured)}), with its 95% interval. Samples "
        "that are misclassified clean count as broken everywhere and are not attacked."
    )
    if clear is not None:
        caption += (
            " Bold: the highest, beyond chance (McNemar's exact test against each other row, at "
            "5% for all together), and without a flag."
        )

    def value(report: Measurements) -> str | None:
        accuracy = report.accuracy(BEST)
        if accuracy is None:
            return "error" if report.failed else None
        share, interval = str(accuracy).split(" ", 1)
        share = rf"\textbf{{{share}}}" if report is clear else share
        return Tex(rf"{share} {{\scriptsize {interval}}}")

    return Column({"latex": Shown(BEST, caption)}, value)


def _standing_column(measured: Iterable[str], clear: Measurements | None) -> Column[Measurements]:
    """Best-attack accuracy as a terminal shows it: of a run that is not finished it is no more than
    a bound, and the highest is marked where it is so beyond chance."""
    caption = (
        f"best-attack: classified correctly, and broken by none of {_names(measured)}."
        if measured
        else "best-attack: no attack counts yet."
    )
    if clear is not None:
        caption += " *: the highest, beyond chance (McNemar's exact test against each other row)."

    def value(report: Measurements) -> _Standing | str | None:
        best = _best(report)
        if not isinstance(best, Accuracy):
            return best
        return _Standing(best, bool(report.unfinished), report is clear)

    return Column({"terminal": Shown(f"{BEST} [95%]", caption)}, value)


@dataclass(frozen=True)
class _Standing:
    """A best-attack accuracy, whether it may still fall, and whether it is marked as highest."""

    best: Accuracy
    may_fall: bool
    is_clear: bool

    def __str__(self) -> str:
        if self.may_fall:
            return f"at most {percent(self.best.value)}"
        return f"{'* ' if self.is_clear else ''}{self.best}"


# What a run in progress has still to do on a defense.
_UNFINISHED = Column[Measurements](
    {"terminal": Shown("not finished", optional=True)},
    lambda report: report.unfinished or None,
    text="; ".join,
    left=True,
)


def _clearly_best(reports: Sequence[Measurements]) -> Measurements | None:
    """The report whose best-attack accuracy is the highest beyond chance. None where none is, and
    where that means nothing: the best one has a flag, any is not finished or of a randomised model,
    whose samples count by shares of draws, or in some rows rejecting an image is not wrong."""
    verdicts = [report.robust_to(BEST) for report in reports]
    known = [verdict for verdict in verdicts if verdict is not None]
    if len(known) < len(reports) or any(report.unfinished or report.draws for report in reports):
        return None
    if len({report.allowed for report in reports}) > 1:
        return None
    place = clearly_highest(known, CHANCE)
    return None if place is None or explain(reports[place]) else reports[place]


def terminal_columns(reports: Sequence[Measurements]) -> list[Column[Measurements]]:
    """The columns of a run's table on a terminal, without those that no report has a value in."""
    measured = dict.fromkeys(label for report in reports for label in report.measured)
    columns = report_columns(
        reports[0].threat.norm, (), measured, proven_by(reports), _clearly_best(reports)
    )
    return _with_values("terminal", columns, reports)


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
        proven_by(reports), _clearly_best(reports) if table == "latex" else None,
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

    labels = (CERTIFIED, SEARCH) if label == CERTIFIED else (label,)

    def value(report: Measurements) -> Accuracy | str | None:
        failed = any(name in report.errors for name in labels)
        return report.accuracy(label) or ("error" if failed else None)

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
        done = work(self.report.frames[self.label])
        # The search for proofs counts its time alone.
        return done | dict.fromkeys(("forwards", "backwards")) if self.label == SEARCH else done

    @property
    def interval(self) -> tuple[float, float] | tuple[None, None]:
        return self.accuracy.interval if self.accuracy else (None, None)

    @property
    def seconds(self) -> float | None:
        if self.label == CERTIFIED:
            # Bounds that broke nothing have no line of their own.
            silent = SEARCH in self.report.keys and SEARCH not in self.report.measured
            parts = (CERTIFIED, *([SEARCH] if silent else []))
            return sum(self.report.seconds.get(label, 0.0) for label in parts)
        return self.report.seconds[self.label] if self.work else None


def lines(reports: Sequence[Measurements]) -> list[Line]:
    """The rows of the details: natural, each attack and the search for proofs, certified where
    something proves that, and best-attack, of each report."""
    return [
        Line(report, label)
        for report in reports
        for label in (
            NATURAL,
            *report.attacks,
            *([SEARCH] if SEARCH in report.measured else []),
            *([CERTIFIED] if {CERTIFIED, SEARCH} & report.keys.keys() else []),
            BEST,
        )
    ]


def detail_columns() -> list[Column[Line]]:
    """The columns of tables with a row per defense and attack, in order."""
    left_out = _done("unbroken, left out of distance", 0, "left out")
    return [
        Column(
            dict.fromkeys(("details", "numbers", "card"), Shown("defense")),
            lambda line: line.report.name,
            left=True,
        ),
        Column(
            {
                **dict.fromkeys(("details", "numbers"), Shown("attack")),
                "card": Shown("accuracy"),
            },
            lambda line: line.label,
            left=True,
        ),
        Column({"details": Shown("robust % [95% interval]")}, lambda line: line.accuracy),
        Column({"card": Shown("% [95% interval]")}, _accuracy_or_reason),
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


def _accuracy_or_reason(line: Line) -> Accuracy | str | None:
    """The accuracy under a label, or why there is none."""
    if line.accuracy is None and line.label in line.report.inapplicable:
        return "does not apply"
    return line.accuracy or ("error" if line.label in line.report.errors else None)


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
