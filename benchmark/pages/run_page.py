"""The report of a run as one page of HTML, which needs no other file and makes no request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmark.columns import NONE, Column, captions, percent, shown_in
from benchmark.judge.evaluator import Samples
from benchmark.judge.records import write_text
from benchmark.pages.by_class import ByClass
from benchmark.pages.figures import figures
from benchmark.pages.gallery import MOST, gallery
from benchmark.pages.rendering import rendered
from benchmark.report.breaks.attribution import page_table
from benchmark.report.captions import images, on_models, on_order, on_settings, threat_name
from benchmark.report.columns.detail_columns import detail_columns, lines
from benchmark.report.columns.report_columns import run_columns
from benchmark.report.flags import explain
from benchmark.report.measurements import Measurements
from benchmark.report.pictures.closest_examples import class_names
from benchmark.report.tables import PAGE, remarks
from benchmark.spec.components import CERTIFIED, SEARCH
from benchmark.spec.run_spec import RunSpec

# Of more classes than this, those with the least best-attack accuracy are shown; and so many of
# what was most often taken for what.
_CLASSES, _PAIRS = 12, 12


@dataclass(frozen=True)
class Shown:
    """What a page is about, beside what was measured.

    spec      what was asked for.
    manifest  what run.json holds.
    samples   the images, and `names` of the classes; None where the data set is not at hand.
    title     what the page is called, and `about`, a line below that; else what was asked for.
    links     where a reader may go from there, by text.
    site      of a page of a site: where the shared files are; see `rendering.rendered`.
    examples  how many adversarial examples it shows at most.
    """

    spec: RunSpec
    manifest: dict[str, Any]
    samples: Samples | None = None
    names: Sequence[str] | None = None
    title: str = ""
    about: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    site: str = ""
    examples: int = MOST


def write_page(folder: Path, reports: Sequence[Measurements], shown: Shown) -> None:
    """Write the page into the folder of a run. Raises UserError where that cannot be."""
    write_text(folder / PAGE, render_page(reports, shown))


def render_page(reports: Sequence[Measurements], shown: Shown) -> str:
    """The page on some reports under one threat."""
    spec, first, drawn = shown.spec, reports[0], figures(reports)
    columns = run_columns(reports, "page")
    pictures = (
        gallery(reports, shown.samples, shown.names, shown.examples) if shown.samples else None
    )
    return rendered(
        "run.html.j2",
        title=shown.title or f"{spec.data}, {threat_name(first.threat)}",
        note=shown.about,
        links=shown.links,
        site=shown.site,
        about=f"Accuracy in % over {images(first, spec)}, {threat_name(first.threat)}. "
        + on_settings(spec, first),
        caption=on_models(reports)
        + " ".join(captions("page", columns))
        + on_order(reports, "line"),
        columns=columns,
        rows=[_row(report, columns) for report in reports],
        attack_heading=[column.heading("details") for column in _attack_columns()],
        flags=[
            (report.called, code, told)
            for report in reports
            for code, told in explain(report).items()
        ],
        remarks=remarks(reports),
        figures=drawn,
        has_pictures=bool(drawn),
        worth=page_table(reports),
        classes=_classes(reports, shown.names),
        confusions=[_confusion(report, shown.names) for report in reports if report.measured],
        gallery=pictures,
        why_no_gallery=_why_no_gallery(reports, shown) if pictures is None else "",
        environment=shown.manifest.get("environment", {}),
        spec=yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True), sort_keys=False),
    )  # fmt: skip


def _attack_columns() -> list[Column[Any]]:
    """The columns of the attacks that fold out of a row."""
    return [
        column
        for column in shown_in("details", detail_columns())
        if column.heading("details") != "defense"
    ]


def _row(report: Measurements, columns: Sequence[Column[Measurements]]) -> dict[str, Any]:
    """A row of the table: its cells by heading, its flags, and the lines on its attacks."""
    told = (*report.attacks, SEARCH, CERTIFIED)
    attacks = [line for line in lines([report]) if line.label in told]
    return {
        "name": report.name,
        "cells": {column.heading("page"): column.cell(report) for column in columns},
        "flags": list(explain(report)),
        "attacks": [[column.cell(line) for column in _attack_columns()] for line in attacks],
    }


def _classes(reports: Sequence[Measurements], names: Sequence[str] | None) -> dict[str, Any]:
    """A table of accuracies by class: a row per defense, natural and best-attack."""
    # Where labels are a model's own predictions, each row has its own.
    labels = np.unique(np.concatenate([report.labels for report in reports]))
    split = [ByClass.of(report, labels) for report in reports]
    best = np.stack([each.best for each in split]).sum(0)
    worst = best / np.stack([each.count for each in split]).sum(0)
    kept = np.sort(np.argsort(worst, kind="stable")[:_CLASSES])
    rows = []
    for report, each in zip(reports, split, strict=True):
        cells = [
            {
                "best": percent(best / count) if count and report.measured else NONE,
                "natural": percent(natural / count) if count else NONE,
                "part": f"{100 * best / max(count, 1):.0f}%",
            }
            for best, natural, count in zip(
                each.best[kept], each.natural[kept], each.count[kept], strict=True
            )
        ]
        rows.append((report.name, cells))
    return {
        "names": class_names(names, labels[kept].tolist()),
        "counts": [
            str(counts.pop()) if len(counts) == 1 else NONE
            for counts in ({int(each.count[place]) for each in split} for place in kept)
        ],
        "rows": rows,
        "of": len(labels),
    }


def _confusion(report: Measurements, names: Sequence[str] | None) -> dict[str, Any]:
    """What a defense's broken samples were taken for: as a matrix where classes are few, else the
    most frequent pairs."""
    by_class = ByClass.of(report)
    involved = sorted({*by_class.labels.tolist(), *(other for _, other in by_class.taken)})
    told: dict[str, Any] = {
        "name": report.name,
        "broken": sum(by_class.taken.values()),
        "pairs": [
            (*class_names(names, [label, other]), count)
            for label, other, count in by_class.pairs[:_PAIRS]
        ],
        "matrix": None,
    }
    if len(involved) <= _CLASSES:
        most = max(by_class.taken.values(), default=1)
        told["matrix"] = {
            "names": class_names(names, involved),
            "rows": [
                [
                    (count, f"{100 * count / most:.0f}%")
                    for other in involved
                    for count in [by_class.taken.get((label, other), 0)]
                ]
                for label in involved
            ],
        }
    return told


def _why_no_gallery(reports: Sequence[Measurements], shown: Shown) -> str:
    if not any(report.measured for report in reports):
        return "Nothing was attacked yet."
    if shown.samples is None:
        return (
            "The data set was not at hand when this page was written: `bestattack report FOLDER "
            "--data-root ROOT` writes it with images."
        )
    return (
        "No attack broke anything, the samples are not images, or the data set at hand is not that "
        "of the run."
    )
