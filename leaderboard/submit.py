"""From a run to submissions: a self-contained folder for each row."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from attacks import ThreatModel
from benchmark.components import CERTIFIED, SAVED, Component
from benchmark.errors import UserError, did_you_mean
from benchmark.models import Trained, load_saved
from benchmark.records import write, write_json, write_text
from benchmark.registry import load_plugin
from benchmark.report import Report
from benchmark.runner import load_run
from benchmark.spec import RunSpec
from benchmark.subject import full_precision
from benchmark.verify import examine_twice
from defenses import read_card
from defenses.saved import CARD, WEIGHTS
from leaderboard.cards import card_text
from leaderboard.evidence import pack
from leaderboard.record import (
    CARD_TEXT,
    EVIDENCE,
    RECORD,
    SPEC,
    Data,
    Measured,
    Record,
    Threat,
    Weights,
    numbers_of,
)
from leaderboard.rows import make_report
from leaderboard.tasks import Task


def submit(
    run: Path,
    tasks: dict[str, Task],
    out: Path,
    rows: list[str],
    about: Mapping[str, str],
    weights_at: str | None,
) -> Iterator[Path]:
    """Make the folder of each row of a run, or of those named, under `out`/TASK; its path is given
    when it is done.

    about       for readers, by row: what was scaled down or differs from the paper.
    weights_at  where the weights can be had, in place of a copy.

    Raises UserError, before anything is written, where the run does not fit a task of the board or
    is not whole.
    """
    spec, manifest, reports = load_run(run)
    for plugin in spec.plugins:
        load_plugin(plugin)
    task = _task_of(run, spec, manifest, tasks)
    names = [report.name for report in reports]
    for row in rows:
        if row not in names:
            raise UserError(f"{run} has no row {row!r}: {did_you_mean(row, names, _list(names))}")
    chosen = [
        (report, row)
        for report, row in zip(reports, manifest["rows"], strict=True)
        if not rows or report.name in rows
    ]
    for report, _ in chosen:
        _check_whole(run, report, task)
    for report, row in chosen:
        saved = load_saved(run / row["model"])
        folder = out / task.name / slug(report.name)
        _write(folder, report, saved, spec, manifest, task, about.get(report.name, ""), weights_at)
        yield folder


def slug(row: str) -> str:
    """The name of a row's folder."""
    return "".join(c if c.isalnum() or c in "+-._" else "-" for c in row.lower())


def _list(names: list[str]) -> str:
    return f"there are {', '.join(names)}"


def _task_of(run: Path, spec: RunSpec, manifest: dict[str, Any], tasks: dict[str, Task]) -> Task:
    if (spec.mode, spec.precision) != ("table", "float32"):
        raise UserError(f"{run} was run in mode {spec.mode} and {spec.precision}: the board takes "
                        "table and float32")  # fmt: skip
    threat = ThreatModel(**manifest["threat"])
    for task in tasks.values():
        wanted = (task.spec.threat, task.data, len(task.samples))
        if (threat, manifest["data"], manifest["samples"]) == wanted:
            return task
    raise UserError(
        f"{run} is of no task: {manifest['samples']} images of {manifest['data']['name']} within "
        f"{threat.norm} {threat.eps:g}; the tasks are {', '.join(tasks)}"
    )


def _check_whole(run: Path, report: Report, task: Task) -> None:
    for label, error in report.errors.items():
        raise UserError(f"{run}: {report.name}: {label} failed ({error}): mend it and run it again")
    for label in task.lineup.entries:
        if label not in report.keys:
            raise UserError(f"{run}: {report.name}: task {task.name} needs the attack {label}")
    if not report.measured:
        raise UserError(f"{run}: {report.name}: no attack applies to it")


@full_precision()
def _write(
    folder: Path,
    report: Report,
    saved: Trained,
    spec: RunSpec,
    manifest: dict[str, Any],
    task: Task,
    about: str,
    weights_at: str | None,
) -> None:
    content = pack(report, examine_twice(saved.model, "cpu"), task.samples)
    cells = {label: _measured(report, label) for label in report.keys}
    flags = list(report.flags)
    found = make_report(report.name, task, content, cells, flags, report.notes)
    card = _portable(read_card(saved.folder))
    spec_text = yaml.safe_dump(_spec_of(report.name, manifest["spec"], card), sort_keys=False)
    write(folder / EVIDENCE, lambda file: file.write(content))
    write_json(folder / CARD, card)
    write_text(folder / SPEC, spec_text)
    weights = (saved.folder / WEIGHTS).read_bytes()
    if weights_at is None:
        write(folder / WEIGHTS, lambda file: file.write(weights))
    code = _copy_code(folder, spec, read_card(saved.folder))
    record = Record(
        format=1,
        task=task.name,
        row=report.name,
        about=about,
        data=Data(**manifest["data"]),
        samples=len(task.samples),
        threat=Threat(**manifest["threat"]),
        mode="table",
        block=spec.block,
        flags=list(found.flags),
        notes=report.notes,
        cells=cells,
        numbers=numbers_of(found),
        weights=Weights(sha256=hashlib.sha256(weights).hexdigest(), at=weights_at),
        files={
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in (SPEC, CARD, EVIDENCE, *code)
        },
    )
    write_text(folder / CARD_TEXT, card_text(record, card))
    # Last: without it the folder is no submission.
    write_text(folder / RECORD, record.model_dump_json(indent=1) + "\n")


def _measured(report: Report, label: str) -> Measured:
    cell = report.cells[label]
    return Measured(
        key=report.keys[label],
        note=cell.note,
        after=list(report.after.get(label, ())),
        inapplicable=report.inapplicable.get(label),
        outside=0 if label == CERTIFIED else report.outside[label],
        seconds=round(report.seconds[label], 3),
    )


def _portable(value: Any) -> Any:
    """The value with the names of files alone in place of paths of this machine."""
    if isinstance(value, dict):
        return {key: _portable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(one) for one in value]
    if isinstance(value, str):
        head = SAVED if value.startswith(SAVED) else ""
        path = value.removeprefix(head)
        return head + Path(path).name if Path(path).is_absolute() else value
    return value


def _spec_of(row: str, spec: dict[str, Any], card: dict[str, Any]) -> dict[str, Any]:
    """The run's spec with the row, and those that it or an attack needs, alone."""
    components = {
        Component.model_validate(defense).label: defense for defense in _portable(spec["defenses"])
    }
    if components[row]["name"].startswith(SAVED):
        components[row] = card["component"] | {"given_label": row}
    needed, waiting = set(), [row, *_strings(spec["attacks"])]
    while waiting:
        name = waiting.pop()
        if name in components and name not in needed:
            needed.add(name)
            waiting += _strings(components[name]["options"])
    defenses = [defense for label, defense in components.items() if label in needed]
    made: dict[str, Any] = _portable(spec)
    return made | {"defenses": defenses}


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [text for part in parts for text in _strings(part)]
    return [value] if isinstance(value, str) else []


def _copy_code(folder: Path, spec: RunSpec, card: dict[str, Any]) -> list[str]:
    """Copy the plugins of a run and the file that holds an external model; their names."""
    model = str((card["component"].get("options") or {}).get("model", "")).partition(":")[0]
    files = [*spec.plugins, *([Path(model)] if model.endswith(".py") else [])]
    for path in files:
        content = path.read_bytes()
        write(folder / path.name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    return list(dict.fromkeys(path.name for path in files))
