"""A run: it trains defenses, attacks them, and keeps all results in one folder.

The folder is enough to resume the run, to show its tables again, and to verify them. It holds:

spec.yaml        what was asked for
.lock            held while a process works in the folder
run.json         what was measured: a row for each defense, with the keys of its cells
defenses/NAME/   model.safetensors, card.json and log.csv of each trained defense
cells/KEY/       per-sample records and adversarial examples, block by block
table.*          the tables
curves.png       robust accuracy against eps
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmark.data.choice import Choice
from benchmark.data.dataset import Dataset
from benchmark.data.sets import load_dataset
from benchmark.environment import environment, resolve_device
from benchmark.errors import UserError
from benchmark.folder_lock import alone_in
from benchmark.judge.records import FolderCell, write_json, write_text
from benchmark.keys import Identity, identify_row
from benchmark.models.obtain import obtain
from benchmark.models.others import check_fit, check_sources, fetch, parts_of, sources_of
from benchmark.models.trained import Trained
from benchmark.report import tables
from benchmark.report.left_out import find_left_out
from benchmark.report.report import Report
from benchmark.run.assess import Notify, Settings, assess
from benchmark.run.run_folder import named
from benchmark.run.run_samples import choice_of, identify_samples, relabelled, samples_of
from benchmark.spec.lineup import Lineup, lineup_of
from benchmark.spec.registry import load_plugins
from benchmark.spec.roster import Roster, enrol
from benchmark.spec.run_spec import RunSpec

Say = Callable[[str], None]


def run(spec: RunSpec, folder: Path, root: Path | None, progress: bool, say: Say) -> list[Report]:
    """Carry out a spec in a folder, and report on each defense.

    What the folder already holds is not trained or measured again. `root` is where data sets are
    looked for first, and `say` is called with a line on each thing that is done.

    Raises UserError, SavedModelError or TrainingError, each in one line: UserError also where
    another process works in the folder. What was measured before that stays in the folder.
    """
    # Check all that can be refused before any work is done.
    load_plugins(spec.plugins)
    lineup = lineup_of(spec)
    check_sources(lineup, [component.label for component in spec.defenses])
    roster = enrol(spec.defenses)
    device = resolve_device(spec.device)
    dataset = load_dataset(spec.data, root)
    check_fit(roster, dataset)
    samples = samples_of(dataset, spec)
    data, choice = identify_samples(dataset, spec), choice_of(dataset, spec)

    with alone_in(folder, make=True):
        trained = _train(roster, dataset, spec, folder, device, progress, say)
        peers = fetch(sources_of(lineup), trained)

        # Attack each of them, and note every step in the folder.
        manifest = _begin(folder, spec, lineup, data, choice, len(samples), device)
        settings = Settings(spec.threat, spec.mode, spec.device, spec.block, spec.terms, progress)
        reports = []
        for label, target in trained.items():
            notify = _recorder(folder, manifest, label, target, say)
            try:
                report = assess(
                    label,
                    target.model,
                    relabelled(samples, target.model, spec),
                    lineup,
                    peers,
                    settings,
                    lambda key: FolderCell(folder / "cells" / key),
                    identify_row(target.identity, data),
                    dataset.classes,
                    notify,
                )
            except UserError as error:
                raise UserError(f"{label}: {error}") from error
            report.choice = choice
            reports.append(report)
        find_left_out(reports, folder / "cells", spec.seed)
        tables.write(folder, reports, named(spec, manifest), {"run": manifest})
    return reports


def _train(
    roster: Roster,
    dataset: Dataset,
    spec: RunSpec,
    folder: Path,
    device: torch.device,
    progress: bool,
    say: Say,
) -> dict[str, Trained]:
    """Train the defenses of a run, or load those that its folder has."""
    trained: dict[str, Trained] = {}
    for label, member in roster.items():
        say(f"{label}: getting the model, which is trained unless it was before")
        trained[label] = obtain(
            member, dataset, spec.training_threat, spec.seed, folder / "defenses", device,
            progress, parts_of(member, trained),
        )  # fmt: skip
    return trained


def _begin(
    folder: Path,
    spec: RunSpec,
    lineup: Lineup,
    data: Identity,
    choice: Choice,
    samples: int,
    device: torch.device,
) -> dict[str, Any]:
    """Begin a run in a folder: write its spec, and return its manifest, which has no rows yet."""
    # Tables that an earlier run left in the folder do not belong to this run.
    for name in tables.FILES:
        (folder / name).unlink(missing_ok=True)
    plain = spec.model_dump(mode="json")
    write_text(folder / "spec.yaml", yaml.safe_dump(plain, sort_keys=False))
    return {
        "spec": plain,
        "data": data,
        "samples": samples,
        "choice": dataclasses.asdict(choice),
        "mode": spec.mode,
        "threat": dataclasses.asdict(spec.threat),
        "attacks": list(lineup.entries),
        "environment": environment(device),
        "rows": [],
    }


def _recorder(
    folder: Path, manifest: dict[str, Any], label: str, target: Trained, say: Say
) -> Notify:
    """A function that records how far the assessment of one defense is.

    Each call brings the row of the defense in run.json up to date, and says what was measured.
    """
    assert target.folder is not None
    row: dict[str, Any] = {"defense": label, "model": _relative(target.folder, folder)}
    manifest["rows"].append(row)

    def notify(report: Report, measured: str) -> None:
        row.update(
            flags=sorted(report.flags),
            cells=report.keys,
            errors=report.errors,
            inapplicable=report.inapplicable,
            after=report.after,
            notes=report.notes,
        )
        write_json(folder / "run.json", manifest)
        say(f"{report.name}: {report.summary(measured)}")

    return notify


def _relative(path: Path, folder: Path) -> str:
    """The path of a model as a run's manifest has it.

    It is relative to the run's folder if the model lies in that folder, or in that of another run
    around it, so that these can be moved. It is absolute otherwise.
    """
    path, folder = path.resolve(), folder.resolve()
    outer_runs = [parent for parent in folder.parents if (parent / "run.json").exists()]
    inside = any(map(path.is_relative_to, (folder, *outer_runs)))
    return os.path.relpath(path, folder) if inside else str(path)
