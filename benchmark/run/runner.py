"""A run: defenses are trained, attacked and tabled in one folder, from which all can be repeated.

spec.yaml        what was asked for
run.json         what was measured: rows of defenses, and the cells that hold their records
defenses/NAME/   model.safetensors, card.json, log.csv of each trained defense
cells/KEY/       per-sample records and adversarial examples, block by block
table.*          the tables; curves.png, robust accuracy against eps
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
from benchmark.keys import Identity, identify_data
from benchmark.models.obtain import obtain
from benchmark.models.others import check_fit, check_sources, fetch, parts_of, sources_of
from benchmark.models.trained import Trained
from benchmark.report import tables
from benchmark.report.report import Report
from benchmark.run.assess import Notify, Settings, assess
from benchmark.run.environment import environment, resolve_device
from benchmark.spec.components import CERTIFIED, NATURAL
from benchmark.spec.lineup import choose
from benchmark.spec.registry import load_plugins
from benchmark.spec.roster import enrol
from benchmark.spec.run_spec import RunSpec, make_spec

Say = Callable[[str], None]


def run(spec: RunSpec, folder: Path, root: Path | None, progress: bool, say: Say) -> list[Report]:
    """Carry out a spec in a folder; what the folder already holds is not measured again.

    Raises UserError, SavedModelError or TrainingError, each in one line; what was measured before
    stays in the folder.
    """
    # All that can be refused is refused before any work.
    load_plugins(spec.plugins)
    labels = [component.label for component in spec.defenses]
    lineup = choose(spec.suite, spec.attacks, spec.threat, labels)
    check_sources(lineup, labels)
    roster = enrol(spec.defenses)
    device = resolve_device(spec.device)
    dataset = load_dataset(spec.data, root)
    check_fit(roster, dataset)
    samples = samples_of(dataset, spec)
    data = identify_data(dataset, spec.split, spec.labels)

    trained: dict[str, Trained] = {}
    for label, member in roster.items():
        say(f"{label}: getting the model, which is trained unless it was before")
        trained[label] = obtain(
            member, dataset, spec.training_threat, spec.seed, folder / "defenses", device,
            progress, parts_of(member, trained),
        )  # fmt: skip
    peers = fetch(sources_of(lineup), trained)

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
                {"defense": target.identity, "data": data},
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
    """Make a folder this run's own, and give the run's manifest, without rows."""
    # The tables of an earlier run would not be this one's.
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
    """What writes a new row of the manifest whenever a part of its report is done, and says so."""
    assert target.folder is not None
    row: dict[str, Any] = {"defense": label, "model": _relative(target.folder, folder)}
    manifest["rows"].append(row)

    def notify(report: Report, done: str) -> None:
        row.update(
            flags=sorted(report.flags),
            cells=report.keys,
            errors=report.errors,
            inapplicable=report.inapplicable,
            after=report.after,
            notes=report.notes,
        )
        write_json(folder / "run.json", manifest)
        say(f"{report.name}: {report.summary(done)}")

    return notify


def named(spec: RunSpec, manifest: dict[str, Any]) -> RunSpec:
    """The spec with the name that its data set gives itself, however it was written."""
    return spec.model_copy(update={"data": manifest["data"]["name"]})


def samples_of(dataset: Dataset, spec: RunSpec) -> Samples:
    """The first images of the split that a spec asks for. Raises DataError where there are
    fewer."""
    split = dataset.first(spec.split, spec.samples)
    return Samples(split.x, split.y, np.arange(len(split.y)))


def samples_again(
    folder: Path, spec: RunSpec, manifest: dict[str, Any], root: Path | None
) -> Samples:
    """The samples that the run in a folder was measured on, its plugins loaded. Raises UserError
    where its data are other ones now."""
    load_plugins(spec.plugins)
    dataset = load_dataset(spec.data, root)
    samples = samples_of(dataset, spec)
    if identify_data(dataset, spec.split, spec.labels) != manifest["data"]:
        raise UserError(f"{spec.data} is not the data that {folder} was measured on")
    return samples


@full_precision()
def relabelled(samples: Samples, model: nn.Module, spec: RunSpec) -> Samples:
    """The samples, with the model's predictions in place of labels where a spec asks for these."""
    if spec.labels == "data":
        return samples
    device = resolve_device(spec.device)
    subject = examine(model, device, getattr(torch, spec.precision))
    check_model(subject, samples.x[: spec.block].to(device, subject.dtype), samples.y, None)
    blocks = zip(samples.x.split(spec.block), samples.y.split(spec.block), strict=True)
    made = [subject.judge(x.to(device), y.to(device))[0].cpu() for x, y in blocks]
    return dataclasses.replace(samples, y=torch.cat(made).clamp_min(0))


def load_run(folder: Path) -> tuple[RunSpec, dict[str, Any], list[Report]]:
    """Spec, manifest and reports of a run, finished or not, from its records alone.

    Raises UserError where the folder holds none.
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
        raise UserError(f"{folder / 'run.json'} is damaged: run the same command again") from error
    if (ThreatModel(**manifest["threat"]), manifest["mode"]) != (spec.threat, spec.mode):
        raise UserError(f"{folder / 'run.json'} was changed: its threat or mode is not its spec's")
    return spec, manifest, reports


def _load_report(folder: Path, manifest: dict[str, Any], row: dict[str, Any]) -> Report:
    threat = ThreatModel(**manifest["threat"])
    # Runs made before these were recorded lack them.
    after, inapplicable = row.get("after", {}), row.get("inapplicable", {})
    report = Report(
        row["defense"], threat, manifest["mode"], manifest["samples"], row["flags"],
        row.get("notes", ()),
    )  # fmt: skip
    for label, key in row["cells"].items():
        cell, error = FolderCell(folder / "cells" / key), row["errors"].get(label)
        if label == CERTIFIED:
            report.certify(key, cell, error)
        else:
            report.add(label, key, cell, error, after.get(label, ()), inapplicable.get(label))
    if NATURAL not in report.keys or NATURAL in report.errors:
        raise UserError(f"{folder}: the clean records of {report.name!r} are not complete")
    return report


def _relative(path: Path, folder: Path) -> str:
    """A model's path from a run's folder; absolute where neither that folder nor that of a run
    around it holds the model."""
    path, folder = path.resolve(), folder.resolve()
    around = [home for home in folder.parents if (home / "run.json").exists()]
    inside = any(map(path.is_relative_to, (folder, *around)))
    return os.path.relpath(path, folder) if inside else str(path)
