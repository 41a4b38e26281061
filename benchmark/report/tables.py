"""How reports are printed and written: terminal, Markdown, CSV and JSON."""

import html
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.columns import escaped, frame_csv, percent, rows_html, rows_markdown, shown_in
from benchmark.judge.records import write_json, write_text
from benchmark.latex import escaped as escaped_in_latex
from benchmark.latex import floating, tabular
from benchmark.report.captions import caption, exported_caption, short_caption
from benchmark.report.columns.best_columns import on_highest
from benchmark.report.columns.detail_columns import detail_columns, lines
from benchmark.report.columns.report_columns import (
    report_columns,
    run_columns,
)
from benchmark.report.flags import FLAGS, explain
from benchmark.report.measurements import Measurements, on_inapplicable
from benchmark.report.pictures.curves import draw
from benchmark.spec.components import BEST, NATURAL, SEARCH
from benchmark.spec.run_spec import RunSpec
from benchmark.spec.source_names import without_places
from benchmark.terminal import Page, Words, grid_of

JSON, PAGE = "table.json", "report.html"
_STUDIES = ("lipschitz", "budgets", "transfer", "coherence", "confidence", "bracket")
# What a run's folder holds of the run as it is: another run in the same folder removes it first.
FILES = (
    *("table.md", "table.csv", JSON, PAGE, "curves.png"),
    *(f"{study}.{ending}" for study in _STUDIES for ending in ("md", "csv", "png")),
)

# How many samples a line on contradictions names.
_NAMED = 10


def wide(reports: Sequence[Measurements]) -> pd.DataFrame:
    """The run's table, as it is printed: one row per defense, and a column for natural accuracy,
    each attack, certified where some defense offers a certificate, best-attack with its interval,
    and flags. Accuracies are in %."""
    columns = run_columns(reports)
    return pd.DataFrame(
        [{column.heading("run"): column.cell(report) for column in columns} for report in reports]
    )


def details(reports: Sequence[Measurements]) -> pd.DataFrame:
    """One row per defense and attack, as numbers: see `Report.to_frame`."""
    columns = shown_in("numbers", detail_columns())
    rows = [
        {
            column.heading("numbers"): value
            for column in columns
            if (value := column.value(line)) is not None
        }
        for line in lines(reports)
    ]
    return pd.DataFrame(rows)


def render(reports: Sequence[Measurements], spec: RunSpec | None) -> str:
    """The tables of some reports as Markdown, with caption, details, notes, errors and flags."""
    # Attacks that do not apply have no work.
    attacks = [
        line
        for line in lines(reports)
        if line.label in (*line.report.attacks, SEARCH) and line.work
    ]
    sections = [
        rows_markdown("run", run_columns(reports), reports),
        escaped(caption(reports, spec)),
        "Work per attacked sample (mean passes; one forward can have several backwards), and "
        "distances over the samples that were broken (those left out were not):",
        rows_markdown("details", shown_in("details", detail_columns()), attacks),
    ]
    if told := [*remarks(reports), *flag_lines(reports)]:
        sections.append("\n".join(f"- {escaped(line)}" for line in told))
    return "\n\n".join(sections) + "\n"


def page(reports: Sequence[Measurements], spec: RunSpec | None) -> Page:
    """The table of some reports for a terminal, with what has to be known of it. Attacks and their
    work are folded, and each flag stands in words once."""
    sections: Page = [
        grid_of(run_columns(reports, "terminal"), reports),
        [Words(short_caption(reports, spec))],
        [Words(line) for line in (on_highest(reports),) if line],
        [replace(words, list=True) for words in _remarks(reports)],
        _raised(reports),
    ]
    return [section for section in sections if section]


def notebook(reports: Sequence[Measurements], spec: RunSpec | None) -> str:
    """The table of some reports as HTML for a notebook, with its caption and the lines below it:
    what `page` has."""
    columns = run_columns(reports, "terminal")
    told = [*remarks(reports), *map(str, _raised(reports))]
    lines_below = "".join(f"<li>{html.escape(line)}</li>" for line in told)
    return (
        rows_html("terminal", columns, reports)
        + f"<p>{html.escape(short_caption(reports, spec))} {html.escape(on_highest(reports))}</p>"
        + (f"<ul>{lines_below}</ul>" if told else "")
    )


def latex(reports: Sequence[Measurements], spec: RunSpec | None, with_attacks: bool = True) -> str:
    """The run's table in LaTeX, as a float with its caption and the lines below it. It needs the
    package booktabs. Single attacks have columns if `with_attacks`."""
    columns = run_columns(reports, "latex", with_attacks)
    first = reports[0]
    of = f"{without_places(spec.data)}-{spec.place}" if spec else first.name
    label = "tab:" + re.sub(r"[^A-Za-z0-9.-]+", "-", of)
    text = escaped_in_latex(exported_caption(reports, spec, columns))
    told = [*remarks(reports), *flag_lines(reports)]
    return floating(tabular("latex", columns, reports), text, label, told)


def flag_lines(reports: Sequence[Measurements]) -> list[str]:
    """A line for each flag of each report, which says what it means and what to do."""
    return [
        f"{report.called}: {code}: {meaning}"
        for report in reports
        for code, meaning in explain(report).items()
    ]


