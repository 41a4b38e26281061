"""Submissions: opened, checked, and replayed from weights and evidence alone."""

import copy
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from attacks import Attack, Problem, ThreatModel
from attacks.problem import NotApplicableError
from benchmark.assess import suited
from benchmark.components import CERTIFIED, NATURAL
from benchmark.errors import UserError
from benchmark.identity import identify_object
from benchmark.models import Trained, load_saved
from benchmark.records import MemoryCell
from benchmark.registry import only_plugins
from benchmark.report import Report
from benchmark.runner import relabelled
from benchmark.spec import RunSpec, make_spec
from benchmark.verify import replay
from defenses import SavedModelError
from defenses.saved import CARD, WEIGHTS
from leaderboard.evidence import unpack
from leaderboard.record import EVIDENCE, RECORD, SPEC, Measured, Record, numbers_of, read_record
from leaderboard.tasks import ROWS, Task, find_task

# Files that a submission must list; whatever else it lists is code of its own.
NEEDED = (SPEC, CARD, EVIDENCE)


@dataclass(frozen=True)
class Row:
    """A submission that was opened: its files are those that its record lists, its record is of the
    task, and `report` is made from its evidence."""

    folder: Path
    task: Task
    record: Record
    report: Report


def row_folders(board: Path, task: Task) -> list[Path]:
    """The folders of a task's rows."""
    home = board / ROWS / task.name
    return sorted(path.parent for path in home.glob(f"*/{RECORD}"))


def open_row(folder: Path, tasks: dict[str, Task]) -> Row:
    """Open a submission, without its model. Raises UserError, in one line, for what does not hold
    of its schema, its files, its task and its evidence."""
    record = read_record(folder)
    _check_files(folder, record)
    task = find_task(tasks, record.task)
    _check_settings(folder, record, task)
    content = (folder / EVIDENCE).read_bytes()
    try:
        report = make_report(record.row, task, content, record.cells, record.flags, record.notes)
    except UserError as error:
        raise UserError(f"{folder / EVIDENCE}: {error}") from error
    return Row(folder, task, record, report)


def replay_row(row: Row, run_code: bool = False) -> Report:
    """The report as it is found now, from weights and evidence. Raises UserError, in one line,
    where anything differs from the record. Code of the submission's own is run only if `run_code`.
    """
    folder, record, task = row.folder, row.record, row.task
    plugins = _code(folder, record, _read_spec(folder), run_code)
    with only_plugins(plugins), _model(folder, record) as saved:
        _check_attacks(row, saved)
        replayed = replay(
            row.report, (), saved, relabelled(task.samples, saved.model, task.spec),
            record.data.model_dump(), record.block, "cpu",
        )  # fmt: skip
    if replayed.problems:
        raise UserError(f"{folder}: {'; '.join(replayed.problems)}")
    _check_numbers(folder, record, replayed.report)
    return replayed.report


def _check_files(folder: Path, record: Record) -> None:
    for name in NEEDED:
        if name not in record.files:
            raise UserError(f"{folder / RECORD} lists no {name}")
    for name, expected in record.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder / RECORD} lists {name}, which is outside of the submission")
        if not path.is_file():
            raise UserError(f"{path} is missing, though {RECORD} lists it")
        if _sha256(path) != expected:
            raise UserError(f"{path} is not the file that {RECORD} lists: its SHA-256 differs")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights_of(folder: Path, record: Record) -> Path:
    """The file of weights. Raises UserError where it is not at hand, or another."""
    at = record.weights.at
    path = folder / (at or WEIGHTS)
    if at is not None and "://" in at:
        path = folder / WEIGHTS
        if not path.is_file():
            raise UserError(f"{folder}: its weights are at {at}: download them to {path}")
    if not path.is_file():
        raise UserError(f"{path} is missing, though {folder / RECORD} says that weights are there")
    if _sha256(path) != record.weights.sha256:
        raise UserError(f"{path} holds other weights than {folder / RECORD} says: SHA-256 differs")
    return path


def _check_settings(folder: Path, record: Record, task: Task) -> None:
    """Whether a record is of its task's data and threat."""
    spec, where = task.spec, f"{folder / RECORD} is not of task {task.name}"
    given = ThreatModel(**record.threat.model_dump())
    for what, found, wanted in (
        ("norm", given.norm, spec.threat.norm),
        ("eps", given.eps, spec.threat.eps),
        ("box", [given.lower, given.upper], [spec.threat.lower, spec.threat.upper]),
        ("data", record.data.name, task.data["name"]),
        ("images or labels", record.data.sha256, task.data["sha256"]),
        ("number of samples", record.samples, len(task.samples)),
    ):
        if found != wanted:
            raise UserError(f"{where}: its {what}: {found}, and the task's: {wanted}")
    if NATURAL not in record.cells:
        raise UserError(f"{folder / RECORD} has no cell for natural accuracy")
    for label in task.lineup.entries:
        if label not in record.cells:
            raise UserError(f"{where}: it lacks the attack {label}")


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
        cell = MemoryCell()
        for block in found[label].blocks():
            cell.add(replace(block, outside=measured.outside, seconds=measured.seconds))
        cell.close(measured.note)
        if label == CERTIFIED:
            report.certify(measured.key, cell, None)
        else:
            report.add(label, measured.key, cell, None, measured.after, measured.inapplicable)
    for label, line in report.errors.items():
        raise UserError(f"{label}: {line}")
    return report


