"""The board as a whole: submissions are merged into it, and it is built and verified."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmark.errors import UserError
from benchmark.executors import IN_PROCESS, Executor, abandoned
from benchmark.judge.records import write_text
from benchmark.run.runner import Say
from defenses.training.saved import WEIGHTS
from leaderboard.show.pictures import draw
from leaderboard.show.render import README, SITE, render_readme, render_site
from leaderboard.show.row_page import write_library, write_row_page
from leaderboard.show.table import Table, make_table
from leaderboard.submission.record import CARD_TEXT, RECORD, SCHEMA, schema, slug
from leaderboard.submission.replay import check_numbers, replay_row
from leaderboard.submission.submission import Row, open_row, row_folders
from leaderboard.submission.submitted_model import weights_of
from leaderboard.tasks import ROWS, Task


def check(folder: Path, tasks: Mapping[str, Task], run_code: bool) -> Row:
    """Open and replay a submission. Raises UserError, in one line, where it does not hold."""
    row = open_row(folder, tasks)
    replay_row(row, run_code)
    return row


def merge(
    board: Path, folders: Sequence[Path], tasks: Mapping[str, Task], run_code: bool, say: Say
) -> list[str]:
    """Copy the submissions that hold into a board. Returns a line for each that is refused."""
    refused = []
    for folder in folders:
        try:
            row = check(folder, tasks, run_code)
            _copy(row, board / ROWS / row.task.name / slug(row.record.row))
        except UserError as error:
            refused.append(str(error))
        else:
            say(f"{row.task.name} {row.record.row}: merged")
    return refused


def _copy(row: Row, home: Path) -> None:
    """Copy a submission's files into the board's folder `home`, all or none of them.

    Raises UserError where the board has a row of that name, and where the weights, which may lie
    outside the submission, would not be found from there.
    """
    record, folder = row.record, row.folder
    if home.exists():
        if home.resolve() == folder.resolve():
            return
        raise UserError(
            f"{folder}: task {row.task.name} has a row {home.name} already: label it otherwise"
        )
    names = [*record.files, *([] if record.weights.at else [WEIGHTS]), CARD_TEXT, RECORD]
    partial = home.with_name(f".{home.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name in names:
            shutil.copyfile(folder / name, partial / name)
        if record.weights.at and "://" not in record.weights.at:
            weights_of(partial, record)
        partial.rename(home)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def build(board: Path, tasks: Mapping[str, Task]) -> None:
    """Write the tables, the pages, the pictures and the schema of a board from its rows.

    Raises UserError where a row cannot be opened.
    """
    tables, site = [], (board / SITE).parent
    write_library(site)
    for task in tasks.values():
        rows = [_open_checked(folder, task, tasks) for folder in row_folders(board, task)]
        tables.append(make_table(task, rows))
        draw(task, rows, site / "pictures")
        for row in rows:
            write_row_page(site, task, row)
    for name, text in _texts(tables).items():
        write_text(board / name, text)


def _texts(tables: Sequence[Table]) -> dict[str, str]:
    """The content of each text file of a board that follows from its rows, by path."""
    return {README: render_readme(tables), SITE: render_site(tables), SCHEMA: schema()}


def _open_checked(folder: Path, task: Task, tasks: Mapping[str, Task]) -> Row:
    """Open a row of a task.

    Raises UserError where the row belongs to another task, or where its numbers do not follow from
    its evidence.
    """
    row = open_row(folder, tasks)
    if row.task.name != task.name:
        raise UserError(f"{folder} is of task {row.task.name}, not {task.name}")
    check_numbers(row, row.report)
    return row


def verify(
    board: Path,
    tasks: Mapping[str, Task],
    chosen: Sequence[str],
    run_code: bool,
    say: Say,
    executor: Executor = IN_PROCESS,
) -> list[str]:
    """Replay rows from weights and evidence, and make the tables and the page again from them.

    chosen    the names of the tasks whose rows are replayed; those of all tasks if it is empty. The
              rows of other tasks are taken as recorded.
    run_code  whether to run code that submissions bring.
    say       is called with a line on each row that holds.

    Returns a line for each row and each file that does not hold.
    """
    tables, problems = executor.run(_replayed(board, tasks, chosen, run_code, say, executor))
    for name, text in _texts(tables).items():
        path = board / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            problems.append(
                f"{path} is not what weights and evidence give: {_first_difference(path, text)}"
            )
    return problems


async def _replayed(
    board: Path,
    tasks: Mapping[str, Task],
    chosen: Sequence[str],
    run_code: bool,
    say: Say,
    executor: Executor,
) -> tuple[list[Table], list[str]]:
    """The tables of the rows that hold, and a line for each that does not: see `verify`."""
    problems: list[str] = []
    tables: list[Table] = []
    for task in tasks.values():
        is_replayed = not chosen or task.name in chosen

        async def opened(folder: Path, task: Task = task, again: bool = is_replayed) -> Row:
            row = _open_checked(folder, task, tasks)
            if again:
                row = replace(row, report=await executor.do(replay_row, row, run_code))
                say(f"{task.name} {row.record.row}: {row.record.numbers.best_attack:.1%} holds")
            return row

        rows: list[Row] = []
        begun = [executor.begin(opened(folder)) for folder in row_folders(board, task)]
        with abandoned(begun):
            for work in begun:
                try:
                    rows.append(await work)
                except UserError as error:
                    problems.append(str(error))
        tables.append(make_table(task, rows))
    return tables, problems


def _first_difference(path: Path, text: str) -> str:
    """Where a file first differs from a text: the number of the line, and a piece of both lines."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    expected_lines = text.splitlines()
    for number, (line, expected) in enumerate(zip(lines, expected_lines, strict=False), 1):
        if line != expected:
            pairs = enumerate(zip(line, expected, strict=False))
            place = next((i for i, (actual, wanted) in pairs if actual != wanted), 0)
            piece = slice(max(0, place - 20), place + 20)
            return f"line {number} has {line[piece]!r} for {expected[piece]!r}"
    return f"it has {len(lines)} lines for {len(expected_lines)}"
