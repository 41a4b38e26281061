"""The assessment of one model: from the model, samples and attacks to a report.

`evaluate` and whole runs share it; they differ in where the records are kept.
"""

import asyncio
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from attacks import Attack, ThreatModel
from attacks.messages import described, one_line
from attacks.problem import NotApplicableError
from attacks.wrappers.transfer import HasSurrogate
from benchmark.environment import Device
from benchmark.errors import UserError
from benchmark.executors import IN_PROCESS, Executor, Held, WorkerLostError, in_order
from benchmark.executors.executor import FIRST, Tell, silent
from benchmark.executors.progress import AttackBar, underway
from benchmark.executors.resources import whole_gpu
from benchmark.judge.evaluator import (
    Samples,
    attack_block,
    certify_block,
    judge_block,
    prove_block,
)
from benchmark.judge.examination import note_on_mode
from benchmark.judge.probes import PROBED, probe
from benchmark.judge.records import Block, Cell, IntArray
from benchmark.judge.steadiness import UnsteadyError
from benchmark.judge.subject import Subject, Terms
from benchmark.keys import (
    Identity,
    identify_attacked,
    identify_certificate,
    identify_natural,
    identify_search,
    key_of,
)
from benchmark.models.trained import Trained
from benchmark.report.report import Report
from benchmark.run.looking import (
    Seen,
    answer,
    check,
    check_answer,
    look,
    peer_of,
    treated,
    unprovable,
)
from benchmark.run.measuring import Advance, measured
from benchmark.spec.components import CERTIFIED, NATURAL, SEARCH
from benchmark.spec.lineup import Entry, Lineup, runs_under
from benchmark.spec.proof_setting import Proofs
from benchmark.spec.run_spec import Mode
from defenses.offers import note_of

Cells = Callable[[str], Cell]
Notify = Callable[[Report, str], None]

# At how many images workers must give the same logits as this process.
_COMPARED = 4

# How many samples are proven at once: few, so that an interruption loses little.
PROVEN_AT_ONCE = 16

