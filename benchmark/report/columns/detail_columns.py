"""The columns of what each attack did, with a row per defense and attack."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from benchmark.columns import Column, Shown, decimals
from benchmark.report.accuracy import Accuracy, plain_share, work
from benchmark.report.measurements import Measurements
from benchmark.spec.components import BEST, CERTIFIED, NATURAL, SEARCH


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
        _number("accuracy", lambda line: plain_share(line.accuracy)),
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
        _number("error", lambda line: line.report.why_failed(line.label)),
        _number("does not apply", lambda line: line.report.why_inapplicable(line.label)),
    ]


def _accuracy_or_reason(line: Line) -> Accuracy | str | None:
    """The accuracy under a label, or why there is none."""
    if line.accuracy is None and line.report.why_inapplicable(line.label):
        return "does not apply"
    return line.accuracy or ("error" if line.report.why_failed(line.label) else None)


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
