"""One defense trained with several seeds: its reports, and the table of how much they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmark.columns import Column, Shown, Table, captions, escaped, rows_markdown, shown_in
from benchmark.report import tables
from benchmark.report.captions import (
    images,
    is_drawn,
    on_models,
    on_order,
    on_settings,
    threat_name,
)
from benchmark.report.columns.report_columns import run_columns
from benchmark.report.flags import explain
from benchmark.report.measurements import Measurements
from benchmark.seeds.spread import Spread, on_spread, seeds_named
from benchmark.spec.components import BEST, CERTIFIED, NATURAL, SEARCH
from benchmark.spec.run_spec import RunSpec
from benchmark.terminal import Page, Words, grid_of

# What table.json has of the report with each seed.
_OF_EACH = ("natural", "per_attack", "certified", "best_attack", "interval")


@dataclass(frozen=True, eq=False)
class OverSeeds:
    """What was measured on the models of one defense, each trained and attacked with another seed.

    name       what the reports call the defense.
    with_seed  the report with each seed; None where nothing was measured.
    """

    name: str
    with_seed: Mapping[int, Measurements | None]

    @property
    def reports(self) -> list[Measurements]:
        """The reports that there are."""
        return [report for report in self.with_seed.values() if report is not None]

    def spread(self, label: str) -> Spread | None:
        """Natural accuracy, certified, that under an attack, or best-attack, of each seed. None
        unless each seed has it, best-attack over the same attacks and certified by the same means,
        all of them finished."""
        values = [
            accuracy.value
            for report in self.reports
            if (accuracy := report.accuracy(label)) is not None
        ]
        alike = {BEST: self._are_alike, CERTIFIED: self._are_certified_alike}
        if len(values) < len(self.with_seed) or not alike.get(label, True):
            return None
        return Spread(tuple(values))

    @property
    def _are_alike(self) -> bool:
        """Whether best-attack is over the same attacks with each seed, and none is to come."""
        attacks = {tuple(report.measured) for report in self.reports}
        return len(attacks) == 1 and not any(report.unfinished for report in self.reports)

    @property
    def _are_certified_alike(self) -> bool:
        """Whether the same certifies with each seed, and none of that failed or is to come."""
        means = {(report.radii is None, report.proved is None) for report in self.reports}
        to_come = (
            {CERTIFIED, SEARCH} & {*report.begun, *report.awaited} for report in self.reports
        )
        failed = (report.why_failed(CERTIFIED) for report in self.reports)
        return len(means) == 1 and not any(to_come) and not any(failed)

    def has_failed(self, label: str) -> bool:
        """Whether an attack, what certifies, or any attack of best-attack failed with a seed."""
        return any(
            report.why_failed(label) or (label == BEST and report.failed) for report in self.reports
        )

    @property
    def unfinished(self) -> list[str]:
        """What is under way, or not begun, with each seed."""
        return [
            f"{seeds_named([seed])}: {left}"
            for seed, report in self.with_seed.items()
            for left in (report.unfinished if report else ["not begun"])
        ]

    @property
    def attacks(self) -> list[str]:
        """All attacks, those that failed or do not apply among them."""
        return list(dict.fromkeys(label for report in self.reports for label in report.attacks))

    @property
    def is_one_model(self) -> bool:
        """Whether it is the same model with each seed, as those are that a run does not train."""
        first, *others = [report.identity.get("defense") for report in self.reports]
        return bool(others) and first is not None and all(model == first for model in others)

    @property
    def flags(self) -> dict[str, list[int]]:
        """The seeds with which each flag is raised; `flags` of their reports explain it."""
        raised: dict[str, list[int]] = {}
        for seed, report in self.with_seed.items():
            for code in explain(report) if report else ():
                raised.setdefault(code, []).append(seed)
        return raised


def by_defense(reports: Sequence[Measurements], spec: RunSpec) -> list[OverSeeds]:
    """The reports of a run with several seeds, finished or not, for each defense. What a report is
    `under` is the name of its seed."""
    measured = {(report.name, report.under): report for report in reports}
    return [
        OverSeeds(name, {seed: measured.get((name, seeds_named([seed]))) for seed in spec.seeds})
        for name in dict.fromkeys(report.name for report in reports)
    ]


def table(rows: Sequence[OverSeeds], spec: RunSpec) -> str:
    """A table with a row for each defense, as Markdown, with its caption and the lines below the
    tables of its seeds."""
    columns = shown_in("seeds", columns_over(rows))
    sections = [rows_markdown("seeds", columns, rows), escaped(caption(rows, spec))]
    if told := _told(rows):
        sections.append("\n".join(f"- {escaped(line)}" for line in told))
    return "\n\n".join(sections) + "\n"


def page_over_all(rows: Sequence[OverSeeds], spec: RunSpec) -> Page:
    """The same for a terminal, without columns of single attacks."""
    columns = [
        column
        for column in shown_in("terminal", columns_over(rows))
        if not column.shown["terminal"].optional or any(map(column.value, rows))
    ]
    sections: Page = [
        grid_of(columns, rows),
        [Words(caption(rows, spec, "terminal"))],
        [Words(line, list=True) for line in _told(rows)],
    ]
    return [section for section in sections if section]


def _told(rows: Sequence[OverSeeds]) -> list[str]:
    """The lines below the tables of the seeds, each with the seeds that it is told of."""
    lines: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        for seed, report in row.with_seed.items():
            flags = explain(report).items() if report else ()
            lines_of = tables.remarks([report]) if report else []
            for line in [*lines_of, *(f"{code}: {meaning}" for code, meaning in flags)]:
                known = line.removeprefix(f"{report.called}: ") if report else line
                is_note = report is not None and line in report.notes
                lines.setdefault(("" if is_note else row.name, known), []).append(seed)
    return [
        f"{name} ({seeds_named(seeds)}): {line}" if name else line
        for (name, line), seeds in lines.items()
    ]


def caption(rows: Sequence[OverSeeds], spec: RunSpec, table: Table = "seeds") -> str:
    """What the numbers of the table are over, and what ± is; on a terminal, attacks have no
    columns."""
    with_attacks = table == "seeds"
    reports = [report for row in rows for report in row.reports]
    first = reports[0]
    drawn = any(map(is_drawn, reports))
    one_model = [row.name for row in rows if row.is_one_model]
    return (
        f"Accuracy in % over {images(first, spec)}, {threat_name(first.threat)}: "
        f"{on_spread(spec.seeds)} The table of each seed has the 95% intervals. "
        + ("With each seed other images are chosen, which is in ± too. " if drawn else "")
        + (
            f"{', '.join(one_model)}: the same model with each seed, so that only its attacks "
            "differ. "
            if one_model
            else ""
        )
        + on_settings(spec, None if drawn else first)
        + on_models([row.reports[0] for row in rows])
        + "A sample counts as robust if it is classified correctly and "
        + ("the attack of the column does not break it; " if with_attacks else "not broken; ")
        + " ".join(captions("seeds", run_columns(reports, "seeds", with_attacks)))
        + (on_order(reports, "column") if with_attacks else "")
    )


def columns_over(rows: Sequence[OverSeeds]) -> list[Column[OverSeeds]]:
    """The columns of the table, in order: those of a run's table, over all seeds."""
    reports = [report for row in rows for report in row.reports]
    attacks = {label for row in rows for label in row.attacks}
    labels = [column.heading("seeds") for column in run_columns(reports, "seeds")]
    both: tuple[Table, ...] = ("seeds", "terminal")
    return [
        Column(dict.fromkeys(both, Shown("defense")), lambda row: row.name, left=True),
        *(_over(label, both[:1] if label in attacks else both) for label in labels),
        Column(
            {"terminal": Shown("not finished", optional=True)},
            lambda row: row.unfinished or None,
            text="; ".join,
            left=True,
        ),
        Column(
            {"seeds": Shown("flags"), "terminal": Shown("flags", optional=True, warns=True)},
            lambda row: row.flags or None,
            lambda flags: ", ".join(f"{code} ({seeds_named(at)})" for code, at in flags.items()),
            left=True,
        ),
    ]


