"""A run: it trains defenses, attacks them, and keeps all results in one folder.

The folder is enough to resume the run, to show its tables again, and to verify them. It holds:

spec.yaml        what was asked for
run.json         what was measured: a row for each defense, with the keys of its cells
defenses/NAME/   model.safetensors, card.json and log.csv of each trained defense
cells/KEY/       per-sample records and adversarial examples, block by block
table.*          the tables
curves.png       robust accuracy against eps
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from attacks import ThreatModel
from benchmark.data.dataset import Dataset
from benchmark.data.sets import load_dataset
from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples
from benchmark.judge.records import FolderCell, write_json, write_text
from benchmark.judge.subject import check_model, examine, full_precision
from benchmark.keys import Identity, identify_data, identify_row
from benchmark.models.obtain import obtain
from benchmark.models.others import check_fit, check_sources, fetch, parts_of, sources_of
from benchmark.models.trained import Trained
from benchmark.report import tables
from benchmark.report.report import Report
from benchmark.run.assess import Notify, Settings, assess
from benchmark.run.environment import environment, resolve_device
from benchmark.spec.components import CERTIFIED, NATURAL
from benchmark.spec.lineup import lineup_of
from benchmark.spec.registry import load_plugins
from benchmark.spec.roster import enrol
from benchmark.spec.run_spec import RunSpec, make_spec

Say = Callable[[str], None]


def run(spec: RunSpec, folder: Path, root: Path | None, progress: bool, say: Say) -> list[Report]:
    """Carry out a spec in a folder, and report on each defense.

    What the folder already holds is not trained or measured again. `root` is where data sets are
    looked for first, and `say` is called with a line on each thing that is done.

    Raises UserError, SavedModelError or TrainingError, each in one line. What was measured before
    that stays in the folder.
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
    data = identify_data(dataset, spec.split, spec.labels)

    # Train the defenses, or load them.
    trained: dict[str, Trained] = {}
    for label, member in roster.items():
        say(f"{label}: getting the model, which is trained unless it was before")
        trained[label] = obtain(
            member, dataset, spec.training_threat, spec.seed, folder / "defenses", device,
            progress, parts_of(member, trained),
        )  # fmt: skip
    peers = fetch(sources_of(lineup), trained)

    # Attack each of them, and note every step in the folder.
    manifest = _begin(folder, spec, data, len(samples), device)
    settings = Settings(
        spec.threat, spec.mode, spec.seed, spec.device, spec.precision, spec.block, progress
    )
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
        reports.append(report)
    tables.write(folder, reports, named(spec, manifest), {"run": manifest})
    return reports


def _begin(
    folder: Path, spec: RunSpec, data: Identity, samples: int, device: torch.device
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
        "mode": spec.mode,
        "threat": dataclasses.asdict(spec.threat),
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


def named(spec: RunSpec, manifest: dict[str, Any]) -> RunSpec:
    """The spec with the full name of its data set, which a user may have written differently."""
    return spec.model_copy(update={"data": manifest["data"]["name"]})


def samples_of(dataset: Dataset, spec: RunSpec) -> Samples:
    """The images and labels that a spec asks for, the first of their split.

    Raises DataError where the split has fewer.
    """
    split = dataset.first(spec.split, spec.samples)
    return Samples(split.x, split.y, np.arange(len(split.y)))


def samples_again(
    folder: Path, spec: RunSpec, manifest: dict[str, Any], root: Path | None
) -> Samples:
    """Load the plugins of the run in a folder, and the samples that it was measured on.

    Raises UserError where the data set holds other images or labels now.
    """
    load_plugins(spec.plugins)
    dataset = load_dataset(spec.data, root)
    samples = samples_of(dataset, spec)
    if identify_data(dataset, spec.split, spec.labels) != manifest["data"]:
        raise UserError(f"{spec.data} is not the data that {folder} was measured on")
    return samples


@full_precision()
def relabelled(samples: Samples, model: nn.Module, spec: RunSpec) -> Samples:
    """The samples with the labels that count for a model under a spec.

    They are the labels of the data, or, if the spec says so, the model's own predictions.
    """
    if spec.labels == "data":
        return samples
    device = resolve_device(spec.device)
    subject = examine(model, device, getattr(torch, spec.precision))
    check_model(subject, samples.x[: spec.block].to(device, subject.dtype), samples.y, None)
    blocks = zip(samples.x.split(spec.block), samples.y.split(spec.block), strict=True)
    predicted = [subject.judge(x.to(device), y.to(device))[0].cpu() for x, y in blocks]
    return dataclasses.replace(samples, y=torch.cat(predicted).clamp_min(0))


def load_run(folder: Path) -> tuple[RunSpec, dict[str, Any], list[Report]]:
    """The spec, the manifest and the reports of a run, read from its folder without any model.

    The run need not be finished. Raises UserError where the folder holds no run, or a damaged one.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / "run.json").read_text())
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no run with results: name the folder of a run") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'run.json'} is damaged: run the same command again") from error
    try:
        spec = make_spec(manifest["spec"])
        reports = [_load_report(folder, manifest, row) for row in manifest["rows"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / 'run.json'} is damaged, or of another version: run the same command again"
        ) from error
    if (ThreatModel(**manifest["threat"]), manifest["mode"]) != (spec.threat, spec.mode):
        raise UserError(f"{folder / 'run.json'} was changed: its threat or mode is not its spec's")
    return spec, manifest, reports


def _load_report(folder: Path, manifest: dict[str, Any], row: dict[str, Any]) -> Report:
    """The report on a defense, from its row in the manifest and its cells."""
    threat = ThreatModel(**manifest["threat"])
    report = Report(
        row["defense"], threat, manifest["mode"], manifest["samples"], row["flags"], row["notes"]
    )
    for label, key in row["cells"].items():
        cell, error = FolderCell(folder / "cells" / key), row["errors"].get(label)
        if label == CERTIFIED:
            report.certify(key, cell, error)
        else:
            after, inapplicable = row["after"].get(label, ()), row["inapplicable"].get(label)
            report.add(label, key, cell, error, after, inapplicable)
    if NATURAL not in report.keys or NATURAL in report.errors:
        raise UserError(f"{folder}: the clean records of {report.name!r} are not complete")
    return report


def _relative(path: Path, folder: Path) -> str:
    """The path of a model as a run's manifest has it.

    It is relative to the run's folder if the model lies in that folder, or in that of another run
    around it, so that these can be moved. It is absolute otherwise.
    """
    path, folder = path.resolve(), folder.resolve()
    outer_runs = [parent for parent in folder.parents if (parent / "run.json").exists()]
    inside = any(map(path.is_relative_to, (folder, *outer_runs)))
    return os.path.relpath(path, folder) if inside else str(path)
