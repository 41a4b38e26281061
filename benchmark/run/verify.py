"""Replaying a run: every stored adversarial example is judged again, each certified radius is
recomputed, and so is the table."""

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks import ThreatModel
from attacks.messages import described
from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples, measure_natural, measure_radii
from benchmark.judge.records import Block, MemoryCell
from benchmark.judge.subject import Subject, check_model, examine, full_precision
from benchmark.keys import key_of
from benchmark.models.trained import Trained, load_saved
from benchmark.report import tables
from benchmark.report.radii import ROUNDING
from benchmark.report.report import Report
from benchmark.run.environment import resolve_device
from benchmark.run.runner import load_run, named, relabelled, samples_again
from benchmark.spec.components import CERTIFIED, NATURAL
from benchmark.spec.run_spec import Device, RunSpec
from defenses.certificates import HasCertificate

# Part of a distance, summed up in float64, by which it may differ on another machine.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """One cell replayed: how many of its broken samples, or of its radii, were claimed, and how
    many hold."""

    defense: str
    attack: str
    claimed: int
    holding: int
    what: str = "examples hold"


@dataclass(frozen=True)
class Replay:
    """A run replayed.

    spec       of the run.
    reports    recomputed from what holds.
    verdicts   of each cell.
    problems   what does not hold, a line each; the run's table holds where there are none.
    """

    spec: RunSpec
    reports: list[Report]
    verdicts: list[Verdict]
    problems: list[str]


@dataclass(frozen=True)
class ReplayedRow:
    """One defense replayed: its report from what holds, the verdict on each cell, and what does not
    hold, a line each."""

    report: Report
    verdicts: list[Verdict]
    problems: list[str]


class _Doubled(Subject):
    """A judge that forwards each batch twice over, so in another size than before."""

    def judge(self, points: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        n = len(points)
        predicted, wrong = super().judge(torch.cat([points, points]), torch.cat([y, y]))
        return predicted[:n], wrong[:n] & wrong[n:]

    def certify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n = len(x)
        predicted, radius = super().certify(torch.cat([x, x]))
        return predicted[:n], radius[:n].minimum(radius[n:])


def examine_twice(model: nn.Module, device: Device) -> Subject:
    """The model as a judge that forwards each batch in another size than it was judged in."""
    return _Doubled(**vars(examine(model, resolve_device(device), torch.float32)))


@full_precision()
def verify(folder: Path, root: Path | None, device: Device) -> Replay:
    """Replay a run's records.

    Every example is forwarded in float32 and in float64, in a batch of another size than it was
    judged in, and must lie in the ball and the box without tolerance. Clean images are judged
    anew, and radii are computed anew, in float64 where the model can. Raises UserError where data
    or models are not those of the run.
    """
    spec, manifest, recorded = load_run(folder)
    given = samples_again(folder, spec, manifest, root)
    rows, problems = [], []
    for report, row in zip(recorded, manifest["rows"], strict=True):
        saved = load_saved(folder / row["model"])
        samples = relabelled(given, saved.model, spec.model_copy(update={"device": device}))
        rows.append(
            replay(report, row["errors"], saved, samples, manifest["data"], spec.block, device)
        )
        problems += rows[-1].problems
    reports = [row.report for row in rows]
    if _table(folder) not in (None, [_numbers(row) for row in tables.plain(reports)]):
        problems.append(f"{tables.JSON} says otherwise")
    verdicts = [verdict for row in rows for verdict in row.verdicts]
    return Replay(named(spec, manifest), reports, verdicts, problems)


@full_precision()
def replay(
    report: Report,
    errors: Collection[str],
    saved: Trained,
    samples: Samples,
    data: dict[str, str],
    block: int,
    device: Device,
) -> ReplayedRow:
    """Replay one defense: see `verify`.

    report   as recorded; `errors`, the labels that its record says failed.
    samples  that it was measured on, `block` at once; data, what tells them from others.

    Raises UserError where the model does not run on them.
    """
    verdicts = []
    subject = examine_twice(saved.model, device)
    # A model that cannot be run in float64 is judged, as in the run, without.
    columns = check_model(subject, samples.x[:block].to(subject.device), samples.y, None)
    flags = set(report.flags) | subject.flags
    again = Report(
        report.name, report.threat, report.mode, report.total, flags, report.notes, columns
    )
    natural = MemoryCell()
    measure_natural(subject, samples, natural, block)
    again.add(NATURAL, report.keys[NATURAL], natural, None)
    found = {NATURAL: _differing(report, again)}
    if CERTIFIED in report.keys:
        verdict, found[CERTIFIED] = _replay_radii(subject, samples, report, again, block)
        verdicts.append(verdict)
    elif isinstance(subject.model, HasCertificate) and report.attacks:
        found[CERTIFIED] = ["left out, though the model offers a certificate"]
    for label in report.attacks:
        replayed, verdict, found[label] = _replay_cell(subject, samples, report, label)
        inapplicable = report.inapplicable.get(label)
        again.add(
            label, report.keys[label], replayed, report.errors.get(label),
            report.after.get(label, ()), inapplicable,
        )  # fmt: skip
        if inapplicable is None:
            verdicts.append(verdict)
    problems = []
    for label, lines in found.items():
        if label in report.keys and not _is_of(report, label, data, saved.identity["weights"]):
            lines.append("made with other weights, data or threat")
        if label in again.errors and label not in errors:
            lines.append(again.errors[label])
        problems += [f"{report.name} {label}: {line}" for line in lines]
    return ReplayedRow(again, verdicts, problems)


def _differing(report: Report, again: Report) -> list[str]:
    """Whether the clean records are what they are found to be now: a line for what is not."""
    before, now = (
        records.loc[records["attack"] == NATURAL] for records in (report.records, again.records)
    )
    differing = {
        column: before[column].to_numpy() != now[column].to_numpy()
        for column in ("index", "label", "broken", "predicted")
    }
    # Elsewhere it may be another in one precision alone, which is rounding.
    differing["predicted"] &= now["broken"].to_numpy(dtype=bool)
    meanings = (
        "samples are not those of the data",
        "labels are not those of the data",
        "records are not as found now",
        "predicted classes are not as found now",
    )
    counts = [int(places.sum()) for places in differing.values()]
    return [f"{count} {what}" for count, what in zip(counts, meanings, strict=True) if count]


def _replay_cell(
    subject: Subject, samples: Samples, report: Report, label: str
) -> tuple[MemoryCell, Verdict, list[str]]:
    """One cell as it is found now, its verdict, and a line for each thing that does not hold."""
    replayed, problems = MemoryCell(), []
    claimed = holding = hidden = mislabelled = mispredicted = misplaced = 0
    for block in report.blocks(label):
        claimed += int(block.broken.sum())
        if not _is_sound(block, samples):
            problems.append("a block of records does not fit the data")
            continue
        now = _replay(subject, samples, block, report.threat)
        replayed.add(now)
        holding += int((block.broken & now.broken).sum())
        hidden += int((now.broken & ~block.broken).sum())
        same = np.isclose(now.distance, block.distance, _ROUNDING, 0, equal_nan=True)
        misplaced += int((~same & (now.broken == block.broken)).sum())
        mispredicted += int((now.predicted != block.predicted).sum())
        mislabelled += int((block.label != samples.y.numpy()[block.index]).sum())
    replayed.close(report.cells[label].note)
    for count, what in (
        (claimed - holding, "examples do not hold"),
        (hidden, "samples recorded as unbroken are broken by their own examples"),
        (misplaced, "distances are not those of the examples"),
        (mispredicted, "predicted classes are not those of the examples"),
        (mislabelled, "labels are not those of the data"),
    ):
        if count:
            problems.append(f"{count} {what}")
    return replayed, Verdict(report.name, label, claimed, holding), problems


def _replay_radii(
    subject: Subject, samples: Samples, report: Report, again: Report, block: int
) -> tuple[Verdict, list[str]]:
    """Take radii as they are found now into the new report: the verdict on those recorded, and a
    line for what does not hold. Where they agree but for rounding, those recorded are taken."""
    key, recorded, now = report.keys[CERTIFIED], report.radii, MemoryCell()
    if recorded is None:
        again.certify(key, now, report.errors[CERTIFIED])
        return Verdict(report.name, CERTIFIED, 0, 0, "radii are found again"), []
    claimed, holding, replayed = len(samples), 0, MemoryCell()
    try:
        measure_radii(subject, samples, report.threat, now, block)
    except Exception as error:
        again.certify(key, now, f"fails now: {described(error)}")
        return Verdict(report.name, CERTIFIED, claimed, 0, "radii are found again"), []
    for part in now.blocks():
        before, right = recorded.radius[part.index], recorded.right[part.index]
        close = np.isclose(before, part.distance, 0, ROUNDING)
        holding += int((close & (right == ~part.broken)).sum())
        replayed.add(replace(part, distance=np.where(close, before, part.distance)))
    again.certify(key, replayed, None)
    differing = [f"{claimed - holding} radii are not as found now"] if holding < claimed else []
    return Verdict(report.name, CERTIFIED, claimed, holding, "radii are found again"), differing


def _is_of(report: Report, label: str, data: dict[str, str], weights: str) -> bool:
    """Whether a cell was made with the run's data and threat and with these weights."""
    key = report.keys[label]
    identity = report.cells[label].note.get("identity", {})
    threat = identity.get("threat")
    return (
        key_of(identity) == key
        and identity.get("data") == data
        and identity.get("defense", {}).get("weights") == weights
        and (
            identity.get("certificate") == report.threat.norm
            if label == CERTIFIED
            else label == NATURAL or threat == dataclasses.asdict(report.threat)
        )
    )


