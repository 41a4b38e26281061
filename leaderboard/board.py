"""The board as a whole: built from its rows, merged with submissions, and verified."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmark.errors import UserError
from benchmark.records import write_text
from leaderboard.pictures import draw
from leaderboard.record import SCHEMA, schema
from leaderboard.render import README, SITE, render_readme, render_site
from leaderboard.rows import Row, open_row, replay_row, row_folders
from leaderboard.table import Table, make_table
from leaderboard.tasks import ROWS, Task

Say = Callable[[str], None]


def check(folder: Path, tasks: dict[str, Task], run_code: bool) -> Row:
    """Replay a submission. Raises UserError, in one line, where something does not hold."""
    row = open_row(folder, tasks)
    replay_row(row, run_code)
    return row


def merge(
    board: Path, folders: Sequence[Path], tasks: dict[str, Task], run_code: bool, say: Say
) -> list[str]:
    """Copy the submissions that hold into a board; a line for each that does not."""
    refused = []
    for folder in folders:
        try:
            row = check(folder, tasks, run_code)
            home = board / ROWS / row.task.name / folder.name
            _check_free(board, row, home)
        except UserError as error:
            refused.append(str(error))
            continue
        if home.resolve() != folder.resolve():
            # Without what else lies in the folder.
            names = [path.name for path in folder.iterdir() if path.is_file()]
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            for name in names:
                shutil.copy(folder / name, home / name)
        say(f"{row.task.name} {row.record.row}: merged")
    return refused


def _check_free(board: Path, row: Row, home: Path) -> None:
    for other in row_folders(board, row.task):
        if other.resolve() != home.resolve():
            named = open_row(other, {row.task.name: row.task}).record.row
            if named == row.record.row:
                raise UserError(f"{row.folder}: task {row.task.name} has a row {named} already")


def build(board: Path, tasks: dict[str, Task]) -> None:
    """Write tables, page, pictures and schema from the rows as they are. Raises UserError where a
    row cannot be opened."""
    tables = []
    for task in tasks.values():
        rows = [open_row(folder, tasks) for folder in row_folders(board, task)]
        tables.append(make_table(task, rows))
        draw(task, rows, (board / SITE).parent / "pictures")
    write_text(board / README, render_readme(tables))
    write_text(board / SITE, render_site(tables))
    write_text(board / SCHEMA, schema())


def verify(
    board: Path, tasks: dict[str, Task], chosen: Sequence[str], run_code: bool, say: Say
) -> list[str]:
    """Replay the rows of the chosen tasks, or of all, from weights and evidence, and make their
    tables anew: a line for all that does not hold."""
    problems: list[str] = []
    tables: list[Table] = []
    for task in tasks.values():
        rows: list[Row] = []
        for folder in row_folders(board, task):
            try:
                row = open_row(folder, tasks)
                if not chosen or task.name in chosen:
                    report = replay_row(row, run_code)
                    row = Row(row.folder, row.task, row.record, report)
                    say(f"{task.name} {row.record.row}: {row.record.numbers.best_attack:.1%} holds")
                rows.append(row)
            except UserError as error:
                problems.append(str(error))
        tables.append(make_table(task, rows))
    for name, text in ((README, render_readme(tables)), (SITE, render_site(tables))):
        path = board / name
        if not path.is_file() or path.read_text() != text:
            problems.append(f"{path} is not what weights and evidence give: {_first(path, text)}")
    return problems


def _first(path: Path, text: str) -> str:
    """The first line in which a file differs from a text."""
    lines = path.read_text().splitlines() if path.is_file() else []
    wanted = text.splitlines()
    for number, (one, other) in enumerate(zip(lines, wanted, strict=False), 1):
        if one != other:
            at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
            begin = max(0, at - 20)
            return f"line {number} has {one[begin : at + 20]!r} for {other[begin : at + 20]!r}"
    return f"it has {len(lines)} lines for {len(wanted)}"
