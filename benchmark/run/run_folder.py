"""What the folder of a run holds, read without any model, and its tables written anew; `runner`
says what lies where in it."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attacks import ThreatModel
from benchmark.data.choice import Choice
from benchmark.data.sets import load_dataset
from benchmark.errors import UserError
from benchmark.folder_lock import InUseError, alone_in
from benchmark.judge.records import FolderCell
from benchmark.pages.run_page import Shown, write_page
from benchmark.report import tables
from benchmark.report.captions import may_reject_name
from benchmark.report.left_out import find_left_out
from benchmark.report.report import Report
from benchmark.run.run_samples import identify_samples, samples_of
from benchmark.spec.components import CERTIFIED, NATURAL, SEARCH
from benchmark.spec.run_spec import RunSpec, make_spec
from benchmark.whole import run_tables
from benchmark.whole.parts import kind_in, parts, places_in, several

# The cells of all parts of a run lie together, as this says in the manifest of each.
RUN, CELLS = "run.json", "cells"


def read_manifest(folder: Path) -> dict[str, Any]:
    """What run.json in the folder of a run holds. Raises UserError where there is none."""
    try:
        manifest: dict[str, Any] = json.loads((folder / RUN).read_text())
        if not isinstance(manifest, dict):
            raise ValueError("no mapping")
    except (FileNotFoundError, NotADirectoryError) as error:
        if (folder / CELLS).is_dir() or (folder / "defenses").is_dir():
            raise UserError(
                f"{folder} holds a run that was interrupted before all its models were there: run "
                "the same command again"
            ) from error
        raise UserError(f"{folder} holds no run with results: name the folder of a run") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RUN} is damaged: run the same command again") from error
    return manifest


def read_run(folder: Path) -> tuple[RunSpec, dict[str, Any], list[Report]]:
    """The spec, the manifest and the reports of a run under one threat and with one seed, read from
    its folder without any model.

    The run need not be finished. The spec says how samples were chosen, also where the user's did
    not. Raises UserError where the folder holds no such run, or a damaged one.
    """
    manifest = read_manifest(folder)
    if kind := kind_in(manifest):
        homes = " or ".join(str(folder / kind / place) for place in manifest[kind])
        raise UserError(f"{folder} holds a run {several(kind)}: name that of one, {homes}")
    try:
        # Runs from before there was a choice took the first samples.
        choice = Choice(**manifest["choice"]) if "choice" in manifest else None
        chosen = {"choose": choice.choose if choice else "first"}
        asked, threat = make_spec(manifest["spec"] | chosen), ThreatModel(**manifest["threat"])
        seed = choice.seed if choice else asked.seed
        every = {(part.view.threat, part.view.seed): part for part in parts(asked)}
        part = every.get((threat, seed))
        spec = part.view if part else asked
        cells = folder / manifest.get(CELLS, CELLS)
        reports = [_load_report(folder, cells, manifest, row) for row in manifest["rows"]]
        mode = manifest["mode"]
        if not reports:
            raise ValueError("no rows")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{folder / RUN} is damaged, or of another version: run the same command again"
        ) from error
    if part is None or mode != spec.mode:
        raise UserError(f"{folder / RUN} was changed: its threat, mode or seed is not its spec's")
    for report in reports:
        report.choice = choice
        report.under = part.name
    find_left_out(reports, cells, spec.seed)
    return spec, manifest, reports


def models_of(folder: Path, manifest: dict[str, Any]) -> dict[str, Path]:
    """The folder of each defense's model in a run, by its label."""
    rows = (row for row in manifest["rows"] if not row.get("may_reject"))
    return {row["defense"]: folder / row["model"] for row in rows}


@dataclass(frozen=True)
class Recorded:
    """What the folder of a run tells of it.

    spec     its spec.
    reports  a report on each defense that is begun, under each threat or with each seed.
    missing  a line for each defense and each attack that lacks records.
    in_use   which process works in the folder; empty where none does.
    """

    spec: RunSpec
    reports: list[Report]
    missing: list[str]
    in_use: str = ""


def rewrite(folder: Path, root: Path | None = None) -> Recorded:
    """Read a run from its records, finished or not, and write its tables and its page anew, unless
    another process works in its folder.

    root  where data sets are looked for first; the page has no images where there is none. Code
          that the run names is not run. Raises as `read_run`.
    """
    try:
        with alone_in(folder):
            return _recorded(folder, root)
    except InUseError as error:
        if not (folder / RUN).exists():
            raise
        return replace(_recorded(folder, None, write=False), in_use=f"{error}.")


def _recorded(folder: Path, root: Path | None, write: bool = True) -> Recorded:
    """What a run's folder tells of it, whose tables are written anew if `write`."""
    manifest = read_manifest(folder)
    if not kind_in(manifest):
        spec, manifest, reports = read_run(folder)
        missing = missing_of(spec, manifest, reports)
        spec = named(spec, manifest)
        if write:
            tables.write(folder, reports, spec, {"run": manifest})
            write_page(folder, reports, _shown(spec, manifest, root))
        return Recorded(spec, reports, missing)
    spec, homes = homes_of(folder, manifest)
    of_parts, missing = list[Recorded](), list[str]()
    for name, home in homes.items():
        if not (home / RUN).exists():
            missing.append(f"{name}: not measured")
            continue
        with alone_in(home) if write else nullcontext():
            of_parts.append(_recorded(home, root, write))
        missing += [f"{name}: {line}" for line in of_parts[-1].missing]
    spec = spec.model_copy(update={"data": of_parts[0].spec.data})
    reports = [report for part in of_parts for report in part.reports]
    if write:
        run_tables.write(folder, reports, spec, {"run": manifest})
    return Recorded(spec, reports, missing)