def _is_sound(block: Block, samples: Samples) -> bool:
    """Whether a block can be replayed: places that there are, and a point for each it found."""
    places = block.index
    return (
        bool(((places >= 0) & (places < len(samples))).all())
        and block.adversarial.shape == (block.found.sum(), *samples.x.shape[1:])
        and block.adversarial.dtype in (np.float32, np.float64)
    )


def _replay(subject: Subject, samples: Samples, block: Block, threat: ThreatModel) -> Block:
    """The block with `predicted`, `broken` and `distance` as they are found now, whatever it
    claims."""
    distance, predicted = np.full(len(block.index), np.nan), block.predicted.copy()
    if block.found.any():
        rows = torch.from_numpy(block.index[block.found])
        clean, y = samples.x[rows].to(subject.device), samples.y[rows].to(subject.device)
        points = torch.from_numpy(block.adversarial).to(subject.device)
        in_box = (points == threat.clamp(points)).flatten(1).all(1)
        classes, wrong = subject.judge(points, y)
        predicted[block.found] = classes.cpu().numpy()
        found = torch.where(wrong & in_box, threat.distance(points, clean), torch.nan)
        distance[block.found] = found.cpu().numpy()
    # Its images have done their work: keeping them would add up over the run.
    nothing = block.adversarial[:0]
    broken = distance <= threat.eps
    return replace(
        block, predicted=predicted, broken=broken, distance=distance, adversarial=nothing
    )


def _table(folder: Path) -> list[dict[str, Any]] | None:
    """The numbers in table.json; None where the run was not finished."""
    path = folder / tables.JSON
    try:
        return [_numbers(row) for row in json.loads(path.read_text())["rows"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: `bestattack report` writes it anew") from error


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    numbers = {key: row[key] for key in ("defense", "natural", "per_attack", "best_attack")}
    # Tables made before there were certificates lack these.
    return (
        numbers
        | {"certified": None, "contradictions": []}
        | {key: row[key] for key in ("certified", "contradictions") if key in row}
    )
