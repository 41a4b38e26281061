"""The replay of one defense of a run: its records are made again, without attacking.

Every stored adversarial example is judged again, and each certified radius is computed again.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks import ThreatModel
from attacks.messages import described
from benchmark.environment import Device, resolve_device
from benchmark.executors import IN_PROCESS
from benchmark.executors.executor import silent
from benchmark.judge.evaluator import Samples, decisions_on
from benchmark.judge.examination import check_model, examine
from benchmark.judge.records import Block, BoolArray, IntArray, MemoryCell, blocks_of
from benchmark.judge.subject import Judgement, Subject, Terms, until_steady
from benchmark.judge.surroundings import undisturbed
from benchmark.keys import Identity, identify_threat, key_of
from benchmark.models.trained import Trained
from benchmark.report.radii import ROUNDING
from benchmark.report.report import Report
from benchmark.run.draws_replay import replay_draws
from benchmark.run.looking import unprovable
from benchmark.run.measuring import measure_natural, measure_radii
from benchmark.spec.components import CERTIFIED, NATURAL, SEARCH
from defenses.certificates import HasCertificate

# The relative difference that a distance, a sum in float64, may have on another machine.
_ROUNDING = 1e-9


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


@dataclass(frozen=True)
class ReplayedRow:
    """The outcome of replaying one defense.

    report    made from the records that hold.
    verdicts  one for each cell.
    problems  a line for each thing that does not hold.
    """

    report: Report
    verdicts: list[Verdict]
    problems: list[str]


class _Doubled(Subject):
    """A judge that forwards two copies of each batch at once.

    Batches of another size than in the run make other rounding errors. What is wrong in one copy
    only does not count as wrong.
    """

    def judge(
        self,
        points: Tensor,
        y: Tensor,
        number: Tensor | None = None,
        calls: int = 0,
        allowed: int | None = None,
    ) -> Judgement:
        if self.is_random:
            return super().judge(points, y, number, calls, allowed)
        n = len(points)
        twice = super().judge(torch.cat([points, points]), torch.cat([y, y]), allowed=allowed)
        return Judgement.of(twice.predicted[:n], twice.wrong[:n] & twice.wrong[n:])

    def certify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n = len(x)
        predicted, radius = super().certify(torch.cat([x, x]))
        return predicted[:n], radius[:n].minimum(radius[n:])


def examine_twice(model: nn.Module, x: Tensor, device: Device, terms: Terms) -> Subject:
    """A subject that judges as `examine`'s does, but forwards two copies of each batch at once."""
    return _Doubled(**vars(examine(model, x, resolve_device(device), terms)))


@undisturbed()
def replay(
    report: Report,
    errors: Collection[str],
    saved: Trained,
    samples: Samples,
    data: dict[str, str],
    block: int,
    device: Device,
    terms: Terms,
) -> ReplayedRow:
    """Replay one defense, as `verify` does for each.

    report   the report as recorded.
    errors   the labels of the attacks that failed, as recorded.
    saved    the model.
    samples  the samples that it was measured on, `block` at a time.
    data     what identifies these samples.

    terms    on which the model was judged.

    Raises UserError where the model does not run on the samples.
    """
    first_block = samples.x[:block]

    def work(subject: Subject) -> ReplayedRow:
        return _replay(subject, report, errors, saved, samples, data, block)

    return until_steady(examine_twice(saved.model, first_block, device, terms), work)


def _replay(
    subject: Subject,
    report: Report,
    errors: Collection[str],
    saved: Trained,
    samples: Samples,
    data: dict[str, str],
    block: int,
) -> ReplayedRow:
    """Replay the records of a subject, as `replay` does."""
    # What showed only while it was judged need not show now.
    if report.draws and not subject.is_random:
        subject = subject.treated("random")
    if report.is_alone and subject.calling.size != 1:
        subject = subject.treated("batch-dependent")
    logit_count = check_model(subject, samples.x[:block], samples.y, None)
    flags = set(report.flags) | subject.flags
    replayed = Report(
        report.name, report.threat, report.mode, report.total, flags, report.notes, logit_count
    )

    # Replay the clean images, the certificate and the attacks: `lines` say what does not hold.
    verdicts = list[Verdict]()
    natural_cell = MemoryCell()
    measure_natural(subject, samples, natural_cell, block)
    natural_cell.close(report.cells[NATURAL].note)
    replayed.add(NATURAL, report.keys[NATURAL], natural_cell, None)
    lines = {NATURAL: _differences(report, replayed)}
    if CERTIFIED in report.keys:
        verdict, lines[CERTIFIED] = _replay_radii(subject, samples, report, replayed, block)
        verdicts.append(verdict)
    elif isinstance(subject.model, HasCertificate) and report.attacks:
        lines[CERTIFIED] = ["left out, though the model offers a certificate"]
    for label in (*report.attacks, *([SEARCH] if SEARCH in report.keys else [])):
        again = _replay_search if label == SEARCH else _replay_cell
        cell, of_cell, lines[label] = again(subject, samples, report, label)
        inapplicable = report.inapplicable.get(label)
        replayed.add(
            label, report.keys[label], cell, report.errors.get(label),
            report.after.get(label, ()), inapplicable,
        )  # fmt: skip
        if inapplicable is None:
            verdicts += of_cell
    lines[CERTIFIED] = [*lines.get(CERTIFIED, ()), *_refuted(replayed)]

    # Check that the records belong to this model, data and threat, and that nothing else failed.
    problems = []
    for label, problems_of_cell in lines.items():
        if label in report.keys:
            made_with = {"data": data, "allowed": subject.terms.allowed}
            problems_of_cell += _misfits(report, label, made_with, saved.identity["weights"])
        # Records that are lacking are no fault of those that are there: `verify` names them apart.
        unexpected = label in replayed.errors and label not in errors
        if unexpected and label not in report.lacking:
            problems_of_cell.append(replayed.errors[label])
        problems += [f"{report.name} {label}: {line}" for line in problems_of_cell]
    return ReplayedRow(replayed, verdicts, problems)


