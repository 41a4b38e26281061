"""The assessment of one model: from the model, samples and attacks to a report.

`evaluate` and whole runs share it; they differ in where the records are kept.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from attacks import Attack, ThreatModel
from attacks.messages import described, one_line
from attacks.problem import HasVariants, NotApplicableError
from attacks.wrappers.arms import HasArms
from attacks.wrappers.stages import HasStages
from attacks.wrappers.transfer import HasSurrogate
from benchmark.environment import environment, resolve_device
from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples, measure_attack, measure_natural, measure_radii
from benchmark.judge.examination import check_model, examine
from benchmark.judge.probes import probe
from benchmark.judge.reading import Called, Calling, Reading
from benchmark.judge.records import Cell, IntArray
from benchmark.judge.steadiness import UnsteadyError
from benchmark.judge.subject import Subject, Terms, until_steady
from benchmark.judge.surroundings import undisturbed
from benchmark.keys import (
    Identity,
    identify_attacked,
    identify_certificate,
    identify_natural,
    key_of,
)
from benchmark.models.trained import Trained
from benchmark.report.report import Report
from benchmark.run.progress import attack_bar
from benchmark.spec.components import CERTIFIED, NATURAL
from benchmark.spec.lineup import Entry, Lineup, runs_under
from benchmark.spec.run_spec import Device, Mode
from defenses.certificates import HasCertificate
from defenses.offers import note_of

Cells = Callable[[str], Cell]
Notify = Callable[[Report, str], None]

# What a model may offer beside logits, by the word for it.
OFFERS: dict[str, Any] = {
    "certificate": HasCertificate, "arms": HasArms, "stages": HasStages, "surrogate": HasSurrogate,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model is assessed. The fields mean what they mean in a `RunSpec`."""

    threat: ThreatModel
    mode: Mode
    device: Device
    block: int
    terms: Terms
    progress: bool = False
    under: str = ""  # what tables call the threat, in a run under several

    @property
    def seed(self) -> int:
        return self.terms.seed


@undisturbed()
def assess(
    name: str,
    model: nn.Module,
    samples: Samples,
    lineup: Lineup,
    peers: Mapping[str, Trained],
    settings: Settings,
    cells: Cells,
    about: Identity,
    classes: int | None = None,
    notify: Notify = lambda report, label: None,
) -> Report:
    """Attack a model on samples with every attack of a lineup, and report the outcomes.

    name     how the report calls the model.
    peers    the models that attacks craft points on, by the names that the attacks give them.
    cells    returns the cell in which the records of a key are kept. What a cell holds already is
             not measured again.
    about    what identifies the model and the data; it becomes part of each key.
    classes  how many logits the model must give; any number if None.
    notify   is called with the report and a label as soon as the clean images, the certificate or
             an attack are done.

    An attack or a certificate that raises becomes an error of the report, never a robust score; an
    attack that finds that it does not apply to the model counts for nothing. If the model turns out
    to be random, or to depend on the batch, it is assessed again, as such. Raises UserError where
    the model cannot be evaluated at all.
    """

    def work(subject: Subject) -> Report:
        return _assess(
            name, model, subject, samples, lineup, peers, settings, cells, about, classes, notify
        )

    first_block = samples.x[: settings.block]
    device = resolve_device(settings.device)
    return until_steady(examine(model, first_block, device, settings.terms), work)


def _assess(
    name: str,
    model: nn.Module,
    subject: Subject,
    samples: Samples,
    lineup: Lineup,
    peers: Mapping[str, Trained],
    settings: Settings,
    cells: Cells,
    about: Identity,
    classes: int | None,
    notify: Notify,
) -> Report:
    """Assess a subject, as `assess` does."""
    logit_count = check_model(subject, samples.x[: settings.block], samples.y, classes)
    report = Report(
        name, settings.threat, settings.mode, len(samples), subject.flags, lineup.notes, logit_count
    )
    report.under = settings.under
    if note := note_of(model):
        report.notes.append(f"{name}: {note}")
    # What a randomised model draws depends on the images that are forwarded together.
    traits = subject.traits | ({"block": settings.block} if subject.is_random else {})
    identity = identify_natural(about, subject.device, subject.precision, traits)
    assessment = _Assessment(model, subject, samples, settings, cells, identity, report)

    # Clean images, and whether gradients can be relied on.
    assessment.judge_clean()
    subject.flags |= probe(
        subject, samples, report.survivors(), settings.threat, settings.seed, settings.block
    )
    notify(report, NATURAL)

    # What the model certifies of itself.
    if isinstance(subject.model, HasCertificate):
        assessment.certify()
        notify(report, CERTIFIED)

    if hidden := _hidden(model, subject.model):
        report.notes.append(
            f"{name}: its {' and '.join(hidden)} cannot be used, because it is called in another "
            "way than they are (precision, images at once, outputs, eps by feature)"
        )

    # The attacks.
    entries = {label: suited(subject.model, entry) for label, entry in lineup.entries.items()}
    for label, entry in _ordered(entries, settings.mode):
        assessment.attack(label, entry, peers)
        notify(report, label)
    return report


def _hidden(model: nn.Module, called: nn.Module) -> list[str]:
    """What a model offers that it does not as it is called."""
    return [
        what
        for what, protocol in OFFERS.items()
        if isinstance(model, protocol) and not isinstance(called, protocol)
    ]