def _over(label: str, tables_of: Sequence[Table]) -> Column[OverSeeds]:
    """The column of a label, which holds how much its accuracy differs."""

    def value(row: OverSeeds) -> Spread | str | None:
        return row.spread(label) or ("error" if row.has_failed(label) else None)

    return Column(dict.fromkeys(tables_of, Shown(label)), value)


def plain(rows: Sequence[OverSeeds]) -> list[dict[str, Any]]:
    """The rows of table.json, where a number that is not known is None."""
    return [
        {
            "defense": row.name,
            "natural": _plain_spread(row.spread(NATURAL)),
            "per_attack": {label: _plain_spread(row.spread(label)) for label in row.attacks},
            "certified": _plain_spread(row.spread(CERTIFIED)),
            "best_attack": _plain_spread(row.spread(BEST)),
            "flags": row.flags,
            "with_seed": {
                str(seed): _of_each(report) if report else None
                for seed, report in row.with_seed.items()
            },
        }
        for row in rows
    ]


def _of_each(report: Measurements) -> dict[str, Any]:
    (numbers_of,) = tables.plain([report])
    return {key: numbers_of[key] for key in _OF_EACH}


def _plain_spread(spread: Spread | None) -> dict[str, float] | None:
    return {"mean": spread.mean, "sd": spread.sd} if spread else None


def numbers(rows: Sequence[OverSeeds]) -> pd.DataFrame:
    """One row per defense and natural, each attack, certified where some seed has a certificate,
    and best-attack: mean, standard deviation and number of trainings, as numbers."""
    lines: list[dict[str, object]] = []
    for row in rows:
        is_certified = any(CERTIFIED in report.keys or report.proofs for report in row.reports)
        certified = [CERTIFIED] if is_certified else []
        for label in (NATURAL, *row.attacks, *certified, BEST):
            spread = row.spread(label)
            mean, sd = (spread.mean, spread.sd) if spread else (np.nan, np.nan)
            n = len(spread.values) if spread else 0
            line = {"defense": row.name, "attack": label, "mean": mean, "sd": sd, "trainings": n}
            lines.append(line)
    return pd.DataFrame(lines)
