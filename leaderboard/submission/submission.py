"""Opening a submission: its files are read and checked, as far as that needs no model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from attacks.messages import described
from benchmark.data.sets import load_dataset
from benchmark.errors import UserError
from benchmark.report.report import Report
from benchmark.run.run_samples import choose_of
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
    """A submission that was opened.

    Its files are those that its record lists, and its record and spec fit the task.

    record, spec  what record.json and spec.yaml hold.
    report        the report that its evidence gives.
    """

    folder: Path
    task: Task
    record: Record
    spec: RunSpec
    report: Report


def row_folders(board: Path, task: Task) -> list[Path]:
    """The folders of a task's rows on a board, sorted."""
    home = board / ROWS / task.name
    return sorted(path.parent for path in home.glob(f"*/{RECORD}"))


def open_row(folder: Path, tasks: Mapping[str, Task]) -> Row:
    """Open the submission in a folder, without loading its model.

    Raises UserError, in one line, where its record does not fit the schema, its files or the task,
    and where its evidence is damaged.
    """
    record = read_record(folder)
    try:
        _check_files(folder, record)
        task = find_task(tasks, record.task)
        _check_settings(folder, record, task)
        spec = _read_spec(folder, record, task)
        report = _report(folder, record, task)
    except UserError:
        raise
    except Exception as error:  # files of strangers fail in more ways than can be listed
        raise unreadable(folder, error) from error
    return Row(folder, task, record, spec, report)


def unreadable(folder: Path, error: Exception) -> UserError:
    """The error for files of a submission that fail in a way that is not foreseen."""
    return UserError(f"{folder} cannot be read: {described(error)[:200]}")


def _check_files(folder: Path, record: Record) -> None:
    """Raises UserError unless a submission has all that it needs, as its record lists it."""
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
    """Raises UserError unless a record has the data, the threat and the attacks of its task."""
    where = f"{folder / RECORD} is not of task {task.name}"
    threat, wanted = record.threat, task.spec.threat
    for what, recorded, asked in (
        ("norm", threat.norm, wanted.norm),
        ("eps", threat.eps, wanted.eps),
        ("box", [threat.lower, threat.upper], [wanted.lower, wanted.upper]),
        ("data", record.data.name, task.data["name"]),
        ("images or labels", record.data.sha256, task.data["sha256"]),
        ("number of samples", record.samples, len(task.samples)),
    ):
        if recorded != asked:
            raise UserError(f"{where}: its {what}: {recorded}, and the task's: {asked}")
    first, natural = next(iter(record.cells.items()), ("", None))
    if first != NATURAL or natural is None or natural.inapplicable or natural.after:
        raise UserError(f"{folder / RECORD}: its first cell must be that of natural accuracy")
    for label, entry in task.lineup.entries.items():
        if label not in record.cells:
            raise UserError(f"{where}: it lacks the attack {label}")
        if tuple(record.cells[label].after) != entry.after:
            raise UserError(f"{where}: {label} was run on what other attacks left")


def _read_spec(folder: Path, record: Record, task: Task) -> RunSpec:
    """Read the spec of a submission. Raises UserError where a run of it would not give the row."""
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
        ("images", _images(spec) == _images(wanted)),
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


def _images(spec: RunSpec) -> tuple[object, ...]:
    """The settings of a spec that say which images are attacked."""
    return spec.samples, spec.split, choose_of(spec)


def _rest(spec: RunSpec) -> tuple[str, ...]:
    """The settings of a spec that must be those of the task, and have one message together."""
    precision = "float32" if spec.precision == "model" else spec.precision
    return spec.labels, spec.mode, precision


def _report(folder: Path, record: Record, task: Task) -> Report:
    """The report that the evidence in a folder gives. Raises UserError, which names the file."""
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
    """Make the report on a row from its evidence and its record.

    row           the name of the row.
    content       the content of the evidence file.
    cells         how each cell came about, as recorded.
    flags, notes  as recorded.

    Raises UserError where they do not fit together.
    """
    unpacked = unpack(content, list(cells), task.samples, task.spec.threat)
    report = Report(row, task.spec.threat, "table", len(task.samples), flags, notes)
    for label, measured in cells.items():
        cell = unpacked[label]
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
