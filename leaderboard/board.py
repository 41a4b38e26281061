"""The board as a whole: built from its rows, merged with submissions, and verified."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmark.errors import UserError
from benchmark.judge.records import write_text
from defenses.training.saved import WEIGHTS
from leaderboard.show.pictures import draw
from leaderboard.show.render import README, SITE, render_readme, render_site
from leaderboard.show.table import Table, make_table
from leaderboard.submission.record import CARD_TEXT, RECORD, SCHEMA, schema, slug
from leaderboard.submission.replay import check_numbers, replay_row
from leaderboard.submission.submission import Row, open_row, row_folders
from leaderboard.submission.submitted_model import weights_of
from leaderboard.tasks import ROWS, Task

Say = Callable[[str], None]


def check(folder: Path, tasks: Mapping[str, Task], run_code: bool) -> Row:
    """Replay a submission. Raises UserError, in one line, where something does not hold."""
    row = open_row(folder, tasks)
    replay_row(row, run_code)
    return row


def merge(
    board: Path, folders: Sequence[Path], tasks: Mapping[str, Task], run_code: bool, say: Say
) -> list[str]:
    """Copy the submissions that hold into a board; a line for each that does not."""
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
    """Copy what a submission lists, whole or not at all. Raises UserError where there is a row of
    that name, or its weights would not be found."""
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
    """Write tables, page, pictures and schema from the rows as they are. Raises UserError where a
    row cannot be opened."""
    tables = []
    for task in tasks.values():
        rows = [_own(folder, task, tasks) for folder in row_folders(board, task)]
        tables.append(make_table(task, rows))
        draw(task, rows, (board / SITE).parent / "pictures")
    for name, text in _texts(tables).items():
        write_text(board / name, text)


def _texts(tables: Sequence[Table]) -> dict[str, str]:
    """The files of the board that are text."""
    return {README: render_readme(tables), SITE: render_site(tables), SCHEMA: schema()}


def _own(folder: Path, task: Task, tasks: Mapping[str, Task]) -> Row:
    """A row of a task, opened. Raises UserError where it is of another, or where its numbers are
    not those of its evidence."""
    row = open_row(folder, tasks)
    if row.task.name != task.name:
        raise UserError(f"{folder} is of task {row.task.name}, not {task.name}")
    check_numbers(row, row.report)
    return row


def verify(
    board: Path, tasks: Mapping[str, Task], chosen: Sequence[str], run_code: bool, say: Say
) -> list[str]:
    """Replay the rows of the chosen tasks, or of all, from weights and evidence, and make their
    tables anew: a line for all that does not hold."""
    problems: list[str] = []
    tables: list[Table] = []
    for task in tasks.values():
        rows: list[Row] = []
        for folder in row_folders(board, task):
            try:
                row = _own(folder, task, tasks)
                if not chosen or task.name in chosen:
                    row = replace(row, report=replay_row(row, run_code))
                    say(f"{task.name} {row.record.row}: {row.record.numbers.best_attack:.1%} holds")
                rows.append(row)
            except UserError as error:
                problems.append(str(error))
        tables.append(make_table(task, rows))
    for name, text in _texts(tables).items():
        path = board / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            problems.append(f"{path} is not what weights and evidence give: {_first(path, text)}")
    return problems


def _first(path: Path, text: str) -> str:
    """The first line in which a file differs from a text."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    wanted = text.splitlines()
    for number, (one, other) in enumerate(zip(lines, wanted, strict=False), 1):
        if one != other:
            at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
            begin = max(0, at - 20)
            return f"line {number} has {one[begin : at + 20]!r} for {other[begin : at + 20]!r}"
    return f"it has {len(lines)} lines for {len(wanted)}"
