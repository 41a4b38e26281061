"""Submissions, opened: what their files say, as far as it can be told without their models."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from attacks.messages import described
from benchmark.data.sets import load_dataset
from benchmark.errors import UserError
from benchmark.report.report import Report
from benchmark.spec.components import CERTIFIED, NATURAL
from benchmark.spec.run_spec import RunSpec, make_spec
from leaderboard.submission.evidence import unpack
from leaderboard.submission.record import (
    EVIDENCE,
    NEEDED,
    RECORD,
    SPEC,
    Measured,
    Record,
    read_record,
)
from leaderboard.submission.submitted_model import digest, read_card
from leaderboard.tasks import ROWS, Task, find_task


@dataclass(frozen=True)
class Row:
    """A submission that was opened: its files are those that its record lists, its record and its
    spec are of the task, and `report` is made from its evidence."""

    folder: Path
    task: Task
    record: Record
    spec: RunSpec
    report: Report


def row_folders(board: Path, task: Task) -> list[Path]:
    """The folders of a task's rows."""
    home = board / ROWS / task.name
    return sorted(path.parent for path in home.glob(f"*/{RECORD}"))


def open_row(folder: Path, tasks: Mapping[str, Task]) -> Row:
    """Open a submission, without its model. Raises UserError, in one line, for what does not hold
    of its schema, its files, its task and its evidence."""
    record = read_record(folder)
    try:
        _check_files(folder, record)
        task = find_task(tasks, record.task)
        _check_settings(folder, record, task)
        spec = _read_spec(folder, record, task)
        report = _report(folder, record, task)
    except UserError:
        raise
    except Exception as error:  # what strangers write fails in more ways than can be listed
        raise unreadable(folder, error) from error
    return Row(folder, task, record, spec, report)


def unreadable(folder: Path, error: Exception) -> UserError:
    """A line for what is not foreseen of a submission's files."""
    return UserError(f"{folder} cannot be read: {described(error)[:200]}")


def _check_files(folder: Path, record: Record) -> None:
    for name in NEEDED:
        if name not in record.files:
            raise UserError(f"{folder / RECORD} lists no {name}")
    for name, expected in record.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise UserError(f"{path} is missing, though {RECORD} lists it")
        if digest(path) != expected:
            raise UserError(f"{path} is not the file that {RECORD} lists: its SHA-256 differs")


def _check_settings(folder: Path, record: Record, task: Task) -> None:
    """Whether a record is of its task's data and threat, and has its attacks."""
    where = f"{folder / RECORD} is not of task {task.name}"
    given, wanted = record.threat, task.spec.threat
    for what, found, asked in (
        ("norm", given.norm, wanted.norm),
        ("eps", given.eps, wanted.eps),
        ("box", [given.lower, given.upper], [wanted.lower, wanted.upper]),
        ("data", record.data.name, task.data["name"]),
        ("images or labels", record.data.sha256, task.data["sha256"]),
        ("number of samples", record.samples, len(task.samples)),
    ):
        if found != asked:
            raise UserError(f"{where}: its {what}: {found}, and the task's: {asked}")
    first, natural = next(iter(record.cells.items()), ("", None))
    if first != NATURAL or natural is None or natural.inapplicable or natural.after:
        raise UserError(f"{folder / RECORD}: its first cell must be that of natural accuracy")
    for label, entry in task.lineup.entries.items():
        if label not in record.cells:
            raise UserError(f"{where}: it lacks the attack {label}")
        if tuple(record.cells[label].after) != entry.after:
            raise UserError(f"{where}: {label} was run on what other attacks left")


def _read_spec(folder: Path, record: Record, task: Task) -> RunSpec:
    """The spec of a submission. Raises UserError where it does not make the row."""
    path = folder / SPEC
    try:
        spec = make_spec(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a spec") from error
    wanted = task.spec
    component = {component.label: component for component in spec.defenses}.get(record.row)
    made_by = read_card(folder)["component"]
    for what, same in (
        ("threat", spec.threat == wanted.threat),
        ("data", load_dataset(spec.data, task.root).name == task.data["name"]),
        ("images", (spec.samples, spec.split) == (wanted.samples, wanted.split)),
        ("labels, mode or precision", _rest(spec) == _rest(wanted)),
        (
            "defense",
            component is not None
            and (component.name, component.options) == (made_by["name"], made_by["options"]),
        ),
    ):
        if not same:
            raise UserError(f"{path} does not make the row: its {what} are others")
    return spec


def _rest(spec: RunSpec) -> tuple[str, ...]:
    return spec.labels, spec.mode, spec.precision


def _report(folder: Path, record: Record, task: Task) -> Report:
    content = (folder / EVIDENCE).read_bytes()
    try:
        return make_report(record.row, task, content, record.cells, record.flags, record.notes)
    except UserError as error:
        raise UserError(f"{folder / EVIDENCE}: {error}") from error


def make_report(
    row: str,
    task: Task,
    content: bytes,
    cells: Mapping[str, Measured],
    flags: Iterable[str],
    notes: Sequence[str],
) -> Report:
    """The report that the content of an evidence file and what a record says of its cells make.
    Raises UserError where they do not fit together."""
    found = unpack(content, list(cells), task.samples, task.spec.threat)
    report = Report(row, task.spec.threat, "table", len(task.samples), flags, notes)
    for label, measured in cells.items():
        cell = found[label]
        cell.close(measured.note.model_dump())
        if label == CERTIFIED:
            report.certify(measured.key, cell, None)
        else:
            report.add(label, measured.key, cell, None, measured.after, measured.inapplicable)
            report.outside[label] = measured.outside
        report.seconds[label] = measured.seconds
    for label, line in report.errors.items():
        raise UserError(f"{label}: {line}")
    return report