# The passes that an attack spends on an image, roughly, where it does not say how many it can.
USUAL_PASSES = 150


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model is assessed, and what carries that out. The fields mean what they mean in a
    `RunSpec`."""

    threat: ThreatModel
    mode: Mode
    device: Device
    block: int
    terms: Terms
    progress: bool = False
    under: str = ""  # what tables call the threat, in a run under several
    executor: Executor = IN_PROCESS
    certify: Proofs | None = None

    @property
    def seed(self) -> int:
        return self.terms.seed


async def assessed(
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
    began: Notify = lambda report, label: None,
) -> Report:
    """Attack a model on samples with every attack of a lineup, and report the outcomes.

    name     how the report calls the model.
    peers    the models that attacks craft points on, by the names that the attacks give them.
    cells    returns the cell in which the records of a key are kept. What a cell holds already is
             not measured again.
    about    what identifies the model and the data; it becomes part of each key.
    classes  how many logits the model must give; any number if None.
    notify   is called with the report and a label as soon as the clean images, the certificate or
             an attack are done, and all before it in the lineup; began, once it is under way.

    An attack or a certificate that raises becomes an error of the report, never a robust score; an
    attack that finds that it does not apply to the model counts for nothing. If the model turns out
    to be random, or to depend on the batch, it is assessed again, as such. Raises UserError where
    the model cannot be evaluated at all.
    """
    executor, first_block = settings.executor, samples.x[: settings.block]
    held, device = executor.hold(model), executor.device(settings.device)
    whole = whole_gpu(device)
    subject = await executor.keep(look, held, first_block, device, settings.terms, share=whole)
    if executor.width > 1:
        some = first_block[:_COMPARED]
        theirs = await executor.do(answer, subject, some, share=whole)
        check_answer(model, some, settings.terms, theirs)
    while True:
        seen = await executor.do(
            check, subject, held, first_block, samples.y, classes, lineup.entries, settings.block,
            executor.beside, share=whole,
        )  # fmt: skip
        assessment = _Assessment(
            name,
            model,
            subject,
            seen,
            samples,
            settings,
            cells,
            about,
            lineup,
            peers,
            notify,
            began,
        )
        try:
            return await assessment.report_of_all()
        except UnsteadyError as found:
            subject = await executor.keep(treated, subject, found.kind, share=whole)


class _Assessment:
    """The measurements on one model: each fills a cell and then enters that cell in the report.

    Fields are the arguments of `assessed`, and what a look at the model told.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        subject: Held[Subject],
        seen: Seen,
        samples: Samples,
        settings: Settings,
        cells: Cells,
        about: Identity,
        lineup: Lineup,
        peers: Mapping[str, Trained],
        notify: Notify,
        began: Notify,
    ) -> None:
        self.model, self.subject, self.seen = model, subject, seen
        self.samples, self.settings, self.cells = samples, settings, cells
        self.notify, self.began = notify, began
        self.peers, self.executor, self.in_order = peers, settings.executor, lineup.in_order
        self._known: dict[str, Held[nn.Module]] = {}
        self._looking = asyncio.Lock()
        self.report = Report(
            name, settings.threat, settings.mode, len(samples), seen.flags, lineup.notes,
            seen.logits,
        )  # fmt: skip
        self.report.under = settings.under
        for note in (note_of(model), note_on_mode(model)):
            if note:
                self.report.notes.append(f"{name}: {note}")
        # What a randomised model draws, or one that calls change gives, depends on the images that
        # are forwarded together.
        of_block = {} if seen.is_divisible else {"block": settings.block}
        self.identity = identify_natural(
            about, seen.device, seen.precision, dict(seen.traits) | of_block
        )

    async def report_of_all(self) -> Report:
        """Measure all there is to measure."""
        report, settings = self.report, self.settings
        # Clean images, and whether gradients can be relied on.
        await self.judge_clean()
        some = self.samples.at(report.survivors()[:PROBED])
        misleading = await self.executor.do(
            probe, self.subject, settings.threat, settings.seed, self._at_once, some,
            share=self.seen.share,
        )  # fmt: skip
        report.noted = {*report.noted, *misleading}
        self.notify(report, NATURAL)

        # What the model certifies of itself, and whether more can be proven, once attacks are done.
        if self.seen.certifies:
            await self.certify()
            self.notify(report, CERTIFIED)
        proofs = settings.certify
        if proofs is not None and (why := await self._unprovable()):
            self._search_done(proofs, self._cell_of(proofs), (), inapplicable=why)
            proofs = None

        if self.seen.hidden:
            report.notes.append(
                f"{report.name}: its {' and '.join(self.seen.hidden)} cannot be used, because it "
                "is called in another way than they are (precision, images at once, outputs, eps "
                "by feature)"
            )

        # The attacks. They enter the report in order, each as soon as those before it have.
        by_cost = settings.mode == "cascade" and not self.in_order
        ordered = _ordered(self.seen.entries, by_cost)
        entered = {label: asyncio.Event() for label, _ in ordered}
        begun = []
        for place, (label, entry) in enumerate(ordered):
            before = entry.after if settings.mode == "table" else list(entered)[:place]
            waits = [entered[other] for other in before if other in entered]
            begun.append(self.executor.begin(self.attack(label, entry, waits)))
        labels = iter(entered)
        async for enter in in_order(begun):
            enter()
            label = next(labels)
            entered[label].set()
            self.notify(report, label)
        if proofs is not None:
            await self.prove(proofs)
        return report

    async def _unprovable(self) -> str:
        """Why no bounds can be had of the model; empty where they can."""
        return await self.executor.do(
            unprovable, self.subject, self.settings.threat, self.samples.x[:1],
            share=self.seen.share,
        )  # fmt: skip

    async def judge_clean(self) -> None:
        """Judge the clean images. Raises UserError where the model fails on some of them."""
        key = key_of(self.identity)
        cell = self.cells(key)
        try:
            await self._measured(partial(judge_block, self.subject), NATURAL, cell)
        except (UserError, UnsteadyError):
            raise
        except Exception as error:
            raise UserError(f"the model fails on some clean images: {described(error)}") from error
        self._close(cell, self.identity)
        self.report.add(NATURAL, key, cell, None)

    async def certify(self) -> None:
        """Measure the radii that the model certifies. Where that fails, the report says why."""
        identity = identify_certificate(self.identity, self.settings.threat)
        key = key_of(identity)
        cell, everything = self.cells(key), np.arange(len(self.samples))
        self.report.begin(CERTIFIED, key, cell)
        self.began(self.report, CERTIFIED)
        unit = partial(certify_block, self.subject, self.settings.threat)
        error = await self._proven(CERTIFIED, unit, cell, everything)
        self._close(cell, identity, error=error)
        self.report.certify(key, cell, error)

    async def prove(self, proofs: Proofs) -> None:
        """Let bounds prove, or their search break, what attacks left and the model does not certify
        itself. Where that fails, the report says why."""
        after = tuple(self.report.measured)
        places = self.report.expected(SEARCH, after)
        unit = partial(
            prove_block, self.subject, self.settings.threat, proofs.method, proofs.seconds
        )
        weight = PROVEN_AT_ONCE * proofs.seconds if proofs.method == "branch" else FIRST
        cell = self._cell_of(proofs)
        self.report.begin(SEARCH, key_of(self._identity_of(proofs)), cell, after)
        self.began(self.report, SEARCH)
        error = await self._proven(SEARCH, unit, cell, places, PROVEN_AT_ONCE, weight)
        self._search_done(proofs, cell, after, error=error)

    def _identity_of(self, proofs: Proofs) -> Identity:
        return identify_search(self.identity, self.settings.threat, proofs)

    def _cell_of(self, proofs: Proofs) -> Cell:
        return self.cells(key_of(self._identity_of(proofs)))

    def _search_done(
        self,
        proofs: Proofs,
        cell: Cell,
        after: Sequence[str],
        error: str | None = None,
        inapplicable: str | None = None,
    ) -> None:
        """Note what became of the search for proofs, and enter it in the report."""
        identity = self._identity_of(proofs)
        self._close(cell, identity, error=error, inapplicable=inapplicable)
        self.report.add(SEARCH, key_of(identity), cell, error, after, inapplicable)
        self.notify(self.report, SEARCH)

    async def _proven(
        self,
        label: str,
        unit: Callable[..., Block],
        cell: Cell,
        places: IntArray,
        at_once: int | None = None,
        weight: float = FIRST,
    ) -> str | None:
        """Keep what a unit proves of the samples at some places. Returns why it failed, in a line,
        unless it did not."""
        with self._bar(f"{self.report.called} {CERTIFIED}", len(places), 0) as bar:
            try:
                await self._measured(
                    unit, label, cell, places, lambda count, *_: bar.count(count), weight=weight,
                    at_once=at_once,
                )  # fmt: skip
            except WorkerLostError as failure:
                return one_line(failure)
            except (UserError, UnsteadyError):
                raise
            except Exception as failure:
                return described(failure)
        return None

    async def attack(
        self, label: str, entry: Entry, before: Sequence[asyncio.Event]
    ) -> Callable[[], None]:
        """Carry out one attack, once all `before` are in the report. Where it fails or does not
        apply, the report says why. Returns what enters it in the report."""
        for other in before:
            await other.wait()
        attack, settings = entry.attack, self.settings
        samples = self.report.remaining(entry.after)
        used = {name: self.peers[name] for name in sorted(attack.facts.sources)}
        identity = identify_attacked(
            self.identity, attack, {name: peer.identity for name, peer in used.items()},
            settings.threat, settings.seed, samples, settings.block,
        )  # fmt: skip
        key = key_of(identity)
        cell = self.cells(key)
        self.report.begin(label, key, cell, entry.after)
        self.began(self.report, label)
        error, inapplicable = await self._attack(label, attack, samples, used, cell)
        facts = {"error": error, "inapplicable": inapplicable}
        self._close(cell, identity, **facts, **traits(attack, self.model, used))
        return partial(self.report.add, label, key, cell, error, entry.after, inapplicable)

    async def _attack(
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
        settings = self.settings
        title, passes = f"{self.report.called} {label}", attack.facts.passes or 0
        if settings.threat.norm not in attack.facts.norms:
            return None, runs_under(attack)
        with self._bar(title, len(samples), passes) as bar:
            try:
                peers = {name: await self._peer(name) for name in used}
                unit = partial(
                    attack_block, self.subject, settings.threat, attack, settings.seed, peers
                )
                # Roughly how long a batch takes: what its passes do, by the clean images.
                clean = self.report.seconds[NATURAL] / len(self.samples)
                weight = clean * (attack.facts.passes or USUAL_PASSES)
                # Calls within a block are shown where one block is worked on at a time.
                tick = bar.tick if self.executor.width == 1 else silent
                await self._measured(
                    unit, label, cell, samples, bar.advance, tick, weight, attack.facts.by_block
                )
            except WorkerLostError as error:
                return one_line(error), None
            except (UserError, UnsteadyError):
                raise
            except NotApplicableError as error:
                return None, one_line(error)
            except Exception as error:
                return described(error), None
        return None, None

    async def _peer(self, name: str) -> Held[nn.Module]:
        """Another model, as attacks on this one call it."""
        async with self._looking:
            if name not in self._known:
                first_block = self.samples.x[: self.settings.block]
                self._known[name] = await self.executor.keep(
                    peer_of, self.executor.hold(self.peers[name].model), self.subject, first_block,
                    share=self.seen.share,
                )  # fmt: skip
            return self._known[name]

    @property
    def _at_once(self) -> int:
        """How many samples are worked on at once."""
        return self.seen.at_once if self.seen.is_divisible else self.settings.block

    @contextmanager
    def _bar(self, title: str, samples: int, passes: int) -> Iterator[AttackBar]:
        """Show how far a measurement of so many samples is, while the context lasts."""
        settings = self.settings
        with underway(title, samples, settings.progress, self.executor.at_work) as work:
            # Blocks that are worked on beside each other have no calls in common.
            passes = passes if self.executor.width == 1 else 0
            yield AttackBar(work, samples, passes, settings.block, len(self.samples))

    async def _measured(
        self,
        unit: Callable[..., Block],
        label: str,
        cell: Cell,
        samples: IntArray | None = None,
        advance: Advance = lambda samples, broken, kept=False: None,
        tell: Tell = silent,
        weight: float = FIRST,
        by_block: bool = False,
        at_once: int | None = None,
    ) -> None:
        """Measure samples, all by default, under a label, and keep the records in a cell.
        `by_block` says that they depend on which samples are in a block, and `at_once` how many are
        in one at most."""
        self.report.kept[label] = 0

        def count(samples: int, broken: int, kept: bool = False) -> None:
            self.report.kept[label] += samples if kept else 0
            advance(samples, broken, kept)

        index = np.arange(len(self.samples)) if samples is None else samples
        size = self.settings.block if by_block else min(self._at_once, at_once or self._at_once)
        await measured(
            unit, self.samples, index, cell, size, self.executor, count, tell,
            self.seen.is_divisible and not by_block, weight, self.seen.share,
        )  # fmt: skip

    def _close(self, cell: Cell, identity: Identity, **facts: Any) -> None:
        """Note in a cell which result it holds, and in which environment it was measured.

        A cell that has the same note from an earlier run keeps the environment of that run.
        """
        note = {"identity": identity, **facts}
        if {key: cell.note.get(key) for key in note} != note:
            cell.close(note | {"environment": self.seen.environment})


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


def _ordered(entries: dict[str, Entry], by_cost: bool) -> list[tuple[str, Entry]]:
    """The attacks in the order in which they are carried out.

    That is the order of the lineup. `by_cost`, as in a cascade whose order was not learned, the
    cheapest attack comes first, and attacks of unknown cost come last.
    """
    if not by_cost:
        return list(entries.items())

    def cost(item: tuple[str, Entry]) -> float:
        passes = item[1].attack.facts.passes
        return math.inf if passes is None else passes

    return sorted(entries.items(), key=cost)
