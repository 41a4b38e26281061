"""From a run to submissions: a self-contained folder for each row."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from attacks import ThreatModel
from attacks.messages import one_line
from benchmark.errors import UserError, did_you_mean
from benchmark.judge.records import write
from benchmark.judge.subject import full_precision
from benchmark.models.trained import load_saved
from benchmark.report.report import Report
from benchmark.run.runner import load_run
from benchmark.run.verify import examine_twice
from benchmark.spec.components import CERTIFIED, SAVED, Component
from benchmark.spec.registry import load_plugins
from benchmark.spec.run_spec import RunSpec
from defenses.training.saved import CARD, WEIGHTS
from leaderboard.submission.card import card_text
from leaderboard.submission.evidence import pack
from leaderboard.submission.record import (
    CARD_TEXT,
    EVIDENCE,
    FORMAT,
    RECORD,
    SPEC,
    Data,
    Measured,
    Note,
    Record,
    Threat,
    Weights,
    first_error,
    numbers_of,
    slug,
)
from leaderboard.submission.replay import replay_row
from leaderboard.submission.submission import make_report, open_row
from leaderboard.submission.submitted_model import code_files, read_card
from leaderboard.tasks import Task


def submit(
    run: Path,
    tasks: Mapping[str, Task],
    out: Path,
    rows: list[str],
    about: Mapping[str, str],
    weights_at: str | None,
) -> Iterator[Path]:
    """Make the folder of each row of a run, or of those named, under `out`/TASK; its path is given
    when it is done, and holds.

    about       for readers, by row: what was scaled down or differs from the paper.
    weights_at  where the weights can be had, in place of a copy.

    Raises UserError where the run does not fit a task of the board or is not whole, and where what
    was made of a row does not hold; nothing is left of that row then.
    """
    spec, manifest, reports = load_run(run)
    load_plugins(spec.plugins)
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
    folders: dict[str, str] = {}
    for report, _ in chosen:
        other = folders.setdefault(slug(report.name), report.name)
        if other != report.name:
            raise UserError(f"{run}: rows {other!r} and {report.name!r} differ too little: rename")
        _check_whole(run, report, task)
    for report, row in chosen:
        home = run / row["model"]
        line = one_line(about.get(report.name, ""))
        files = _files(report, home, spec, manifest, task, line, weights_at)
        folder = out / task.name / slug(report.name)
        _write(folder, files, tasks)
        yield folder


def _list(names: list[str]) -> str:
    return f"there are {', '.join(names)}"


def _task_of(run: Path, spec: RunSpec, manifest: dict[str, Any], tasks: Mapping[str, Task]) -> Task:
    if (spec.mode, spec.precision) != ("table", "float32"):
        raise UserError(
            f"{run} was run in mode {spec.mode} and {spec.precision}: the board takes table and "
            "float32"
        )
    threat = ThreatModel(**manifest["threat"])
    for task in tasks.values():
        # The data last, because they have to be loaded.
        if (
            threat == task.spec.threat
            and manifest["data"] == task.data
            and manifest["samples"] == len(task.samples)
        ):
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
            raise UserError(
                f"{run}: {report.name}: task {task.name} needs the attack {label}: run the task's "
                "specification to its end"
            )
    if not report.measured:
        raise UserError(f"{run}: {report.name}: no attack applies to it")


def _write(folder: Path, files: dict[str, bytes], tasks: Mapping[str, Task]) -> None:
    """Write a submission, and see that it holds. Weights elsewhere may not be there yet."""
    (folder / WEIGHTS).unlink(missing_ok=True)  # of an earlier one, if they are elsewhere now
    for name, content in files.items():
        write(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    try:
        row = open_row(folder, tasks)
        if row.record.weights.at is None:
            replay_row(row, run_code=True)
    except UserError:
        for name in files:
            (folder / name).unlink()
        with suppress(OSError):  # what else lies there is the user's
            folder.rmdir()
        raise


@full_precision()
def _files(
    report: Report,
    home: Path,
    spec: RunSpec,
    manifest: dict[str, Any],
    task: Task,
    about: str,
    weights_at: str | None,
) -> dict[str, bytes]:
    """The files of a submission of the model in a folder. Raises UserError where its row or its
    text cannot be shown."""
    evidence = pack(report, examine_twice(load_saved(home).model, "cpu"), task.samples)
    cells = {label: _measured(report, label) for label in report.keys}
    found = make_report(report.name, task, evidence, cells, report.flags, report.notes)
    card = read_card(home)
    paths = code_files(card, spec)
    code = {path.name: path.read_bytes() for path in paths}
    if len(code) < len(paths):
        raise UserError(f"{report.name}: two files of code have one name: rename one")
    card = _portable(card)
    row_spec = _spec_of(report.name, manifest["spec"], card)
    files = {
        SPEC: yaml.safe_dump(row_spec, sort_keys=False).encode(),
        CARD: (json.dumps(card, indent=1) + "\n").encode(),
        EVIDENCE: evidence,
        **code,
    }
    weights = (home / WEIGHTS).read_bytes()
    try:
        record = Record(
            format=FORMAT,
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
            weights=Weights(sha256=sha256(weights).hexdigest(), at=weights_at),
            files={name: sha256(content).hexdigest() for name, content in files.items()},
        )
    except ValidationError as error:
        raise UserError(f"{report.name!r} cannot be a row: {first_error(error)}") from error
    if weights_at is None:
        files[WEIGHTS] = weights
    files[CARD_TEXT] = card_text(record, card).encode()
    # Last: without it the folder is no submission.
    return files | {RECORD: (record.model_dump_json(indent=1) + "\n").encode()}


def _measured(report: Report, label: str) -> Measured:
    return Measured(
        key=report.keys[label],
        note=Note(**report.cells[label].note),
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
    # What made the model, also where the run took it as saved.
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
