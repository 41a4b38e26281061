"""The replay of one defense of a run: its records are made again, without attacking.

Every stored adversarial example is judged again, and each certified radius is computed again.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmark.environment import Device, resolve_device
from benchmark.judge.evaluator import Samples
from benchmark.judge.examination import check_model, examine
from benchmark.judge.records import MemoryCell
from benchmark.judge.subject import Judgement, Subject, Terms, until_steady
from benchmark.judge.surroundings import undisturbed
from benchmark.keys import Identity, identify_threat, key_of
from benchmark.models.trained import Trained
from benchmark.report.report import Report
from benchmark.run.measuring import measure_natural
from benchmark.run.replay.examples_replay import Verdict, replay_cell
from benchmark.run.replay.proofs_replay import refuted, replay_radii, replay_search
from benchmark.spec.components import CERTIFIED, NATURAL, SEARCH
from defenses.certificates import HasCertificate


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
        verdict, lines[CERTIFIED] = replay_radii(subject, samples, report, replayed, block)
        verdicts.append(verdict)
    elif isinstance(subject.model, HasCertificate) and report.attacks:
        lines[CERTIFIED] = ["left out, though the model offers a certificate"]
    for label in (*report.attacks, *([SEARCH] if SEARCH in report.keys else [])):
        again = replay_search if label == SEARCH else replay_cell
        cell, of_cell, lines[label] = again(subject, samples, report, label)
        inapplicable = report.inapplicable.get(label)
        replayed.add(
            label, report.keys[label], cell, report.errors.get(label),
            report.after.get(label, ()), inapplicable,
        )  # fmt: skip
        if inapplicable is None:
            verdicts += of_cell
    lines[CERTIFIED] = [*lines.get(CERTIFIED, ()), *refuted(replayed)]

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