@dataclasses.dataclass(frozen=True)
class _Assessment:
    """The measurements on one model: each fills a cell and then enters that cell in the report.

    model     as it was handed over; `subject` is its frozen copy.
    identity  all that determines the verdicts on clean images. Those of the certificate and of
              attacks extend it.
    """

    model: nn.Module
    subject: Subject
    samples: Samples
    settings: Settings
    cells: Cells
    identity: Identity
    report: Report

    def judge_clean(self) -> None:
        """Judge the clean images. Raises UserError where the model fails on some of them."""
        key = key_of(self.identity)
        cell = self.cells(key)
        try:
            measure_natural(self.subject, self.samples, cell, self.settings.block)
        except (UserError, UnsteadyError):
            raise
        except Exception as error:
            raise UserError(f"the model fails on some clean images: {described(error)}") from error
        self._close(cell, self.identity)
        self.report.add(NATURAL, key, cell, None)

    def certify(self) -> None:
        """Measure the radii that the model certifies. Where that fails, the report says why."""
        identity = identify_certificate(self.identity, self.settings.threat)
        key, settings, total = key_of(identity), self.settings, len(self.samples)
        cell, error = self.cells(key), None
        title = f"{self.report.called} {CERTIFIED}"
        with attack_bar(title, total, 0, settings.block, total, settings.progress) as bar:
            try:
                measure_radii(
                    self.subject, self.samples, settings.threat, cell, settings.block, bar.count
                )
            except (UserError, UnsteadyError):
                raise
            except Exception as failure:
                error = described(failure)
        self._close(cell, identity, error=error)
        self.report.certify(key, cell, error)

    def attack(self, label: str, entry: Entry, peers: Mapping[str, Trained]) -> None:
        """Carry out one attack. Where it fails or does not apply, the report says why."""
        attack, settings = entry.attack, self.settings
        samples = self.report.remaining(entry.after)
        used = {name: peers[name] for name in sorted(attack.facts.sources)}
        identity = identify_attacked(
            self.identity, attack, {name: peer.identity for name, peer in used.items()},
            settings.threat, settings.seed, samples, settings.block,
        )  # fmt: skip
        key = key_of(identity)
        cell = self.cells(key)
        error, inapplicable = self._attack(label, attack, samples, used, cell)
        facts = {"error": error, "inapplicable": inapplicable}
        self._close(cell, identity, **facts, **traits(attack, self.model, used))
        self.report.add(label, key, cell, error, entry.after, inapplicable)

    def _attack(
        self,
        label: str,
        attack: Attack,
        samples: IntArray,
        used: Mapping[str, Trained],
        cell: Cell,
    ) -> tuple[str | None, str | None]:
        """Run an attack on the samples at some places, and keep its records in a cell.

        Returns two lines, each None unless it has something to say: why the attack failed, and why
        it does not apply to the model.
        """
        subject, settings = self.subject, self.settings
        title, passes = f"{self.report.called} {label}", attack.facts.passes or 0
        total, block = len(self.samples), settings.block
        if settings.threat.norm not in attack.facts.norms:
            return None, runs_under(attack)
        with attack_bar(title, len(samples), passes, block, total, settings.progress) as bar:
            try:
                models = {name: self._peer(peer.model) for name, peer in used.items()}
                measure_attack(
                    subject, self.samples, samples, settings.threat, attack, settings.seed, cell,
                    block, bar.advance, bar.tick, models,
                )  # fmt: skip
            except (UserError, UnsteadyError):
                raise
            except NotApplicableError as error:
                return None, one_line(error)
            except Exception as error:
                return described(error), None
        return None, None

    def _peer(self, model: nn.Module) -> nn.Module:
        """Another model, as attacks call it. Raises ValueError where it does not run."""
        # What a user says of outputs is about the model, and not about its peers.
        terms = dataclasses.replace(self.settings.terms, reading=Reading())
        first_block = self.samples.x[: self.settings.block]
        try:
            peer = examine(model, first_block, self.subject.device, terms)
        except UserError as error:
            raise ValueError(str(error)) from error
        if peer.dtype == self.subject.dtype:
            return peer.model
        return Called(peer.model, Calling(peer.dtype, self.subject.dtype)).eval()

    def _close(self, cell: Cell, identity: Identity, **facts: Any) -> None:
        """Note in a cell which result it holds, and in which environment it was measured.

        A cell that has the same note from an earlier run keeps the environment of that run.
        """
        note = {"identity": identity, **facts}
        if {key: cell.note.get(key) for key in note} != note:
            cell.close(note | {"environment": environment(self.subject.device)})


def suited(model: nn.Module, entry: Entry) -> Entry:
    """The entry with its attack in the variant for this model; some models need a simpler one."""
    attack = entry.attack
    if not isinstance(attack, HasVariants):
        return entry
    return dataclasses.replace(entry, attack=attack.on(model))


def traits(attack: Attack, model: nn.Module, used: Mapping[str, Trained]) -> dict[str, Any]:
    """The facts about an attack that flags depend on, given the model that is attacked.

    `used` are the models that the attack crafts its points on.
    """
    # A model may be its own source. Its points come from another model then only if it offers
    # attacks a surrogate.
    is_own_source = any(peer.model is model for peer in used.values())
    crafted_elsewhere = not is_own_source or isinstance(model, HasSurrogate)
    return {
        "minimises": attack.facts.minimises,
        "passes": attack.facts.passes,
        "transfers": crafted_elsewhere and attack.facts.transfers,
    }


def _ordered(entries: dict[str, Entry], mode: Mode) -> list[tuple[str, Entry]]:
    """The attacks in the order in which they are carried out.

    That is the order of the lineup. In a cascade the cheapest attack comes first, and attacks of
    unknown cost come last.
    """
    if mode == "table":
        return list(entries.items())

    def cost(item: tuple[str, Entry]) -> float:
        passes = item[1].attack.facts.passes
        return math.inf if passes is None else passes

    return sorted(entries.items(), key=cost)
