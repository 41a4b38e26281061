"""Replaying a run: every stored adversarial example is judged again, and the table recomputed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from attacks import ThreatModel
from benchmark.assess import resolve_device
from benchmark.data import load_dataset
from benchmark.errors import UserError
from benchmark.evaluator import Samples, measure_natural
from benchmark.models import data_identity, load_saved
from benchmark.records import Block, FolderCell, MemoryCell
from benchmark.registry import load_plugin
from benchmark.report import NATURAL, Report
from benchmark.runner import load_run, test_samples
from benchmark.spec import Device
from benchmark.subject import Subject, under_evaluation


@dataclass(frozen=True)
class Verdict:
    """One cell replayed: how many of its broken samples were claimed, and how many hold."""

    defense: str
    attack: str
    claimed: int
    holding: int


def verify(
    folder: Path, root: Path | None, device: Device
) -> tuple[str, list[Report], list[Report], list[Verdict]]:
    """The data's name, the reports as recorded and as recomputed from what holds, and each cell's
    verdict.

    Every example is forwarded in float32 and in float64, in batches of another size than those it
    was made in, and must lie in the ball and the box without tolerance. Raises UserError where data
    or models are not those of the run.
    """
    spec, manifest, recorded = load_run(folder)
    for plugin in spec.plugins:
        load_plugin(plugin)
    dataset = load_dataset(spec.data, root)
    samples = test_samples(dataset, spec)
    if data_identity(dataset, len(samples)) != manifest["data"]:
        raise UserError(f"{spec.data} is not the data that {folder} was measured on")
    # Coprime to any power of two, and so to the usual block sizes.
    batch = spec.block // 2 + 1 if spec.block > 2 else spec.block + 1
    recomputed, verdicts = [], []
    for report, row in zip(recorded, manifest["rows"], strict=True):
        model = load_saved(folder / row["model"]).model
        again = Report(report.name, report.threat, report.mode, report.total, report.flags)
        with under_evaluation(model, resolve_device(device), torch.float32) as subject:
            natural = MemoryCell()
            measure_natural(subject, samples, natural, batch)
            again.add(NATURAL, report.keys[NATURAL], natural, None)
            for label in report.attacks:
                cell = FolderCell(folder / "cells" / report.keys[label])
                replayed = MemoryCell()
                for block in cell.blocks():
                    replayed.add(_replay(subject, samples, block, report.threat, batch))
                replayed.close(cell.note)
                again.add(label, report.keys[label], replayed, report.errors.get(label))
                claimed = sum(int(block.broken.sum()) for block in cell.blocks())
                holding = sum(int(block.broken.sum()) for block in replayed.blocks())
                verdicts.append(Verdict(report.name, label, claimed, holding))
        recomputed.append(again)
    return dataset.name, recorded, recomputed, verdicts


def _replay(
    subject: Subject, samples: Samples, block: Block, threat: ThreatModel, batch: int
) -> Block:
    """The block with `broken` and `distance` as they are found now, for the samples it claims."""
    distance = np.full(len(block.index), np.nan)
    for places, points in _batches(block, batch):
        rows = torch.from_numpy(block.index[places])
        clean, y = samples.x[rows].to(subject.device), samples.y[rows].to(subject.device)
        points = points.to(subject.device)
        in_box = (points == threat.clamp(points)).flatten(1).all(1)
        _, wrong = subject.judge(points.to(clean.dtype), y)
        found = torch.where(wrong & in_box, threat.distance(points, clean), torch.nan)
        distance[places] = found.cpu().numpy()
    return replace(block, broken=block.broken & (distance <= threat.eps), distance=distance)


def _batches(block: Block, batch: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    places = np.flatnonzero(block.found)
    for start in range(0, len(places), batch):
        part = slice(start, start + batch)
        yield places[part], torch.from_numpy(block.adversarial[part])
