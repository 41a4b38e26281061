"""The replay of a run, which checks that its table follows from its models and records."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.errors import UserError
from benchmark.judge.surroundings import undisturbed
from benchmark.models.trained import load_saved
from benchmark.report import tables
from benchmark.report.report import Report
from benchmark.run.defense_replay import Verdict, replay
from benchmark.run.run_folder import load_run, named, unfinished
from benchmark.run.run_samples import relabelled, samples_again
from benchmark.spec.run_spec import Device, RunSpec


@dataclass(frozen=True)
class Replay:
    """The outcome of replaying a run.

    spec       the spec of the run.
    reports    a report on each defense, made from the records that hold.
    verdicts   one for each cell.
    problems   a line for each thing that does not hold.
    missing    a line for each thing that the run lacks, because it was not finished or its folder
               was damaged. The run's table holds if there are neither.
    """

    spec: RunSpec
    reports: list[Report]
    verdicts: list[Verdict]
    problems: list[str]
    missing: list[str]


@undisturbed()
def verify(folder: Path, root: Path | None, device: Device) -> Replay:
    """Replay the run in a folder, without attacking.

    Every example is forwarded in float32 and in float64, in a batch of another size than it was
    judged in, and must lie in the ball and the box without tolerance. Clean images are judged
    again, and radii are computed again, in float64 where the model can. `root` is where data sets
    are looked for first. Raises UserError where data or models are not those of the run.
    """
    spec, manifest, recorded = load_run(folder)
    data_samples = samples_again(folder, spec, manifest, root)
    rows, problems = [], []
    for report, row in zip(recorded, manifest["rows"], strict=True):
        saved = load_saved(folder / row["model"])
        samples = relabelled(data_samples, saved.model, spec.model_copy(update={"device": device}))
        row_replayed = replay(
            report, row["errors"], saved, samples, manifest["data"], spec.block, device, spec.terms
        )
        row_replayed.report.choice = report.choice
        row_replayed.report.left_out = report.left_out
        rows.append(row_replayed)
        problems += row_replayed.problems
    reports = [row.report for row in rows]
    missing, table = unfinished(spec, manifest, recorded), _table(folder)
    if table is None:
        missing.append(f"{tables.JSON} is not written")
    elif table != [_numbers(row) for row in tables.plain(reports)]:
        # Where records are lacking, that may be why.
        (missing or problems).append(f"{tables.JSON} says otherwise")
    verdicts = [verdict for row in rows for verdict in row.verdicts]
    return Replay(named(spec, manifest), reports, verdicts, problems, missing)


def _table(folder: Path) -> list[dict[str, Any]] | None:
    """The accuracies in a run's table.json, row by row; None if the run was not finished."""
    path = folder / tables.JSON
    try:
        return [_numbers(row) for row in json.loads(path.read_text())["rows"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: `bestattack report` writes it anew") from error


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """The accuracies in a row of table.json, which a replay must find again."""
    accuracies = ("natural", "per_attack", "best_attack", "certified", "contradictions")
    return {key: row[key] for key in ("defense", *accuracies)}
