"""One model, many attacks: from a model and samples to a report. Shared by `evaluate` and runs."""

import dataclasses
import math
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import nn

from attacks import Attack, ThreatModel
from attacks.messages import described, one_line
from attacks.problem import HasVariants, NotApplicableError
from attacks.wrappers.transfer import HasSurrogate
from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples, measure_attack, measure_natural, measure_radii
from benchmark.judge.probes import probe
from benchmark.judge.records import Cell, IntArray
from benchmark.judge.subject import Subject, check_model, examine, freeze, full_precision
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
from benchmark.spec.lineup import Entry, Lineup
from benchmark.spec.run_spec import Device, Mode, Precision
from defenses.certificates import HasCertificate

Cells = Callable[[str], Cell]
Notify = Callable[[Report, str], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to evaluate; see `RunSpec` for the meaning of each."""

    threat: ThreatModel
    mode: Mode
    seed: int
    device: Device
    precision: Precision
    block: int
    progress: bool = False


@full_precision()
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
    """Attack a model and report. `peers` are the models that attacks craft points on, by name;
    `cells` gives the cell of a key; `about` identifies model and data in each key; `notify`
    is told of the natural cell, of the certificate and of each attack when it is done.

    An attack or a certificate that raises becomes an error of the report, never a robust score; an
    attack that finds that it does not apply to the model counts for nothing. Raises UserError where
    the model cannot be evaluated at all.
    """
    device, dtype = resolve_device(settings.device), getattr(torch, settings.precision)
    identity = identify_natural(about, device, settings.precision)
    subject = examine(model, device, dtype)
    first = slice(0, settings.block)
    columns = check_model(subject, samples.x[first].to(device, dtype), samples.y, classes)
    report = Report(
        name, settings.threat, settings.mode, len(samples), subject.flags, lineup.notes, columns
    )
    key = key_of(identity)
    cell = cells(key)
    try:
        measure_natural(subject, samples, cell, settings.block)
    except (RuntimeError, ValueError, TypeError, IndexError) as failure:
        raise UserError(f"the model fails on some clean images: {described(failure)}") from failure
    _close(cell, identity, device)
    report.add(NATURAL, key, cell, None)
    subject.flags |= probe(
        subject, samples, report.survivors(), settings.threat, settings.seed, settings.block
    )
    notify(report, NATURAL)
    if isinstance(subject.model, HasCertificate):
        full = identify_certificate(identity, settings.threat)
        key = key_of(full)
        cell = cells(key)
        error = _certify(name, subject, samples, settings, cell)
        _close(cell, full, device, error=error)
        report.certify(key, cell, error)
        notify(report, CERTIFIED)
    entries = {label: suited(subject.model, entry) for label, entry in lineup.entries.items()}
    for label, entry in _ordered(entries, settings.mode):
        attack, todo = entry.attack, report.remaining(entry.after)
        used = {name: peers[name] for name in sorted(attack.facts.sources)}
        full = identify_attacked(
            identity, attack, {name: peer.identity for name, peer in used.items()},
            settings.threat, settings.seed, todo, settings.block,
        )  # fmt: skip
        key = key_of(full)
        cell = cells(key)
        title = f"{name} {label}"
        ended = _attack(title, subject, samples, todo, attack, used, settings, cell)
        _close(cell, full, device, **dataclasses.asdict(ended), **traits(attack, model, used))
        report.add(label, key, cell, ended.error, entry.after, ended.inapplicable)
        notify(report, label)
    return report


@dataclasses.dataclass(frozen=True)
class _Ended:
    """How an attack ended: a line on why it failed, or on why it does not apply, if so."""

    error: str | None = None
    inapplicable: str | None = None


def _attack(
    title: str,
    subject: Subject,
    samples: Samples,
    todo: IntArray,
    attack: Attack,
    peers: Mapping[str, Trained],
    settings: Settings,
    cell: Cell,
) -> _Ended:
    """Run one attack into its cell."""
    passes, block = attack.facts.passes or 0, settings.block
    models = {
        name: freeze(peer.model, subject.device, subject.dtype) for name, peer in peers.items()
    }
    with attack_bar(title, len(todo), passes, block, len(samples), settings.progress) as bar:
        try:
            measure_attack(
                subject, samples, todo, settings.threat, attack, settings.seed, cell, block,
                bar.advance, bar.tick, models,
            )  # fmt: skip
        except UserError:
            raise
        except NotApplicableError as error:
            return _Ended(inapplicable=one_line(error))
        except Exception as error:
            return _Ended(error=described(error))
    return _Ended()


def _certify(
    name: str, subject: Subject, samples: Samples, settings: Settings, cell: Cell
) -> str | None:
    """Run the model's certificate into its cell: a line on why it failed, if so."""
    total, block = len(samples), settings.block
    with attack_bar(f"{name} {CERTIFIED}", total, 0, block, total, settings.progress) as bar:
        try:
            measure_radii(subject, samples, settings.threat, cell, block, bar.count)
        except UserError:
            raise
        except Exception as error:
            return described(error)
    return None


def suited(model: nn.Module, entry: Entry) -> Entry:
    """The attack that an entry's is on this model, which may be a simpler one."""
    attack = entry.attack
    if not isinstance(attack, HasVariants):
        return entry
    return dataclasses.replace(entry, attack=attack.on(model))


def traits(attack: Attack, model: nn.Module, used: Mapping[str, Trained]) -> dict[str, Any]:
    """What flags need to know of an attack on a model, where it crafts points on `used`."""
    # A row may be its own source; only its surrogate is another model then.
    itself = any(peer.model is model for peer in used.values())
    elsewhere = not itself or isinstance(model, HasSurrogate)
    return {
        "minimises": attack.facts.minimises,
        "passes": attack.facts.passes,
        "transfers": elsewhere and attack.facts.transfers,
    }


def _ordered(entries: dict[str, Entry], mode: Mode) -> list[tuple[str, Entry]]:
    """As given; in a cascade the cheapest first, those of unknown cost last."""
    if mode == "table":
        return list(entries.items())

    def cost(item: tuple[str, Entry]) -> float:
        passes = item[1].attack.facts.passes
        return math.inf if passes is None else passes

    return sorted(entries.items(), key=cost)


def _close(cell: Cell, identity: dict[str, Any], device: torch.device, **facts: Any) -> None:
    note = {"identity": identity, **facts}
    # A cell that was there before keeps the environment that it was made in.
    if {key: cell.note.get(key) for key in note} != note:
        cell.close(note | {"environment": environment(device)})


def resolve_device(device: Device) -> torch.device:
    """Raises UserError where CUDA is asked for and there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here: use --device cpu or auto")
    return torch.device(device)


def environment(device: torch.device) -> dict[str, str]:
    """The versions and the hardware that numbers were made with."""
    try:
        own = version("bestattack")
    except PackageNotFoundError:
        own = "not installed"
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "bestattack": own,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": f"{device.type}: {hardware}",
        "threads": str(torch.get_num_threads()),
    }