def _differences(recorded: Report, replayed: Report) -> list[str]:
    """A line for each way in which the recorded and the replayed clean records differ."""
    old, new = (
        report.records.loc[report.records["attack"] == NATURAL] for report in (recorded, replayed)
    )
    differing = {
        column: old[column].to_numpy() != new[column].to_numpy()
        for column in ("index", "label", "broken", "predicted")
    }
    # The class of an unbroken sample may differ: float32 and float64 need not agree on it.
    differing["predicted"] &= new["broken"].to_numpy(dtype=bool)
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
        if not _is_sound(block, samples):
            problems.append("a block of records does not fit the data")
            continue
        judged = _replay_block(subject, samples, block, report.threat)
        replayed.add(judged)
        holding += int((block.broken & judged.broken).sum())
        hidden += int((judged.broken & ~block.broken).sum())
        same = np.isclose(judged.distance, block.distance, _ROUNDING, 0, equal_nan=True)
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


def _replay_radii(
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


# What is not proven again, since it would take as long as it took; and how far a bound may be off
# that another machine rounds otherwise.
_TAKEN, _OF_BOUNDS = ("alpha-crown", "branching", "solver"), 1e-6


def _replay_search(
    subject: Subject, samples: Samples, report: Report, label: str
) -> tuple[MemoryCell, list[Verdict], list[str]]:
    """Replay what the search for proofs showed: its examples as those of an attack, and linear
    bounds of all samples that it tried. Returns what `_replay_cell` does."""
    cell, verdicts, problems = _replay_cell(subject, samples, report, label)
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


def _refuted(replayed: Report) -> list[str]:
    """A line where examples that hold break samples that bounds are said to prove."""
    if replayed.proved is None:
        return []
    samples = [place for place in replayed.contradictions if replayed.proved.proven[place]]
    named = ", ".join(map(str, samples))
    return [f"examples break samples that are said to be proven: {named}"] if samples else []


def _misfits(report: Report, label: str, made_with: Identity, weights: str) -> list[str]:
    """What is wrong with what a cell notes that it was made with; a line at most.

    Where there is no record there need not be a note: `verify` names what is missing apart.
    """
    if not report.cells[label].note:
        if label in report.lacking and not any(True for _ in report.blocks(label, images=False)):
            return []
        return ["cell.json, which says what it was made with, is missing: run it again"]
    is_fit = _is_of(report, label, made_with, weights)
    return [] if is_fit else ["made with other weights, data or threat, or for other classes"]


def _is_of(report: Report, label: str, made_with: Identity, weights: str) -> bool:
    """Whether a cell was made with the run's threat, with these weights, and with parts of its
    identity as they are now."""
    key = report.keys[label]
    identity = report.cells[label].note.get("identity", {})
    threat = identity.get("threat")
    return (
        key_of(identity) == key
        and {part: identity.get(part) for part in made_with} == made_with
        and identity.get("defense", {}).get("weights") == weights
        and (
            identity.get("certificate") == report.threat.norm
            if label == CERTIFIED
            else label == NATURAL or threat == identify_threat(report.threat)
        )
    )


def _is_sound(block: Block, samples: Samples) -> bool:
    """Whether a block can be replayed: its samples exist, and it has a point for each one found."""
    places = block.index
    return (
        bool(((places >= 0) & (places < len(samples))).all())
        and block.adversarial.shape == (block.found.sum(), *samples.x.shape[1:])
        and block.adversarial.dtype in (np.float32, np.float64)
    )


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
