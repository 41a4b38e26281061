"""How the tables of a whole run are printed and written, under one threat and with one seed or of
several."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.columns import frame_csv
from benchmark.judge.records import write_json, write_text
from benchmark.report import tables
from benchmark.report.measurements import Measurements
from benchmark.seeds import over_seeds
from benchmark.spec.run_spec import RunSpec
from benchmark.terminal import Grid, Page, Words
from benchmark.threats import combined
from benchmark.whole.parts import SEEDS, THREATS, parts
from benchmark.whole.whole_page import write_page

# The accuracies in the rows of table.json over all parts, which a replay must find again.
COMPARED = {
    THREATS: ("defense", "natural", "best_attack", "mean", "union"),
    SEEDS: ("defense", "natural", "per_attack", "certified", "best_attack", "with_seed"),
}


def render(reports: Sequence[Measurements], spec: RunSpec) -> str:
    """The tables of a run as Markdown: under several threats, that of each, and one over all; with
    several seeds, that over all."""
    if spec.seeds:
        return over_seeds.table(over_seeds.by_defense(reports, spec), spec)
    if not spec.threats:
        return tables.render(reports, spec)
    sections = []
    for part in parts(spec):
        under = [report for report in reports if report.under == part.name]
        text = tables.render(under, part.view) if under else "Nothing is measured yet.\n"
        sections.append(f"## {part.name}\n\n{text}")
    rows = combined.by_model(reports, spec)
    return "\n".join([*sections, f"## All threats\n\n{combined.table(rows, spec)}"])


def page(reports: Sequence[Measurements], spec: RunSpec) -> Page:
    """The tables of a run for a terminal, as `render` has them."""
    if spec.seeds:
        return over_seeds.page_over_all(over_seeds.by_defense(reports, spec), spec)
    if not spec.threats:
        return tables.page(reports, spec)
    sections: list[Grid | Sequence[Words]] = []
    for part in parts(spec):
        under = [report for report in reports if report.under == part.name]
        sections.append([Words("", part.name, "title")])
        sections += (
            tables.page(under, part.view) if under else [[Words("Nothing is measured yet.")]]
        )
    rows = combined.by_model(reports, spec)
    return [*sections, [Words("", "All threats", "title")], *combined.page_over_all(rows, spec)]


def texts(reports: Sequence[Measurements], spec: RunSpec) -> dict[str, str]:
    """What the files of a table over all parts of a run hold, but for table.json."""
    if spec.seeds:
        numbers = over_seeds.numbers(over_seeds.by_defense(reports, spec))
    else:
        numbers = combined.numbers(combined.by_model(reports, spec))
    return {"table.md": render(reports, spec), "table.csv": frame_csv(numbers)}


def plain(reports: Sequence[Measurements], spec: RunSpec) -> list[dict[str, Any]]:
    """The rows of table.json over all parts of a run."""
    if spec.seeds:
        return over_seeds.plain(over_seeds.by_defense(reports, spec))
    return combined.plain(combined.by_model(reports, spec))


def write(
    folder: Path, reports: Sequence[Measurements], spec: RunSpec, extra: dict[str, Any]
) -> None:
    """Write table.md, table.csv, table.json and the page over all parts of a run. Raises UserError
    where the folder cannot be written."""
    for name, text in texts(reports, spec).items():
        write_text(folder / name, text)
    if spec.seeds:
        seeded = over_seeds.by_defense(reports, spec)
        caption = over_seeds.caption(seeded, spec)
        write_page(folder, spec, "seeds", over_seeds.columns_over(seeded), seeded, caption)
    else:
        rows = combined.by_model(reports, spec)
        caption = combined.caption(rows, spec)
        write_page(folder, spec, "run", combined.columns_over(rows), rows, caption)
    write_json(folder / tables.JSON, {"caption": caption, "rows": plain(reports, spec)} | extra)
