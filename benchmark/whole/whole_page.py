"""The page of a run under several threats or with several seeds: a table over all of them, and the
way to the page of each."""

from collections.abc import Sequence
from pathlib import Path

from benchmark.columns import Column, Row, Table, shown_in
from benchmark.judge.records import write_text
from benchmark.pages.rendering import rendered
from benchmark.report.tables import PAGE
from benchmark.spec.run_spec import RunSpec
from benchmark.whole.parts import kind_of, parts, several


def write_page(
    folder: Path,
    spec: RunSpec,
    table: Table,
    columns: Sequence[Column[Row]],
    rows: Sequence[Row],
    caption: str,
) -> None:
    """Write the page over all parts of a run, with rows of a table whose columns are given.

    Raises UserError where that cannot be.
    """
    kind = kind_of(spec)
    columns = shown_in(table, columns)
    pages = {part.name: f"{part.place}/{PAGE}" for part in parts(spec)}
    text = rendered(
        "whole.html.j2",
        title=f"{spec.data}, {several(kind)}",
        over=f"All {kind}",
        caption=caption,
        pages={name: page for name, page in pages.items() if (folder / page).exists()},
        headings=[column.heading(table) for column in columns],
        rows=[[column.cell(row) for column in columns] for row in rows],
    )
    write_text(folder / PAGE, text)
