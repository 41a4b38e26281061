"""The examples of one attack, judged again."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from attacks import ThreatModel
from benchmark.judge.evaluator import Samples
from benchmark.judge.records import Block, MemoryCell, blocks_of
from benchmark.judge.subject import Subject
from benchmark.report.report import Report
from benchmark.run.replay.draws_replay import ROUNDING, is_sound, replay_draws
from benchmark.spec.components import SEARCH


@dataclass(frozen=True)
class Verdict:
    """The outcome of replaying one cell.

    claimed  how many broken samples, or certified radii, the records have.
    holding  how many of these were found again.
    what     how to put that in words, behind "HOLDING of CLAIMED".
    """

    defense: str
    attack: str
    claimed: int
    holding: int
    what: str = "examples hold"


def replay_cell(
    subject: Subject, samples: Samples, report: Report, label: str
) -> tuple[MemoryCell, list[Verdict], list[str]]:
    """Replay the cell of an attack.

    Returns the cell as it is found now, the verdict on it, and a line for each thing that does not
    hold.
    """
    if subject.is_random:
        cell, claimed, holding, problems = replay_draws(subject, samples, report, label)
        return cell, [Verdict(report.name, label, claimed, holding, "rates hold")], problems
    replayed, problems = MemoryCell(), []
    claimed = holding = hidden = mislabelled = mispredicted = misplaced = 0
    # Proofs of samples that attacks broke since are held against these attacks.
    places = np.arange(report.total) if label == SEARCH else report.places[label]
    for block in blocks_of(report.cells[label], places):
        claimed += int(block.broken.sum())
        if not is_sound(block, samples):
            problems.append("a block of records does not fit the data")
            continue
        judged = _replay_block(subject, samples, block, report.threat)
        replayed.add(judged)
        holding += int((block.broken & judged.broken).sum())
        hidden += int((judged.broken & ~block.broken).sum())
        same = np.isclose(judged.distance, block.distance, ROUNDING, 0, equal_nan=True)
        misplaced += int((~same & (judged.broken == block.broken)).sum())
        mispredicted += int((judged.predicted != block.predicted).sum())
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
    return replayed, [Verdict(report.name, label, claimed, holding)], problems


def _replay_block(subject: Subject, samples: Samples, block: Block, threat: ThreatModel) -> Block:
    """The block with `predicted`, `broken` and `distance` as its examples are judged now."""
    distance, predicted = np.full(len(block.index), np.nan), block.predicted.copy()
    if block.found.any():
        rows = torch.from_numpy(block.index[block.found])
        clean, y = samples.x[rows].to(subject.device), samples.y[rows].to(subject.device)
        points = torch.from_numpy(block.adversarial).to(subject.device)
        within = threat.around(clean.to(subject.dtype), subject.terms.frozen)
        in_box = (points == within.clamp(points)).flatten(1).all(1)
        verdict = subject.judge(points, y, allowed=subject.terms.allowed)
        predicted[block.found] = verdict.predicted.cpu().numpy()
        distances = torch.where(verdict.wrong & in_box, threat.distance(points, clean), torch.nan)
        distance[block.found] = distances.cpu().numpy()
    # The images are not needed any more, and would take memory until the end of the replay.
    no_images = block.adversarial[:0]
    broken = distance <= threat.eps
    stage = np.where(block.broken & ~broken, "", np.asarray(block.stage))
    return replace(
        block, predicted=predicted, broken=broken, distance=distance, adversarial=no_images,
        rate=None, trial=None, stage=stage,
    )  # fmt: skip
