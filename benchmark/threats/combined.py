"""One model under several threats: its reports combined, sample by sample, and their table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmark.columns import (
    AsMarkdown,
    Column,
    Shown,
    captions,
    escaped,
    percent,
    rows_markdown,
    shown_in,
)
from benchmark.errors import UserError
from benchmark.report.accuracy import Accuracy, robust_shares
from benchmark.report.captions import images, on_models, on_settings, threat_name
from benchmark.report.flags import explain
from benchmark.report.measurements import Measurements
from benchmark.spec.components import BEST, NATURAL
from benchmark.spec.run_spec import RunSpec
from benchmark.terminal import Page, Words, grid_of

MEAN, UNION = "mean", "union"


@dataclass(frozen=True, eq=False, repr=False)
class Combined(AsMarkdown):
    """What was measured on one model under several threats. Accuracies are over all its samples.

    name   what the reports call the model.
    under  the report under each threat, by what tables call the threat; None where nothing was
           measured.

    >>> import torch
    >>> from benchmark.direct.evaluate import evaluate
    >>> x, y = torch.tensor([[0.6, 0.4], [0.9, 0.1]]).view(2, 1, 1, 2), torch.tensor([0, 0])
    >>> threats = {"l2": 0.1, "linf": 0.2}  # the two pixels are the logits
    >>> reports = [
    ...     evaluate(torch.nn.Flatten(), x, y, norm=norm, eps=eps, attacks=["pgd"])
    ...     for norm, eps in threats.items()
    ... ]
    >>> both = combine(reports)
    >>> both.best_attack, both.mean, both.union
    ({'L2 eps 0.1': 1.0, 'L-infinity eps 0.2': 0.5}, 0.75, 0.5)
    """

    name: str
    under: Mapping[str, Measurements | None]

    @property
    def reports(self) -> list[Measurements]:
        """The reports that there are."""
        return [report for report in self.under.values() if report is not None]

    def accuracy(self, label: str) -> Accuracy | None:
        """Natural, the best-attack accuracy under a threat, or that under the union of all threats;
        None where it was not measured."""
        if label == NATURAL:
            return self.reports[0].accuracy(NATURAL)
        if label == UNION:
            shares = self._union_shares
            return None if shares is None else Accuracy(float(shares.sum()), len(shares))
        report = self.under[label]
        return report.accuracy(BEST) if report else None

    @cached_property
    def _union_shares(self) -> NDArray[np.float64] | None:
        """How much each sample (n,) counts in the union, as `Measurements.shares` has it of the
        attacks under one threat; None unless each threat has a best-attack accuracy."""
        if not all(report and report.measured for report in self.under.values()):
            return None
        frames = [
            report.frames[label] for report in self.reports for label in (NATURAL, *report.measured)
        ]
        return robust_shares(frames, self.reports[0].total)

    @property
    def natural(self) -> float:
        """Natural accuracy: the share of all samples that is classified correctly."""
        return _value(self.accuracy(NATURAL))

    @property
    def best_attack(self) -> dict[str, float]:
        """The best-attack accuracy under each threat; NaN where no attack ran."""
        return {threat: _value(self.accuracy(threat)) for threat in self.under}

    @property
    def mean(self) -> float:
        """The mean of the best-attack accuracies; NaN unless each threat has one."""
        return sum(self.best_attack.values()) / len(self.under)

    @property
    def union(self) -> float:
        """The share classified correctly and broken by no attack under any of the threats; NaN
        unless each threat has a best-attack accuracy."""
        return _value(self.accuracy(UNION))

    @property
    def flags(self) -> dict[str, list[str]]:
        """The threats under which each flag is raised; `flags` of their reports explain it."""
        raised: dict[str, list[str]] = {}
        for threat, report in self.under.items():
            for code in explain(report) if report else ():
                raised.setdefault(code, []).append(threat)
        return raised

    def to_frame(self) -> pd.DataFrame:
        """One row for natural, each threat, mean and union: accuracies with their intervals."""
        return numbers([self])

    def to_markdown(self) -> str:
        """The accuracies as a Markdown table with its caption."""
        return table([self], None)


def combine(reports: Sequence[Measurements]) -> Combined:
    """Combine reports on one model and the same samples, each under another threat.

    The best-attack accuracy under the *union* of the threats counts a sample only if it is robust
    under every one of them. Each report comes from `evaluate`, with the same `x`, `y` and `index`.

    Raises UserError for fewer than two reports, and for reports that are under one threat, of other
    samples, or of another model, which is told by its name and by what it misclassifies clean.
    """
    reports = list(reports) if isinstance(reports, Iterable) else []
    if len(reports) < 2 or not all(isinstance(report, Measurements) for report in reports):
        raise UserError("give a list of two reports or more, as evaluate returns them")
    under: dict[str, Measurements | None] = {}
    for report in reports:
        threat = threat_name(report.threat)
        if threat in under:
            raise UserError(f"two reports are under {threat}: combine one under each threat")
        under[threat] = report
        if not _same(report, reports[0], "label"):
            raise UserError(
                "the reports are of different samples: evaluate the same x, y and index under each "
                "threat"
            )
        if report.name != reports[0].name or not (
            report.draws or _same(report, reports[0], "broken")
        ):
            raise UserError("the reports are of different models: combine those of one model")
    return Combined(reports[0].name, under)


def _same(one: Measurements, other: Measurements, column: str) -> bool:
    """Whether two reports are on the same data, and have the same in a column of their clean
    records."""
    clean, others = (report.frames[NATURAL][column].to_numpy() for report in (one, other))
    same_data = one.identity.get("data") == other.identity.get("data")
    return same_data and np.array_equal(clean, others)


def by_model(reports: Sequence[Measurements], spec: RunSpec) -> list[Combined]:
    """The reports of a run, finished or not, combined for each defense."""
    names = [threat_name(view.threat) for view in spec.views]
    measured = {(report.name, report.under): report for report in reports}
    return [
        Combined(name, {threat: measured.get((name, threat)) for threat in names})
        for name in dict.fromkeys(report.name for report in reports)
    ]


def table(rows: Sequence[Combined], spec: RunSpec | None) -> str:
    """A table with a row for each model, as Markdown, with its caption."""
    columns = shown_in("run", columns_over(rows))
    return f"{rows_markdown('run', columns, rows)}\n\n{escaped(caption(rows, spec))}\n"


def caption(rows: Sequence[Combined], spec: RunSpec | None) -> str:
    """What the numbers of the table are over."""
    reports = [report for row in rows for report in row.reports]
    text = f"Accuracy in % over {images(reports[0], spec)}, under several threats. "
    if spec:
        text += on_settings(spec, reports[0]) + (
            f"Each defense was trained once, against {threat_name(spec.training_threat)} where it "
            "trains against a threat and names none. "
        )
    return (
        text
        + on_models([row.reports[0] for row in rows])
        + " ".join(captions("run", columns_over(rows)))
    )


def page_over_all(rows: Sequence[Combined], spec: RunSpec | None) -> Page:
    """A table with a row for each model, for a terminal, with what its numbers are over."""
    columns = shown_in("terminal", columns_over(rows))
    reports = [report for row in rows for report in row.reports]
    over = f"Accuracy in % over {images(reports[0], spec)}. "
    about = " ".join(captions("terminal", columns))
    return [grid_of(columns, rows), [Words(over + about)]]


def plain(rows: Sequence[Combined]) -> list[dict[str, object]]:
    """The rows of table.json, where a number that is not known is None."""
    return [
        {
            "defense": row.name,
            "natural": _known(row.natural),
            "best_attack": {threat: _known(share) for threat, share in row.best_attack.items()},
            "mean": _known(row.mean),
            "union": _known(row.union),
            "interval": list(accuracy.interval) if (accuracy := row.accuracy(UNION)) else None,
            "flags": row.flags,
        }
        for row in rows
    ]


def numbers(rows: Sequence[Combined]) -> pd.DataFrame:
    """One row per model and natural, each threat, mean and union, as numbers."""
    lines: list[dict[str, object]] = []
    for row in rows:
        for label in (NATURAL, *row.under, MEAN, UNION):
            line: dict[str, object] = {"defense": row.name, "threat": label}
            accuracy = None if label == MEAN else row.accuracy(label)
            low, high = accuracy.interval if accuracy else (np.nan, np.nan)
            line["accuracy"] = row.mean if label == MEAN else _value(accuracy)
            lines.append(line | {"low": low, "high": high})
    return pd.DataFrame(lines)


def columns_over(rows: Sequence[Combined]) -> list[Column[Combined]]:
    """The columns of the table, in order."""
    return [
        Column(
            dict.fromkeys(("run", "terminal"), Shown("defense")), lambda row: row.name, left=True
        ),
        Column(
            dict.fromkeys(("run", "terminal"), Shown(NATURAL)),
            lambda row: row.accuracy(NATURAL),
            _share,
        ),
        *(
            Column({"run": Shown(threat)}, partial(_under, threat=threat), _share)
            for threat in rows[0].under
        ),
        Column(
            {
                "run": Shown(
                    MEAN,
                    "Under a threat, a sample counts as robust if it is classified correctly and "
                    "no attack under that threat breaks it (best-attack); mean: of these.",
                ),
                "terminal": Shown(MEAN, "mean: of best-attack under each threat."),
            },
            lambda row: None if np.isnan(row.mean) else _standing(row, percent(row.mean)),
        ),
        Column(
            {
                "run": Shown(
                    f"{UNION} [95% interval]",
                    "union: if it is robust under every one of the threats (worst case per sample "
                    "over all attacks under all of them).",
                ),
                "terminal": Shown(
                    f"{UNION} [95%]",
                    "union: classified correctly, and broken under none of the threats.",
                ),
            },
            _union,
        ),
        Column(
            {"run": Shown("flags")},
            lambda row: row.flags or None,
            lambda flags: ", ".join(f"{code} ({', '.join(at)})" for code, at in flags.items()),
            left=True,
        ),
    ]


def _under(row: Combined, threat: str) -> Accuracy | str | None:
    """What the column of a threat holds: an accuracy, or that all attacks failed."""
    report, accuracy = row.under[threat], row.accuracy(threat)
    if report and report.unfinished and accuracy:
        return f"at most {_share(accuracy)}"
    return accuracy or ("error" if report and report.failed else None)


def _union(row: Combined) -> str | None:
    accuracy = row.accuracy(UNION)
    return _standing(row, str(accuracy), _share(accuracy)) if accuracy else None


def _standing(row: Combined, told: str, bound: str = "") -> str:
    """What is told of a number over all threats; where attacks are to come, of its `bound`."""
    may_fall = any(report.unfinished for report in row.reports)
    return f"at most {bound or told}" if may_fall else told


def _share(accuracy: Accuracy) -> str:
    return percent(accuracy.value)


def _value(accuracy: Accuracy | None) -> float:
    return accuracy.value if accuracy else float("nan")


def _known(share: float) -> float | None:
    return None if np.isnan(share) else share