def _read_spec(folder: Path) -> RunSpec:
    try:
        return make_spec(yaml.safe_load((folder / SPEC).read_text()))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"{folder / SPEC} is not a spec") from error


def _code(folder: Path, record: Record, spec: RunSpec, run_code: bool) -> list[Path]:
    """The submission's own plugins. Raises UserError where there is code of its own and it is not
    to be run."""
    own = [name for name in record.files if name not in NEEDED]
    named = [str(model) for model in _foreign(_card(folder))]
    if (own or named or spec.plugins) and not run_code:
        code = ", ".join(dict.fromkeys([*own, *named, *(path.name for path in spec.plugins)]))
        raise UserError(
            f"{folder} brings code of its own ({code}): read it, and give --run-code to run it"
        )
    for plugin in spec.plugins:
        if plugin.name not in own:
            raise UserError(f"{folder / SPEC} names {plugin.name}, which is not in the submission")
    return [folder / plugin.name for plugin in spec.plugins]


def _foreign(card: dict[str, Any]) -> Iterator[str]:
    """The code that a card, or that of one of its parts, names: "file.py:Factory"."""
    component = card.get("component") or {}
    model = (component.get("options") or {}).get("model")
    if isinstance(model, str) and ":" in model:
        yield model
    for part in (card.get("parts") or {}).values():
        yield from _foreign(part)


def _card(folder: Path) -> dict[str, Any]:
    try:
        card = json.loads((folder / CARD).read_text())
        list(_foreign(card))
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{folder / CARD} is no card of a model") from error
    assert isinstance(card, dict)
    return card


def _at_home(card: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The card with the code that it names, where that is a file, in the submission's folder."""
    card = copy.deepcopy(card)
    waiting = [card]
    while waiting:
        one = waiting.pop()
        waiting += (one.get("parts") or {}).values()
        options = (one.get("component") or {}).get("options") or {}
        file, colon, factory = str(options.get("model", "")).partition(":")
        if colon and file.endswith(".py"):
            options["model"] = f"{(folder / Path(file).name).absolute()}:{factory}"
    return card


@contextmanager
def _model(folder: Path, record: Record) -> Iterator[Trained]:
    """The model of a submission. Raises UserError where it cannot be made."""
    weights, card = weights_of(folder, record), _card(folder)
    if card.get("sha256") != record.weights.sha256:
        raise UserError(f"{folder / CARD} is of other weights than {RECORD}: its SHA-256 differs")
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / WEIGHTS).write_bytes(weights.read_bytes())
        (Path(home) / CARD).write_text(json.dumps(_at_home(card, folder)))
        try:
            yield load_saved(Path(home))
        except SavedModelError as error:
            raise UserError(f"{folder}: {str(error).replace(home, str(folder))}") from error


def _check_attacks(row: Row, saved: Trained) -> None:
    """Whether the task's attacks were run as the task has them, and those that are said not to
    apply do not."""
    where = f"{row.folder / RECORD}"
    for label, entry in row.task.lineup.entries.items():
        measured = row.record.cells[label]
        attack = suited(saved.model, entry).attack
        wanted, found = identify_object(attack), measured.note.get("identity", {}).get("attack", {})
        if not _same(wanted, found):
            raise UserError(f"{where}: {label} was run with other settings than the task's")
        if measured.inapplicable is None:
            continue
        if _applies(attack, row, saved):
            raise UserError(f"{where}: {label} is said not to apply to the model, and does")
    for label, measured in row.record.cells.items():
        if measured.note.get("error"):
            raise UserError(f"{where}: {label} failed: {measured.note['error']}")


def _same(wanted: dict[str, Any], found: Any) -> bool:
    """Whether two attacks are of one class and options, whatever the version of their source."""
    if not isinstance(found, dict) or wanted["class"] != found.get("class"):
        return False
    options = found.get("options")
    return (
        isinstance(options, dict)
        and wanted["options"].keys() == options.keys()
        and all(
            _same(value, options[key]) if isinstance(value, dict) else value == options[key]
            for key, value in wanted["options"].items()
        )
    )


def _applies(attack: Attack, row: Row, saved: Trained) -> bool:
    """Whether an attack finds something to do on a model; one that does not says so before any
    work."""
    samples = row.task.samples
    problem = Problem(
        saved.model, samples.x[:1], samples.y[:1], row.task.spec.threat, 0,
        torch.from_numpy(samples.number[:1]),
    )  # fmt: skip
    try:
        attack(problem)
    except NotApplicableError:
        return False
    return True


def _check_numbers(folder: Path, record: Record, report: Report) -> None:
    found, said = numbers_of(report).model_dump(), record.numbers.model_dump()
    for name, value in found.items():
        if value != said[name]:
            raise UserError(
                f"{folder / RECORD}: {name} is {said[name]}, and by weights and evidence {value}"
            )
    flags = set(report.flags) - set(record.flags)
    if flags:
        raise UserError(f"{folder / RECORD} lacks the flags {', '.join(sorted(flags))}")
