"""What the folder of a run holds, read without any model; `runner` says what lies where in it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attacks import ThreatModel
from benchmark.data.choice import Choice
from benchmark.errors import UserError
from benchmark.judge.records import FolderCell
from benchmark.report.left_out import find_left_out
from benchmark.report.report import Report
from benchmark.spec.components import CERTIFIED, NATURAL
from benchmark.spec.run_spec import RunSpec, make_spec


def load_run(folder: Path) -> tuple[RunSpec, dict[str, Any], list[Report]]:
    """The spec, the manifest and the reports of a run, read from its folder without any model.

    The run need not be finished. The spec says how samples were chosen, also where the user's did
    not. Raises UserError where the folder holds no run, or a damaged one.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / "run.json").read_text())
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no run with results: name the folder of a run") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'run.json'} is damaged: run the same command again") from error
    try:
        # Runs from before there was a choice took the first samples.
        choice = Choice(**manifest["choice"]) if "choice" in manifest else None
        chosen = {"choose": choice.choose if choice else "first"}
        spec = make_spec(manifest["spec"] | chosen)
        reports = [_load_report(folder, manifest, row) for row in manifest["rows"]]
        settings = ThreatModel(**manifest["threat"]), manifest["mode"]
        if not reports:
            raise ValueError("no rows")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{folder / 'run.json'} is damaged, or of another version: run the same command again"
        ) from error
    if settings != (spec.threat, spec.mode):
        raise UserError(f"{folder / 'run.json'} was changed: its threat or mode is not its spec's")
    for report in reports:
        report.choice = choice
    find_left_out(reports, folder / "cells", spec.seed)
    return spec, manifest, reports


def _load_report(folder: Path, manifest: dict[str, Any], row: dict[str, Any]) -> Report:
    """The report on a defense, from its row in the manifest and its cells."""
    threat = ThreatModel(**manifest["threat"])
    report = Report(
        row["defense"], threat, manifest["mode"], manifest["samples"], row["flags"], row["notes"]
    )
    cells = {label: FolderCell(folder / "cells" / key) for label, key in row["cells"].items()}
    # All else counts on the clean records.
    if NATURAL in cells:
        report.add(NATURAL, row["cells"][NATURAL], cells[NATURAL], row["errors"].get(NATURAL))
    _check_clean(folder, report)
    for label, cell in cells.items():
        key, error = row["cells"][label], row["errors"].get(label)
        if label == NATURAL:
            continue
        if label == CERTIFIED:
            report.certify(key, cell, error)
        else:
            after, inapplicable = row["after"].get(label, ()), row["inapplicable"].get(label)
            report.add(label, key, cell, error, after, inapplicable)
    return report


def _check_clean(folder: Path, report: Report) -> None:
    """Raises UserError where a report has not the records of all clean images."""
    if NATURAL not in report.keys or NATURAL in report.errors:
        counted = report.errors.get(NATURAL, "none").removeprefix("incomplete: ")
        raise UserError(
            f"{folder}: the clean records of {report.name!r} are not complete ({counted}): run the "
            "same command again"
        )


def unfinished(spec: RunSpec, manifest: dict[str, Any], reports: Sequence[Report]) -> list[str]:
    """A line for each defense and each attack of which a run has not all records."""
    by_name = {report.name: report for report in reports}
    # Earlier versions did not note the attacks: all that any row has.
    attacks = dict.fromkeys(
        manifest.get("attacks") or [label for report in reports for label in report.attacks]
    )
    lines = []
    for label in dict.fromkeys(component.label for component in spec.defenses):
        if label not in by_name:
            lines.append(f"{label}: not measured")
            continue
        report = by_name[label]
        for attack in (*attacks, *sorted(report.lacking - attacks.keys())):
            if attack in report.lacking:
                lines.append(f"{label} {attack}: {report.errors[attack]}")
            elif attack not in report.keys:
                lines.append(f"{label} {attack}: not finished, or not begun")
    return lines


def named(spec: RunSpec, manifest: dict[str, Any]) -> RunSpec:
    """The spec with the full name of its data set, which a user may have written differently."""
    return spec.model_copy(update={"data": manifest["data"]["name"]})