def remarks(reports: Sequence[Measurements]) -> list[str]:
    """The lines below tables, but for flags: notes, what does not apply, errors, contradictions,
    what bounds proved, and attacks that were left out."""
    return [str(words) for words in _remarks(reports)]


def _raised(reports: Sequence[Measurements]) -> list[Words]:
    """The flags of some reports: each with the rows that have it, and with its remedy."""
    rows: dict[str, list[str]] = {}
    for report in reports:
        for code in explain(report):
            rows.setdefault(code, []).append(report.name)
    told = []
    for code, names in rows.items():
        about = "a flag of another version"
        if code in FLAGS:
            remedy = FLAGS[code].remedy
            about = f"{FLAGS[code].meaning}. {remedy[0].upper()}{remedy[1:]}."
        told.append(Words(about, f"{code} ({', '.join(names)})", "warning", list=True))
    return told


def _remarks(reports: Sequence[Measurements]) -> list[Words]:
    """What stands below the tables, but for flags: notes, what does not apply, errors,
    contradictions."""
    remarks = [Words(note) for note in dict.fromkeys(note for r in reports for note in r.notes)]
    for report in reports:
        for reason, labels in _by_reason(report.inapplicable).items():
            remarks.append(Words(f"{report.called}: {on_inapplicable(labels, reason)}"))
    names = {SEARCH: "the search for proofs"}
    remarks += [
        Words(message, f"{report.called}: {names.get(label, label)} failed", "wrong")
        for report in reports
        for label, message in report.errors.items()
    ]
    remarks += _contradicted(reports)
    return remarks + [Words(line) for line in (*_proven(reports), *_left_out(reports))]


def contradictions(reports: Sequence[Measurements]) -> list[str]:
    """A line for each report of which a certificate is contradicted: by how many samples, which."""
    return [str(words) for words in _contradicted(reports)]


def _contradicted(reports: Sequence[Measurements]) -> list[Words]:
    told = []
    for report in reports:
        samples = report.contradictions
        if len(samples):
            named = ", ".join(map(str, samples[:_NAMED]))
            about = (
                f"attacks misclassify {len(samples)} of {report.total} samples "
                f"within the radius certified for them: {named}"
                f"{', ...' if len(samples) > _NAMED else ''}"
            )
            told.append(Words(about, report.called, "wrong"))
    return told


_BY = {
    "crown": "by linear bounds",
    "alpha-crown": "by optimised ones",
    "branching": "by branch and bound",
    "solver": "by the solver, up to its tolerance of 1e-6",
}


def _proven(reports: Sequence[Measurements]) -> list[str]:
    """A line for each report on which bounds proved something, or failed to: what did, and of how
    many images it is not known whether anything breaks them."""
    told = []
    for report in reports:
        robust = report.robust_to(BEST if report.measured else NATURAL)
        certified = report.certified_within(report.threat.eps)
        if report.proved is None or robust is None or certified is None:
            continue
        counts = [f"{report.proven[by]} {how}" for by, how in _BY.items() if by in report.proven]
        left = int((robust & ~certified).sum())
        told.append(
            f"{report.called}: certified by {report.proofs}: {', '.join(counts) or 'none'}; "
            f"{left} of {report.total} {'is' if left == 1 else 'are'} neither certified nor broken"
            + (f", and the search alone broke {report.searched}" if report.searched else "")
        )
    return told


def _left_out(reports: Sequence[Measurements]) -> list[str]:
    """A line for each report whose folder holds attacks that broke more than its own."""
    told = []
    for report in reports:
        if report.left_out:
            leaves = report.left_out.attacks.items()
            it = "it" if len(leaves) == 1 else "them"
            named = [f"{name} (leaves {percent(share)}%)" for name, share in leaves]
            told.append(
                f"{report.called}: left out, though the folder holds {it}: {', '.join(named)}; "
                f"with {it} {BEST} would be {percent(report.left_out.best_attack)}%"
            )
    return told


def _by_reason(inapplicable: dict[str, str]) -> dict[str, list[str]]:
    """The labels of attacks that do not apply, by the reason why."""
    reasons: dict[str, list[str]] = {}
    for label, reason in inapplicable.items():
        reasons.setdefault(reason, []).append(label)
    return reasons


def plain(reports: Sequence[Measurements]) -> list[dict[str, Any]]:
    """The rows of table.json."""
    return [
        {
            column.heading("json"): column.data(column.value(report))
            for column in shown_in("json", report_columns(report.threat.norm, ()))
        }
        for report in reports
    ]


def texts(reports: Sequence[Measurements], spec: RunSpec) -> dict[str, str]:
    """What the files of a run's table hold, by their names, but for table.json."""
    return {"table.md": render(reports, spec), "table.csv": frame_csv(details(reports))}


def write(
    folder: Path, reports: Sequence[Measurements], spec: RunSpec, extra: dict[str, Any]
) -> None:
    """Write table.md, table.csv, table.json and, with minimal distances or certificates,
    curves.png. Raises UserError where the folder cannot be written."""
    for name, text in texts(reports, spec).items():
        write_text(folder / name, text)
    table = {
        "caption": caption(reports, spec),
        "rows": plain(reports),
        "details": json.loads(details(reports).to_json(orient="records")),
    }
    write_json(folder / JSON, table | extra)
    draw(folder / "curves.png", reports, spec.data)
