"""How the tables of a whole run are printed and written, which has one for each of its threats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.columns import frame_csv
from benchmark.judge.records import write_json, write_text
from benchmark.report import tables
from benchmark.report.captions import threat_name
from benchmark.report.measurements import Measurements
from benchmark.spec.run_spec import RunSpec
from benchmark.terminal import Grid, Page, Words
from benchmark.threats.combined import (
    by_model,
    caption,
    numbers,
    page_over_all,
    plain,
    table,
)
from benchmark.threats.threats_page import write_page

# The files of a run under several threats that are about one of them lie here, by threat.
THREATS = "threats"


def render(reports: Sequence[Measurements], spec: RunSpec) -> str:
    """The tables of a run as Markdown: under several threats, that of each, and one over all."""
    if not spec.threats:
        return tables.render(reports, spec)
    sections = []
    for view in spec.views:
        name = threat_name(view.threat)
        under = [report for report in reports if report.under == name]
        text = tables.render(under, view) if under else "Nothing is measured yet.\n"
        sections.append(f"## {name}\n\n{text}")
    return "\n".join([*sections, f"## All threats\n\n{table(by_model(reports, spec), spec)}"])


def page(reports: Sequence[Measurements], spec: RunSpec) -> Page:
    """The tables of a run for a terminal: under several threats, that of each, and one over all."""
    if not spec.threats:
        return tables.page(reports, spec)
    sections: list[Grid | Sequence[Words]] = []
    for view in spec.views:
        name = threat_name(view.threat)
        under = [report for report in reports if report.under == name]
        sections.append([Words("", name, "title")])
        sections += tables.page(under, view) if under else [[Words("Nothing is measured yet.")]]
    rows = by_model(reports, spec)
    return [*sections, [Words("", "All threats", "title")], *page_over_all(rows, spec)]


def texts(reports: Sequence[Measurements], spec: RunSpec) -> dict[str, str]:
    """What the files of a run's table over several threats hold, but for table.json."""
    rows = by_model(reports, spec)
    return {"table.md": render(reports, spec), "table.csv": frame_csv(numbers(rows))}


def write(
    folder: Path, reports: Sequence[Measurements], spec: RunSpec, extra: dict[str, Any]
) -> None:
    """Write table.md, table.csv, table.json and the page over several threats. Raises UserError
    where the folder cannot be written."""
    rows = by_model(reports, spec)
    for name, text in texts(reports, spec).items():
        write_text(folder / name, text)
    write_json(folder / tables.JSON, {"caption": caption(rows, spec), "rows": plain(rows)} | extra)
    write_page(folder, rows, spec, [f"{THREATS}/{view.place}" for view in spec.views])
