"""Making submissions from a run: a self-contained folder for each row."""

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
from benchmark.columns import eps_text
from benchmark.errors import UserError, did_you_mean
from benchmark.judge.records import write
from benchmark.judge.surroundings import undisturbed
from benchmark.models.trained import load_saved
from benchmark.report.report import Report
from benchmark.run.replay.defense_replay import examine_twice
from benchmark.run.run_folder import read_run
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
    """Make a submission of each row of a run, and yield its folder when it is done and holds.

    run         the folder of the run.
    tasks       the tasks of the board; one of them must be that of the run.
    out         where the folders are made, as OUT/TASK/ROW.
    rows        the labels of the rows; all rows if it is empty.
    about       for readers, by row: what was scaled down, or differs from the paper.
    weights_at  where the weights can be had, as an address or a path from the submission's folder;
                None to copy them into the submission.

    Raises UserError where the run fits no task of the board, where it is not finished, and where
    the submission of a row does not hold, which is then deleted.
    """
    # Read the run, and choose its rows.
    spec, manifest, reports = read_run(run)
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
    # Check all of them before the first is written.
    names_by_folder: dict[str, str] = {}
    for report, row in chosen:
        first = names_by_folder.setdefault(slug(report.name), report.name)
        if first != report.name:
            raise UserError(f"{run}: rows {first!r} and {report.name!r} differ too little: rename")
        _check_whole(run, report, task)
        if "reject" in row:
            raise UserError(
                f"{run}: {report.name!r} may reject images, and rows of the board may not: name "
                "other rows"
            )

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
    """The task whose data and settings are those of a run. Raises UserError, which says in what the
    nearest tasks differ, where there is none."""
    differing = {name: _differences(spec, manifest, task) for name, task in tasks.items()}
    for name, differences in differing.items():
        if not differences:
            return tasks[name]
    fewest = min(map(len, differing.values()), default=0)
    nearest = [
        f"{name} wants {', '.join(differences)}"
        for name, differences in differing.items()
        if len(differences) == fewest
    ]
    raise UserError(f"{run} is of no task: {'; '.join(nearest) or 'the board has none'}")


def _differences(spec: RunSpec, manifest: dict[str, Any], task: Task) -> list[str]:
    """What a task wants, and what a run has in its place, for each setting in which they differ."""
    wanted, threat, data = task.spec, ThreatModel(**manifest["threat"]), manifest["data"]
    settings: dict[str, tuple[Any, Any]] = {
        "data": (task.dataset.name, data["name"]),
        "split": (wanted.split, spec.split),
        "labels": (wanted.labels, data.get("labels", "data")),
        "norm": (wanted.norm, threat.norm),
        "eps": (eps_text(wanted.eps), eps_text(threat.eps)),
        "bounded": (wanted.bounded, spec.bounded),
        "mode": ("table", spec.mode),
        "precision": ("float32", {"model": "float32"}.get(spec.precision, spec.precision)),
    }
    differences = [
        f"{name} {want} and not {has}" for name, (want, has) in settings.items() if want != has
    ]
    # What else may differ is known only from the images, which need not be at hand for other data.
    if task.dataset.name == data["name"]:
        if len(task.samples) != manifest["samples"]:
            differences.append(f"samples {len(task.samples)} and not {manifest['samples']}")
        if not differences and task.data != data:
            differences.append("the images that it was made with, and not others of that name")
        if not differences and threat != wanted.threat:
            differences.append(f"exactly {wanted.threat} and not {threat}")
    return differences