def _shown(spec: RunSpec, manifest: dict[str, Any], root: Path | None) -> Shown:
    """What the page of a run is about, with its images where its data set is at hand."""
    try:
        dataset = load_dataset(spec.data, root)
        if identify_samples(dataset, spec) == manifest["data"]:
            return Shown(spec, manifest, samples_of(dataset, spec), dataset.labels)
    except UserError:
        pass
    return Shown(spec, manifest)


def homes_of(folder: Path, manifest: dict[str, Any]) -> tuple[RunSpec, dict[str, Path]]:
    """The spec of a run that has parts, and what its folder holds of each, by its name in tables: a
    run's folder, unless the run has not come to it. Raises UserError where nothing is measured yet
    of any."""
    kind = kind_in(manifest)
    try:
        spec = make_spec(manifest["spec"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / RUN} is damaged: run the same command again") from error
    if manifest[kind] != places_in(spec):
        raise UserError(f"{folder / RUN} was changed: its {kind} are not its spec's")
    homes = {part.name: folder / part.place for part in parts(spec)}
    if not any((home / RUN).exists() for home in homes.values()):
        raise UserError(f"{folder} holds no results yet: run the same command again")
    return spec, homes


def _load_report(
    folder: Path, cells: Path, manifest: dict[str, Any], row: dict[str, Any]
) -> Report:
    """The report on a defense, from its row in the manifest and its cells."""
    threat = ThreatModel(**manifest["threat"])
    report = Report(
        row["defense"], threat, manifest["mode"], manifest["samples"], row["flags"], row["notes"]
    )
    by_label = {label: FolderCell(cells / key) for label, key in row["cells"].items()}
    # All else counts on the clean records.
    if NATURAL in by_label:
        report.add(NATURAL, row["cells"][NATURAL], by_label[NATURAL], row["errors"].get(NATURAL))
    _check_clean(folder, report)
    for label, cell in by_label.items():
        key, error = row["cells"][label], row["errors"].get(label)
        if label == NATURAL:
            continue
        if label == CERTIFIED:
            report.certify(key, cell, error)
        else:
            after, inapplicable = row["after"].get(label, ()), row["inapplicable"].get(label)
            report.add(label, key, cell, error, after, inapplicable)
    for label, begun in row.get("begun", {}).items():
        if label not in by_label:
            report.begin(label, begun["key"], FolderCell(cells / begun["key"]), begun["after"])
    known = report.keys.keys() | report.begun.keys()
    asked = [*manifest.get("attacks", ()), *([SEARCH] if manifest["spec"].get("certify") else [])]
    report.awaited = [label for label in asked if label not in known]
    return report


def _check_clean(folder: Path, report: Report) -> None:
    """Raises UserError where a report has not the records of all clean images."""
    if NATURAL not in report.keys or NATURAL in report.errors:
        counted = report.errors.get(NATURAL, "none").removeprefix("incomplete: ")
        raise UserError(
            f"{folder}: the clean records of {report.name!r} are not complete ({counted}): run the "
            "same command again"
        )


def unfinished(
    spec: RunSpec, manifest: dict[str, Any], reports: Sequence[Report]
) -> dict[str, list[str]]:
    """What a run has not all records of: by the name of a row, a line for each attack, or one that
    the defense is not measured."""
    by_name = {report.name: report for report in reports}
    # Earlier versions did not note the attacks: all that any row has.
    attacks = dict.fromkeys(
        manifest.get("attacks") or [label for report in reports for label in report.attacks]
    )
    lines: dict[str, list[str]] = {}
    expected = dict.fromkeys(component.label for component in spec.defenses)
    # A model that may reject images has two rows.
    rejecting = [row["defense"] for row in manifest["rows"] if row.get("may_reject") is False]
    for label in (*expected, *map(may_reject_name, rejecting)):
        if label not in by_name:
            lines[label] = [f"{label}: not measured"]
            continue
        report = by_name[label]
        searched = [SEARCH] if spec.certify else []
        for attack in (*attacks, *searched, *sorted(report.lacking - {*attacks, *searched})):
            column = CERTIFIED if attack == SEARCH else attack
            if attack in report.lacking:
                line = f"{label} {column}: {report.errors[attack]}"
            elif attack in report.begun:
                line = f"{label} {column}: {report.begun[attack]}"
            elif attack not in report.keys:
                line = f"{label} {column}: not finished, or not begun"
            else:
                continue
            lines.setdefault(label, []).append(line)
    return lines


def missing_of(spec: RunSpec, manifest: dict[str, Any], reports: Sequence[Report]) -> list[str]:
    """The lines of `unfinished`, of all rows."""
    by_row = unfinished(spec, manifest, reports)
    return [line for lines in by_row.values() for line in lines]


def named(spec: RunSpec, manifest: dict[str, Any]) -> RunSpec:
    """The spec with the full name of its data set, which a user may have written differently."""
    return spec.model_copy(update={"data": manifest["data"]["name"]})
