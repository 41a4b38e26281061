"""A page for each row of the board: its attacks, pictures and examples."""

import shutil
from pathlib import Path

from benchmark.judge.records import write_text
from benchmark.pages.rendering import PLOTLY
from benchmark.pages.run_page import Shown, render_page
from leaderboard.submission.record import CARD_TEXT, EVIDENCE, RECORD, SPEC
from leaderboard.submission.submission import Row
from leaderboard.submission.submitted_model import read_card
from leaderboard.tasks import ROWS, Task

# How many adversarial examples a row's page shows.
_EXAMPLES = 12

_FILES = {"how it was trained": CARD_TEXT, "spec": SPEC, "record": RECORD, "examples": EVIDENCE}


def write_row_page(site: Path, task: Task, row: Row) -> None:
    """Write the page of a row into the folder of the board's page. The pages share one copy of the
    library of pictures there. Raises UserError where they cannot be written."""
    page = site / ROWS / task.name / f"{row.folder.name}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    up, files = "../../", f"../../../{ROWS}/{task.name}/{row.folder.name}"
    card = read_card(row.folder)
    shown = Shown(
        row.spec,
        {"environment": {**card.get("versions", {}), "parameters": card.get("parameters")}},
        task.samples,
        task.dataset.labels,
        title=f"{row.record.row}, {task.title}",
        about=row.record.about,
        links={
            "The leaderboard": f"{up}index.html#{task.name}",
            **{name: f"{files}/{file}" for name, file in _FILES.items()},
        },
        library=f"{up}{PLOTLY.name}",
        examples=_EXAMPLES,
    )
    write_text(page, render_page([row.report], shown))


def write_library(site: Path) -> None:
    """Copy the library of interactive pictures beside the board's page."""
    site.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PLOTLY, site / PLOTLY.name)