def _check_whole(run: Path, report: Report, task: Task) -> None:
    """Raises UserError unless a row has all attacks of a task, and none of them failed."""
    if report.draws or report.precision not in (None, "float32"):
        what = "is randomised" if report.draws else f"runs in {report.precision}"
        raise UserError(
            f"{run}: {report.name!r} {what}: the board takes models whose verdicts can be replayed "
            "exactly, in float32 and float64"
        )
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
    """Write the files of a submission, and delete them if the submission does not hold.

    A submission whose weights lie elsewhere is not replayed, because they may not be there yet.
    """
    (folder / WEIGHTS).unlink(missing_ok=True)  # an earlier submission may have left them
    for name, content in files.items():
        write(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    try:
        row = open_row(folder, tasks)
        if row.record.weights.at is None:
            replay_row(row, run_code=True)
    except UserError:
        for name in files:
            (folder / name).unlink()
        with suppress(OSError):  # the folder stays if it holds other files, which are the user's
            folder.rmdir()
        raise


@undisturbed()
def _files(
    report: Report,
    home: Path,
    spec: RunSpec,
    manifest: dict[str, Any],
    task: Task,
    about: str,
    weights_at: str | None,
) -> dict[str, bytes]:
    """The files of the submission of a row, by name. The row's model lies in `home`.

    Raises UserError where the row's name or the line about it has signs that cannot be shown.
    """
    # Evidence, and the report that follows from it.
    model, first_block = load_saved(home).model, task.samples.x[: spec.block]
    evidence = pack(report, examine_twice(model, first_block, "cpu", spec.terms), task.samples)
    cells = {label: _measured(report, label) for label in report.keys}
    shown = make_report(report.name, task, evidence, cells, report.flags, report.notes)

    # Card, spec, and the user's code.
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
    # The record, which lists all of these, and the weights.
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
            flags=list(shown.flags),
            notes=report.notes,
            cells=cells,
            numbers=numbers_of(shown),
            weights=Weights(sha256=sha256(weights).hexdigest(), at=weights_at),
            files={name: sha256(content).hexdigest() for name, content in files.items()},
        )
    except ValidationError as error:
        raise UserError(f"{report.name!r} cannot be a row: {first_error(error)}") from error
    if weights_at is None:
        files[WEIGHTS] = weights
    files[CARD_TEXT] = card_text(record, card).encode()
    # The record is written last, because a folder without it is not a submission.
    return files | {RECORD: (record.model_dump_json(indent=1) + "\n").encode()}


def _measured(report: Report, label: str) -> Measured:
    """What the record says about one column of a report."""
    return Measured(
        key=report.keys[label],
        note=Note(**report.cells[label].note),
        after=list(report.after.get(label, ())),
        inapplicable=report.inapplicable.get(label),
        outside=0 if label == CERTIFIED else report.outside[label],
        seconds=round(report.seconds[label], 3),
    )


def _portable(value: Any) -> Any:
    """The value with each absolute path in it shortened to the name of its file or folder."""
    if isinstance(value, dict):
        return {key: _portable(nested) for key, nested in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(nested) for nested in value]
    if isinstance(value, str):
        head = SAVED if value.startswith(SAVED) else ""
        path = value.removeprefix(head)
        return head + Path(path).name if Path(path).is_absolute() else value
    return value


def _spec_of(row: str, spec: dict[str, Any], card: dict[str, Any]) -> dict[str, Any]:
    """The spec of a run of one row alone.

    Its defenses are that of the row, and those that it or an attack needs.
    """
    components = {
        Component.model_validate(defense).label: defense for defense in _portable(spec["defenses"])
    }
    # The card says how the model was trained, which the run's spec does not if it took a saved one.
    components[row] = card["component"] | {"given_label": row}
    needed, waiting = set(), [row, *_strings(spec["attacks"])]
    while waiting:
        name = waiting.pop()
        if name in components and name not in needed:
            needed.add(name)
            waiting += _strings(components[name]["options"])
    defenses = [defense for label, defense in components.items() if label in needed]
    portable_spec: dict[str, Any] = _portable(spec)
    return portable_spec | {"defenses": defenses}


def _strings(value: Any) -> list[str]:
    """All texts in nested lists and dictionaries, without the keys."""
    if isinstance(value, dict | list):
        nested = value.values() if isinstance(value, dict) else value
        return [text for element in nested for text in _strings(element)]
    return [value] if isinstance(value, str) else []
