"""The replay of a run, which checks that its table follows from its models and records."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmark.environment import Device
from benchmark.errors import UserError
from benchmark.judge.surroundings import undisturbed
from benchmark.keys import identify_recipe
from benchmark.models.trained import Trained, load_saved
from benchmark.report import tables
from benchmark.report.report import Report
from benchmark.run.replay.defense_replay import replay
from benchmark.run.replay.examples_replay import Verdict
from benchmark.run.run_folder import (
    RUN,
    homes_of,
    missing_of,
    named,
    read_manifest,
    read_run,
)
from benchmark.run.run_samples import data_again, relabelled, terms_of
from benchmark.spec.roster import configured
from benchmark.spec.run_spec import MAY_REJECT, RunSpec
from benchmark.whole import run_tables
from benchmark.whole.parts import kind_in
from defenses.offers import rejection_of


@dataclass(frozen=True)
class Replay:
    """The outcome of replaying a run.

    spec       the spec of the run.
    reports    a report on each defense, under each threat and with each seed, made from the records
               that hold.
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
    manifest = read_manifest(folder)
    if kind_in(manifest):
        return _verify_each(folder, manifest, root, device)
    spec, manifest, recorded = read_run(folder)
    dataset, data_samples = data_again(folder, spec, manifest, root)
    rows, problems = [], []
    for report, row in zip(recorded, manifest["rows"], strict=True):
        saved = load_saved(folder / row["model"])
        if line := _misnamed(row, folder / row["model"], saved, spec):
            problems.append(line)
        samples = relabelled(data_samples, saved.model, spec.model_copy(update={"device": device}))
        row_replayed = replay(
            report, row["errors"], saved, samples, manifest["data"], spec.block, device,
            terms_of(dataset, spec, rejection_of(saved.model), row.get("may_reject", False)),
        )  # fmt: skip
        row_replayed.report.choice, row_replayed.report.under = report.choice, report.under
        row_replayed.report.left_out = report.left_out
        row_replayed.report.begun, row_replayed.report.awaited = report.begun, report.awaited
        rows.append(row_replayed)
        problems += row_replayed.problems
    reports = [row.report for row in rows]
    missing = missing_of(spec, manifest, recorded)
    _compare(folder, tables.plain(reports), _NUMBERS, problems, missing)
    # Versions before there was a choice of samples raised other flags.
    if "choice" in manifest:
        _compare_texts(folder, tables.texts(recorded, named(spec, manifest)), problems, missing)
    verdicts = [verdict for row in rows for verdict in row.verdicts]
    return Replay(named(spec, manifest), reports, verdicts, problems, missing)


def _misnamed(row: dict[str, Any], home: Path, saved: Trained, spec: RunSpec) -> str:
    """What is wrong with the name of a row, whose model is `saved` in a folder; empty if it is that
    of the model's defense in the spec."""
    name, is_lenient = row["defense"], bool(row.get("may_reject"))
    label = name.removesuffix(MAY_REJECT) if is_lenient else name
    component = next((made for made in spec.defenses if made.label == label), None)
    if component is None or is_lenient != name.endswith(MAY_REJECT):
        return f"{name}: no defense of the run makes a row of that name"
    member = configured(component)
    if member.recipe is not None:
        is_same = saved.identity.get("recipe") == identify_recipe(member.recipe)
    else:
        # A saved model may have been moved since.
        is_same = not (member.folder and member.folder.is_dir()) or home.samefile(member.folder)
    return "" if is_same else f"{name}: its model is that of another defense"


def _verify_each(
    folder: Path, manifest: dict[str, Any], root: Path | None, device: Device
) -> Replay:
    """Replay a run under each of its threats, or with each of its seeds, and compare the table over
    all of them."""
    spec, homes = homes_of(folder, manifest)
    every, recorded = Replay(spec, [], [], [], []), []
    for name, home in homes.items():
        if not (home / RUN).exists():
            every.missing.append(f"{name}: not measured")
            continue
        replayed = verify(home, root, device)
        spec = spec.model_copy(update={"data": replayed.spec.data})
        recorded.extend(read_run(home)[2])
        every.reports.extend(replayed.reports)
        every.verdicts.extend(
            replace(verdict, defense=f"{verdict.defense} ({name})") for verdict in replayed.verdicts
        )
        every.problems.extend(f"{name}: {line}" for line in replayed.problems)
        every.missing.extend(f"{name}: {line}" for line in replayed.missing)
    rows, compared = run_tables.plain(every.reports, spec), run_tables.COMPARED[kind_in(manifest)]
    _compare(folder, rows, compared, every.problems, every.missing)
    texts = run_tables.texts(recorded, spec)
    _compare_texts(folder, texts, every.problems, every.missing)
    return replace(every, spec=spec)


# The accuracies in a row of table.json, which a replay must find again.
_NUMBERS = ("defense", "natural", "per_attack", "best_attack", "certified", "contradictions")


def _compare(
    folder: Path,
    replayed: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    problems: list[str],
    missing: list[str],
) -> None:
    """Compare the rows of a run's table.json with those of its replay, as far as some keys go, and
    add a line to what does not hold, or to what is missing, where they differ."""
    path = folder / tables.JSON
    try:
        table = [[row[key] for key in keys] for row in json.loads(path.read_text())["rows"]]
    except FileNotFoundError:  # the run was not finished
        missing.append(f"{tables.JSON} is not written")
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: `bestattack report` writes it anew") from error
    if table != [[row[key] for key in keys] for row in replayed]:
        # Where records are lacking, that may be why.
        (missing or problems).append(f"{tables.JSON} says otherwise")


def _compare_texts(
    folder: Path, texts: Mapping[str, str], problems: list[str], missing: list[str]
) -> None:
    """Compare the numbers in the files of a run's table with those that its records make, by the
    names of the files. Where records are missing there is nothing to compare."""
    if missing:
        return
    for name, text in texts.items():
        try:
            written = (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            missing.append(f"{name} is not written")
            continue
        except (OSError, ValueError):
            written = ""
        if _rows_of(name, written) != _rows_of(name, text):
            problems.append(f"{name} is not what the records give: `bestattack report` writes it")


def _rows_of(name: str, text: str) -> list[str]:
    """The lines of a file that hold numbers. Captions may be of an earlier version."""
    lines = text.splitlines()
    return [line for line in lines if line.startswith("|")] if name.endswith(".md") else lines
