"""The replay of an attack on a randomised model, whose rates are estimated again by fresh draws."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.judge.evaluator import Samples
from benchmark.judge.records import Block, MemoryCell
from benchmark.judge.subject import Subject
from benchmark.report.report import Report

# How many standard deviations two estimates of one rate may differ by.
_SIGMAS = 5.0

# The relative difference that a distance, a sum in float64, may have on another machine.
ROUNDING = 1e-9


def replay_draws(
    subject: Subject, samples: Samples, report: Report, label: str
) -> tuple[MemoryCell, int, int, list[str]]:
    """Judge the examples of a cell again, by other draws than those that were recorded.

    Returns the cell, with its rates as recorded, how many examples it has, for how many of them the
    recorded rate holds, and a line for each thing that does not hold.
    """
    replayed, claimed, holding = MemoryCell(), 0, 0
    outside = misplaced = mislabelled = 0
    recorded, found_now, variance = 0.0, 0.0, 0.0
    for block in report.blocks(label):
        if not is_sound(block, samples):
            return replayed, 0, 0, ["a block of records does not fit the data"]
        replayed.add(replace(block, adversarial=block.adversarial[:0]))
        mislabelled += int((block.label != samples.y.numpy()[block.index]).sum())
        if not block.found.any():
            continue
        rows = torch.from_numpy(block.index[block.found])
        points, clean = torch.from_numpy(block.adversarial), samples.x[rows]
        distance = report.threat.distance(points, clean)
        within = report.threat.around(clean.to(subject.dtype), subject.terms.frozen)
        in_box = (points == within.clamp(points)).flatten(1).all(1)
        known = torch.from_numpy(block.distance[block.found])
        outside += int((~in_box).sum())
        misplaced += int((~torch.isclose(distance, known, ROUNDING, 0)).sum())
        held = (in_box & (distance <= report.threat.eps)).numpy()
        now = _rates(subject, samples, block) * held
        assert block.rate is not None
        then = block.rate[block.found]
        spread = _variance(then, now, subject.terms.draws)
        claimed += len(now)
        # A rate is a number of draws, so estimates may differ by one draw where both are certain.
        slack = _SIGMAS * np.sqrt(spread) + 1 / subject.terms.draws
        assert block.trial is not None
        chosen = block.trial[block.found]  # by which the worst of several points is told
        trials = _SIGMAS * np.sqrt(_variance(chosen, now, subject.terms.draws))
        holds = (np.abs(now - then) <= slack) & (
            np.abs(now - chosen) <= trials + 1 / subject.terms.draws
        )
        holding += int((holds & ((then > 0.5) == block.broken[block.found])).sum())
        recorded, found_now = recorded + then.sum(), found_now + now.sum()
        variance += spread.sum()
    replayed.close(report.cells[label].note)
    problems = [f"{outside} examples lie outside the box"] if outside else []
    if mislabelled:
        problems.append(f"{mislabelled} labels are not those of the data")
    if misplaced:
        problems.append(f"{misplaced} distances are not those of the examples")
    if abs(recorded - found_now) > _SIGMAS * np.sqrt(variance) + 1:
        problems.append(
            f"examples are misclassified {recorded:.1f} times by the records, {found_now:.1f} now"
        )
    if holding < claimed:
        problems.append(f"{claimed - holding} rates do not hold")
    return replayed, claimed, holding, problems


def is_sound(block: Block, samples: Samples) -> bool:
    """Whether a block can be replayed: its samples exist, and it has a point for each one found."""
    places = block.index
    return (
        bool(((places >= 0) & (places < len(samples))).all())
        and block.adversarial.shape == (block.found.sum(), *samples.x.shape[1:])
        and block.adversarial.dtype in (np.float32, np.float64)
    )


def _rates(subject: Subject, samples: Samples, block: Block) -> NDArray[np.float64]:
    """The share of fresh draws in which each example of a block is misclassified."""
    rows = torch.from_numpy(block.index[block.found])
    points, y = torch.from_numpy(block.adversarial), samples.y[rows]
    # Draws are seeded by the samples' numbers; others than in the run are fresh.
    number = torch.from_numpy(samples.number)[rows] + len(samples)
    judged = subject.judge(
        points.to(subject.device), y.to(subject.device), number.to(subject.device),
        allowed=subject.terms.allowed,
    )  # fmt: skip
    rates: NDArray[np.float64] = judged.rate.cpu().numpy()
    return rates


def _variance(
    first: NDArray[np.float64], second: NDArray[np.float64], draws: int
) -> NDArray[np.float64]:
    """The variance of the difference of two estimates of each rate, from so many draws each."""
    rate = (first + second) / 2
    variance: NDArray[np.float64] = 2 * rate * (1 - rate) / draws
    return variance
