"""One model, many attacks: from a model and samples to a report. Shared by `evaluate` and runs."""

import dataclasses
import hashlib
import inspect
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attacks import Attack, ThreatModel
from benchmark import evaluator
from benchmark import subject as subject_module
from benchmark.components import NATURAL
from benchmark.errors import UserError
from benchmark.evaluator import Samples, measure_attack, measure_natural
from benchmark.progress import attack_bar
from benchmark.records import Cell, IntArray, cell_key
from benchmark.report import Report
from benchmark.spec import Device, Mode, Precision
from benchmark.subject import Subject, check_model, examine, full_precision

Cells = Callable[[str], Cell]
Notify = Callable[[Report, str], None]


def _judge() -> str:
    """A hash of the source that decides verdicts, so that no cell outlives the judge it is from."""
    sources = [Path(module.__file__ or "").read_bytes() for module in (evaluator, subject_module)]
    return hashlib.sha256(b"".join(sources)).hexdigest()[:16]


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
    attacks: dict[str, Attack],
    settings: Settings,
    cells: Cells,
    subject_identity: dict[str, Any],
    classes: int | None = None,
    notify: Notify = lambda report, label: None,
) -> Report:
    """Attack a model and report. `cells` gives the cell of a key; `subject_identity` names model
    and data in each key; `notify` is told of the natural cell and of each attack when it is done.

    An attack that raises becomes an error of the report, never a robust score. Raises UserError
    where the model cannot be evaluated at all.
    """
    device, dtype = resolve_device(settings.device), getattr(torch, settings.precision)
    identity = {
        "judge": _judge(),
        "torch": torch.__version__,
        "device": device.type,
        "precision": settings.precision,
        **subject_identity,
    }
    subject = examine(model, device, dtype)
    first = slice(0, settings.block)
    columns = check_model(subject, samples.x[first].to(device, dtype), samples.y, classes)
    report = Report(name, settings.threat, settings.mode, len(samples), subject.flags)
    key = cell_key(identity)
    cell = cells(key)
    try:
        measure_natural(subject, samples, cell, settings.block)
    except (RuntimeError, ValueError, TypeError, IndexError) as failure:
        raise UserError(f"the model fails on some clean images: {_line(failure)}") from failure
    _close(cell, identity, device)
    report.add(NATURAL, key, cell, None)
    if report.natural <= 1 / columns:
        subject.flags.add("chance")
    if settings.threat.norm == "linf" and settings.threat.eps >= 1:
        subject.flags.add("whole-range")
    notify(report, NATURAL)
    todo = report.survivors()
    for label, attack in _ordered(attacks, settings.mode):
        if settings.mode == "cascade":
            todo = report.survivors()
        full = identity | _identify(attack, settings, todo)
        key = cell_key(full)
        cell = cells(key)
        error = _attack(f"{name} {label}", subject, samples, todo, attack, settings, cell)
        minimises = attack.family == "minimal-norm" and bool(getattr(attack, "minimize", True))
        _close(cell, full, device, error=error, minimises=minimises)
        report.add(label, key, cell, error)
        notify(report, label)
    return report


def _attack(
    title: str,
    subject: Subject,
    samples: Samples,
    todo: IntArray,
    attack: Attack,
    settings: Settings,
    cell: Cell,
) -> str | None:
    """Run one attack into its cell; the error in one line where it failed."""
    passes, block = getattr(attack, "passes", 0), settings.block
    with attack_bar(title, len(todo), passes, block, len(samples), settings.progress) as bar:
        try:
            measure_attack(
                subject, samples, todo, settings.threat, attack, settings.seed, cell, block,
                bar.advance, bar.tick,
            )  # fmt: skip
        except UserError:
            raise
        except Exception as error:
            return _line(error)
    return None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _ordered(attacks: dict[str, Attack], mode: Mode) -> list[tuple[str, Attack]]:
    """As given; in a cascade the cheapest first, those of unknown cost last."""
    if mode == "table":
        return list(attacks.items())
    return sorted(attacks.items(), key=lambda item: getattr(item[1], "passes", float("inf")))


def _identify(attack: Attack, settings: Settings, todo: IntArray) -> dict[str, Any]:
    threat = settings.threat
    return {
        "threat": dataclasses.asdict(threat),
        "attack": identify_object(attack),
        "seed": settings.seed,
        "samples": hashlib.sha256(todo.astype("<i8").tobytes()).hexdigest()[:16],
    }


def identify_object(thing: object) -> dict[str, Any]:
    """What determines a configured object's behaviour: its class, its options, and the source files
    of the class, its bases and what they use."""
    cls = type(thing)
    options = {}
    if dataclasses.is_dataclass(thing):
        fields = dataclasses.fields(thing)
        options = {field.name: repr(getattr(thing, field.name)) for field in fields}
    return {
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "options": options,
        "source": _source(cls),
    }


def _source(cls: type) -> str:
    """A hash of the source files behind a class: its own and its bases', and what these use of its
    package, of `attacks` and of `defenses`."""
    packages = {cls.__module__.partition(".")[0], "attacks", "defenses"}
    waiting = [base.__module__ for base in cls.__mro__]
    files: dict[str, bytes] = {}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        # Versions name torch, not its files.
        if name in files or module is None or name.partition(".")[0] not in packages - {"torch"}:
            continue
        files[name] = b""
        with suppress(OSError, TypeError):  # built in, or typed in
            files[name] = Path(inspect.getsourcefile(module) or "").read_bytes()
        used = (
            getattr(value, "__module__", None) or getattr(value, "__name__", "")
            for value in vars(module).values()
        )
        waiting += [str(other) for other in used]
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + content)
    return digest.hexdigest()[:16]


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
