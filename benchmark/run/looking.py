"""Looks at a model before it is measured, which are units of work: see `benchmark.executors`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attacks import ThreatModel
from attacks.generators import seeded
from attacks.messages import one_line
from attacks.problem import HasVariants
from attacks.wrappers.arms import HasArms
from attacks.wrappers.stages import HasStages
from attacks.wrappers.transfer import HasSurrogate
from benchmark.environment import environment
from benchmark.errors import UserError
from benchmark.executors import Held
from benchmark.executors.executor import Tell
from benchmark.executors.resources import share_of_gpu, usable_memory
from benchmark.judge.evaluator import read_of
from benchmark.judge.examination import check_model, examine
from benchmark.judge.footprint import footprint_of
from benchmark.judge.reading import Called, Calling, Reading, as_called
from benchmark.judge.replica import freeze, reseed
from benchmark.judge.steadiness import Kind, call, differ
from benchmark.judge.subject import LOOKED_AT, Subject, Terms
from benchmark.judge.surroundings import undisturbed
from benchmark.spec.lineup import Entry
from benchmark.spec.proof_setting import not_provable
from defenses.certificates import HasCertificate

# How far logits may be off that other hardware rounds otherwise, as a part of the largest.
_ROUNDED = 1e-4

# What a model may offer beside logits, by the word for it.
OFFERS: dict[str, Any] = {
    "certificate": HasCertificate, "arms": HasArms, "stages": HasStages, "surrogate": HasSurrogate,
}  # fmt: skip


@undisturbed()
def look(
    model: Held[nn.Module], first_block: Tensor, device: torch.device, terms: Terms, tell: Tell
) -> Subject:
    """A model, as it is judged."""
    del tell
    return examine(model.get(), first_block, device, terms)


@undisturbed()
def answer(subject: Held[Subject], x: Tensor, tell: Tell) -> tuple[Calling, Tensor]:
    """How a model is called, and its logits at a few images x (n, *shape)."""
    del tell
    judge = subject.get()
    return judge.calling, _logits(judge.victim(), x.to(judge.device, judge.dtype), judge.terms)


@undisturbed()
def check_answer(model: nn.Module, x: Tensor, terms: Terms, theirs: tuple[Calling, Tensor]) -> None:
    """Raises UserError where a model gives other logits at images x in this process than workers
    gave: they have its code, but not all that was done to it here."""
    calling, logits = theirs
    asked = None if terms.precision == "model" else getattr(torch, terms.precision)
    ours = as_called(freeze(model, torch.device("cpu"), asked), calling)
    if differ(_logits(ours, x.to(calling.gives), terms), logits, _ROUNDED):
        raise UserError(
            "the model gives other logits on workers than here: its code depends on something that "
            "was set here and that they do not have, such as a global hook or a variable of the "
            "environment: leave out workers"
        )


def _logits(model: nn.Module, x: Tensor, terms: Terms) -> Tensor:
    """The logits at images x, one by one, that a model gives once it is seeded."""
    with seeded(terms.seed, torch.zeros(1, dtype=torch.int64), LOOKED_AT) as seed:
        reseed(model, seed)
        return torch.cat([call(model, image).cpu() for image in x.split(1)])


@undisturbed()
def treated(subject: Held[Subject], kind: Kind, tell: Tell) -> Subject:
    """A subject that turned out to be unsteady."""
    del tell
    return subject.get().unsteady(kind)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a look at a subject tells of it.

    logits   how many it gives.
    flags, traits, precision  of the subject.
    is_divisible  whether its records are the same, however images are divided into blocks.
    environment  that it is judged in.
    device   that it is judged on.
    certifies  whether it certifies radii.
    hidden   what the model offers that it does not as it is called.
    entries  the attacks, each in the variant for the model.
    at_once  how many images of a block fit in the memory that is free.
    share    of a GPU, that so many take.
    """

    logits: int
    flags: set[str]
    traits: Mapping[str, int | bool]
    precision: str
    is_divisible: bool
    environment: dict[str, str]
    device: torch.device
    certifies: bool
    hidden: list[str]
    entries: dict[str, Entry]
    at_once: int
    share: float


@undisturbed()
def check(
    subject: Held[Subject],
    model: Held[nn.Module],
    first_block: Tensor,
    y: Tensor,
    classes: int | None,
    entries: Mapping[str, Entry],
    block: int,
    beside: int,
    tell: Tell,
) -> Seen:
    """What a look at a subject tells, that is to be attacked on so many images at once, on a host
    that carries out so many units. Raises UserError where it does not fit labels y (n,)."""
    del tell
    judge = subject.get()
    logits = check_model(judge, first_block, y, classes)
    called, footprint = judge.model, footprint_of(judge, first_block)
    at_once = footprint.fitting(usable_memory(judge.device, beside), block)
    return Seen(
        logits, set(judge.flags), judge.traits, judge.precision,
        not (judge.is_random or judge.is_stateful),
        environment(judge.device), judge.device, isinstance(called, HasCertificate),
        _hidden(model.get(), called),
        {label: suited(called, entry) for label, entry in entries.items()},
        at_once, share_of_gpu(footprint.of(at_once), judge.device),
    )  # fmt: skip


def _hidden(model: nn.Module, called: nn.Module) -> list[str]:
    """What a model offers that it does not as it is called."""
    return [
        what
        for what, protocol in OFFERS.items()
        if isinstance(model, protocol) and not isinstance(called, protocol)
    ]


@undisturbed()
def peer_of(
    model: Held[nn.Module], subject: Held[Subject], first_block: Tensor, tell: Tell
) -> nn.Module:
    """Another model, as attacks on a subject call it. Raises ValueError where it does not run."""
    del tell
    judge = subject.get()
    # What a user says of outputs is about the model, and not about its peers.
    terms = dataclasses.replace(judge.terms, reading=Reading())
    try:
        peer = examine(model.get(), first_block, judge.device, terms)
    except UserError as error:
        raise ValueError(str(error)) from error
    if peer.dtype == judge.dtype:
        return peer.model
    return Called(peer.model, Calling(peer.dtype, judge.dtype)).eval()


def suited(model: nn.Module, entry: Entry) -> Entry:
    """The entry with its attack in the variant for this model; some models need a simpler one."""
    attack = entry.attack
    if not isinstance(attack, HasVariants):
        return entry
    return dataclasses.replace(entry, attack=attack.on(model))


def unprovable(subject: Held[Subject], threat: ThreatModel, x: Tensor, tell: Tell) -> str:
    """Why no bounds can be had of a model at images like x (1, *shape); empty where they can."""
    del tell
    if why := not_provable(threat.norm):
        return why
    try:
        read_of(subject.get(), x.shape[1:])
    except ValueError as error:
        return one_line(error)
    return ""
