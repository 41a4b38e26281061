"""The page of a run under several threats: a table over all, and the way to the page of each."""

from collections.abc import Sequence
from pathlib import Path

from benchmark.judge.records import write_text
from benchmark.pages.rendering import rendered
from benchmark.report.captions import threat_name
from benchmark.report.tables import PAGE
from benchmark.spec.run_spec import RunSpec
from benchmark.threats.combined import Combined, caption, columns_over


def write_page(
    folder: Path, rows: Sequence[Combined], spec: RunSpec, places: Sequence[str]
) -> None:
    """Write the page over all threats of a run, whose pages lie in `places`, seen from the folder.

    Raises UserError where that cannot be.
    """
    pages = {
        threat_name(view.threat): f"{place}/{PAGE}"
        for view, place in zip(spec.views, places, strict=True)
    }
    columns = columns_over(rows)
    text = rendered(
        "threats.html.j2",
        title=f"{spec.data}, several threats",
        caption=caption(rows, spec),
        pages={name: page for name, page in pages.items() if (folder / page).exists()},
        headings=[column.heading("run") for column in columns],
        rows=[[column.cell(row) for column in columns] for row in rows],
    )
    write_text(folder / PAGE, text)
