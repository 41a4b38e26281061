"""What was certified or proven, computed again."""

from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from attacks import ThreatModel
from attacks.messages import described
from benchmark.executors import IN_PROCESS
from benchmark.executors.executor import silent
from benchmark.judge.evaluator import Samples, decisions_on
from benchmark.judge.records import BoolArray, IntArray, MemoryCell
from benchmark.judge.subject import Subject
from benchmark.report.radii import ROUNDING
from benchmark.report.report import Report
from benchmark.run.looking import unprovable
from benchmark.run.measuring import measure_radii
from benchmark.run.replay.examples_replay import Verdict, replay_cell
from benchmark.spec.components import CERTIFIED

# What is not proven again, since it would take as long as it took; and how far a bound may be off
# that another machine rounds otherwise.
_TAKEN, _OF_BOUNDS = ("alpha-crown", "branching", "solver"), 1e-6


def replay_radii(
    subject: Subject, samples: Samples, report: Report, replayed: Report, block: int
) -> tuple[Verdict, list[str]]:
    """Compute the certified radii again, and enter them in the replayed report.

    A radius that differs by rounding alone is entered as recorded. Returns the verdict on the
    recorded radii, and a line for what does not hold.
    """
    key, recorded, computed = report.keys[CERTIFIED], report.radii, MemoryCell()
    if recorded is None:
        replayed.certify(key, computed, report.errors[CERTIFIED])
        return Verdict(report.name, CERTIFIED, 0, 0, "radii are found again"), []
    claimed, holding, entered = len(samples), 0, MemoryCell()
    try:
        measure_radii(subject, samples, report.threat, computed, block)
    except Exception as error:
        replayed.certify(key, computed, f"fails now: {described(error)}")
        return Verdict(report.name, CERTIFIED, claimed, 0, "radii are found again"), []
    for radii in computed.blocks():
        radius, right = recorded.radius[radii.index], recorded.right[radii.index]
        close = np.isclose(radius, radii.distance, 0, ROUNDING)
        holding += int((close & (right == ~radii.broken)).sum())
        entered.add(replace(radii, distance=np.where(close, radius, radii.distance)))
    entered.close(report.cells[CERTIFIED].note)
    replayed.certify(key, entered, None)
    differing = [f"{claimed - holding} radii are not as found now"] if holding < claimed else []
    return Verdict(report.name, CERTIFIED, claimed, holding, "radii are found again"), differing


def replay_search(
    subject: Subject, samples: Samples, report: Report, label: str
) -> tuple[MemoryCell, list[Verdict], list[str]]:
    """Replay what the search for proofs showed: its examples as those of an attack, and linear
    bounds of all samples that it tried. Returns what `replay_cell` does."""
    cell, verdicts, problems = replay_cell(subject, samples, report, label)
    if label in report.inapplicable:
        hold = IN_PROCESS.hold(subject)
        if not unprovable(hold, report.threat, samples.x[:1], silent):
            problems.append("is said not to apply to the model, and does")
        return cell, [], problems
    entered, counts, wrong = MemoryCell(), Counter[str](), Counter[str]()
    searching = report.proofs is not None and report.proofs.method == "branch"
    for block in cell.blocks():
        stage, broken = np.asarray(block.stage), block.broken
        try:
            proven, bound = _bounded_again(subject, samples, report.threat, block.index)
        except ValueError as error:
            return cell, verdicts, [*problems, f"fails now: {described(error)}"]
        crown, taken = stage == "crown", np.isin(stage, _TAKEN)
        counts["proofs"] += int((stage != "")[~broken].sum())
        counts.update({name: int((stage == name)[~broken].sum()) for name in _TAKEN})
        counts["again"] += int((crown & proven & ~broken).sum())
        foreign = ~(crown | (stage == "") | (taken & searching))
        loose = ~np.isclose(np.asarray(block.bound), bound, _OF_BOUNDS, _OF_BOUNDS)
        for what, which in (
            ("records name a proof that the run did not ask for", foreign),
            ("proofs by linear bounds are not found again", crown & ~proven),
            ("samples are proven by linear bounds, and not so in the records", proven & ~crown),
            ("bounds are not as found now", loose),
        ):
            wrong[what] += int(which.sum())
        entered.add(replace(block, stage=np.where(crown & ~proven | foreign, "", stage)))
    entered.close(cell.note)
    problems += [f"{count} {what}" for what, count in wrong.items() if count]
    words = [name for name in _TAKEN if counts[name]]
    taken_on = f", {sum(counts[name] for name in words)} taken on their word ({', '.join(words)})"
    what = "proofs made again" + (taken_on if words else "")
    proofs = Verdict(report.name, CERTIFIED, counts["proofs"], counts["again"], what)
    return entered, [*(verdicts if verdicts[0].claimed else []), proofs], problems


def _bounded_again(
    subject: Subject, samples: Samples, threat: ThreatModel, places: IntArray
) -> tuple[BoolArray, NDArray[np.float64]]:
    """Which samples at some places (k,) linear bounds prove, and the bounds (k,). Raises ValueError
    where there are none."""
    rows = torch.from_numpy(places)
    x, y = samples.x[rows].to(subject.device, subject.dtype), samples.y[rows].to(subject.device)
    within = threat.around(x, subject.terms.frozen)
    decisions = decisions_on(subject, x, y, within, "crown")
    robust = np.array([decision.status == "robust" for decision in decisions], dtype=bool)
    return robust, np.array([decision.bound for decision in decisions], dtype=np.float64)


def refuted(replayed: Report) -> list[str]:
    """A line where examples that hold break samples that bounds are said to prove."""
    if replayed.proved is None:
        return []
    samples = [place for place in replayed.contradictions if replayed.proved.proven[place]]
    named = ", ".join(map(str, samples))
    return [f"examples break samples that are said to be proven: {named}"] if samples else []
