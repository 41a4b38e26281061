"""`inspect`: what the harness sees of a model, and what a run on it will take."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from attacks import Attack
from attacks.smoothing import Smoothing
from attacks.threat import Norm
from benchmark.direct.inspection import Inspection, Trial, told
from benchmark.direct.pass_cost import Cost, cost_of, fitting
from benchmark.direct.request import Options, Request, read_request
from benchmark.environment import resolve_device
from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples
from benchmark.judge.examination import check_model, examine, note_on_mode
from benchmark.judge.footprint import Footprint, footprint_of
from benchmark.judge.records import MemoryCell
from benchmark.judge.subject import Subject, until_steady
from benchmark.judge.surroundings import undisturbed
from benchmark.report.flag_rules import is_chance
from benchmark.report.report import Report
from benchmark.run.assess import USUAL_PASSES, assessed
from benchmark.run.looking import OFFERS
from defenses.foreign.adapting.in_parts import InParts
from defenses.foreign.adapting.in_precision import InPrecision
from defenses.foreign.adapting.logits import Logits
from defenses.foreign.adapting.normalisation import Normalised
from defenses.foreign.onnx_source import Named, Reshaped
from defenses.offers import note_of

# How long it may take to look at clean images, and to attack some, in seconds, roughly.
_LOOK_SECONDS, _TRY_SECONDS = 3.0, 10.0

# How many images are looked at, and attacked, at most.
_LOOKED_AT, _TRIED = 64, 8

# What an attack takes for a block beside each of its passes, in seconds, at most.
_BESIDE_SECONDS = 0.004


@undisturbed()
def inspect(
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    norm: Norm = "l2",
    eps: Any,
    attacks: Sequence[str | dict[str, Any] | Attack] = (),
    suite: str | None = None,
    samples: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Unpack[Options],
) -> Inspection:
    """What the harness sees of a model, and what a run on it will take.

    Some images are classified, one pass is timed, and up to eight images are attacked: this takes a
    quarter of a minute, or as long as attacks on one image take. The arguments are those of
    `evaluate`.

    samples  how many images the run will have; by default as many as are given.
    say      is called with a line on what is being done.

    Raises UserError as `evaluate` does.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    >>> x = torch.rand(10, 1, 2, 2)
    >>> seen = inspect(model, x, model(x).argmax(1), norm="linf", eps=0.01, attacks=["pgd"])
    >>> seen.classes, seen.smoothed, seen.correct
    (2, {'relu': 1}, 10)
    """
    if samples is not None and not (type(samples) is int and samples > 0):
        raise UserError(f"samples must be an integer of at least 1, not {samples!r}")
    request = read_request(model, x, y, norm, eps, attacks, suite, options)
    return inspected(model, request, samples or len(request.samples), None, say)


def inspected(
    model: nn.Module,
    request: Request,
    total: int,
    classes: int | None,
    say: Callable[[str], None],
) -> Inspection:
    """What `inspect` tells of a model, for a run on `total` images with so many classes; any number
    of them if None."""
    settings, given = request.settings(), request.samples
    say("looking at the model")
    device = resolve_device(settings.device)
    examined = examine(model, given.x[: settings.block], device, settings.terms)
    seen = until_steady(examined, lambda subject: _look(subject, given, settings.block, classes))
    trials, flags = dict[str, Trial](), set(seen.subject.flags)
    labels = given.y[: seen.looked_at].tolist()
    if is_chance(len(seen.right) / seen.looked_at, seen.classes, labels):
        flags.add("chance")
    if len(seen.right):
        # A model that may reject images is attacked twice.
        rounds = 1 if request.options.reject is None else 2
        attacked = rounds * total * len(seen.right) / seen.looked_at
        trials, flags_of_trial = _tried(model, request, seen, attacked, say)
        flags |= flags_of_trial
    return _inspection(model, request, seen, trials, sorted(flags), total)


@dataclass(frozen=True)
class _Seen:
    """What a look at a subject showed, without attacks.

    right  the images that it classifies correctly, of the `looked_at` first ones.
    """

    subject: Subject
    classes: int
    cost: Cost
    footprint: Footprint
    smoothed: Mapping[str, int] | None
    right: Samples
    looked_at: int


def _look(subject: Subject, samples: Samples, block: int, wanted: int | None) -> _Seen:
    first_block = samples.x[:block]
    classes = check_model(subject, first_block, samples.y, wanted)
    cost, smoothed = cost_of(subject, first_block), _smoothed(subject, first_block)
    count = fitting(_LOOK_SECONDS, 4 * cost.forward, min(_LOOKED_AT, len(samples)))
    clean = samples.x[:count].to(subject.device, subject.dtype)
    judged = subject.judge(clean, samples.y[:count].to(subject.device))
    right = (~judged.wrong).nonzero().squeeze(1).cpu()
    footprint = footprint_of(subject, first_block)
    return _Seen(subject, classes, cost, footprint, smoothed, _some(samples, right), count)


def _inspection(
    model: nn.Module,
    request: Request,
    seen: _Seen,
    trials: Mapping[str, Trial],
    flags: Sequence[str],
    total: int,
) -> Inspection:
    """All of it, in the words of an `Inspection`."""
    subject = seen.subject
    parameters = list(subject.model.parameters())
    tensors = [*parameters, *subject.model.buffers()]
    return Inspection(
        name=request.name,
        kind=type(_innermost(model)).__name__,
        parameters=sum(parameter.numel() for parameter in parameters),
        size=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        shape=tuple(request.samples.x.shape[1:]),
        classes=seen.classes,
        precision=subject.precision,
        in_float64=subject.has_twin,
        device=str(subject.device),
        at_once=subject.calling.size,
        is_random=subject.is_random,
        is_stateful=subject.is_stateful,
        smoothed=seen.smoothed,
        offers=[name for name, kind in OFFERS.items() if isinstance(subject.model, kind)],
        cost=seen.cost,
        footprint=seen.footprint,
        looked_at=seen.looked_at,
        correct=len(seen.right),
        flags=flags,
        trials=trials,
        samples=total,
        block=request.options.block,
        # Draws, or the image itself, and half of a block again in other company.
        judged=2 * request.options.draws if subject.is_random else 2,
        notes=_notes(model, request),
    )


def _notes(model: nn.Module, request: Request) -> list[str]:
    notes = [note_of(model), note_on_mode(model), request.geometry.note]
    if request.options.reject is not None:
        notes.append(
            f"class {request.options.reject} rejects an image: a run measures all twice, with "
            "rejecting a perturbed image wrong, and not"
        )
    return [note for note in notes if note]


def _innermost(model: nn.Module) -> nn.Module:
    """The model without what prepares its images and reads its outputs."""
    while isinstance(model, Normalised | Logits | InParts | InPrecision | Named | Reshaped):
        model = model.model
    return model


def _some(samples: Samples, rows: Tensor) -> Samples:
    return Samples(samples.x[rows], samples.y[rows], samples.number[rows.numpy()])


def _smoothed(subject: Subject, x: Tensor) -> Mapping[str, int] | None:
    """The operations that are smoothed in a forward pass, by name, with their number; None where
    it fails."""
    points = x[:1].to(subject.device, subject.dtype).clone().requires_grad_()
    with torch.enable_grad(), Smoothing(1.0, 1) as smoothing:
        try:
            subject.victim()(points.clone())
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return None
    return dict(smoothing.smoothed.most_common())


def _tried(
    model: nn.Module,
    request: Request,
    seen: _Seen,
    total: float,
    say: Callable[[str], None],
) -> tuple[dict[str, Trial], set[str]]:
    """What each attack did on some of the images that are classified correctly, what it will take
    on `total` such ones, and the flags that this raised."""
    cost, right = seen.cost, seen.right
    attacks = (entry.attack for entry in request.lineup.entries.values())
    passes = sum(min(attack.facts.passes or USUAL_PASSES, USUAL_PASSES) for attack in attacks)
    each = passes * (cost.forward + (cost.backward or 0.0))
    count = fitting(_TRY_SECONDS, each, min(_TRIED, len(right)))
    say(
        f"attacking {count} image{'s' * (count > 1)}, to tell what a run takes: "
        f"about {told(each * count)}"
    )
    settings = replace(request.settings(), mode="table")
    work = assessed(
        request.name, model, _some(right, torch.arange(count)), request.lineup, request.sources,
        settings, lambda key: MemoryCell(), request.about,
    )  # fmt: skip
    report = settings.executor.run(work)
    blocks = math.ceil(total / request.options.block)
    trials = {label: _trial(report, label, cost, total, blocks) for label in report.attacks}
    return trials, set(report.noted)


def _trial(report: Report, label: str, cost: Cost, total: float, blocks: int) -> Trial:
    """What an attack did, and what it will take on `total` images such as those that it was tried
    on, in so many blocks."""
    if label in report.inapplicable:
        return Trial(line=f"does not apply: {report.inapplicable[label]}")
    if label in report.errors:
        return Trial(line=f"fails: {report.errors[label]}")
    frame = report.frames[label]
    if not len(frame):
        return Trial(line="none of the images that were tried is classified correctly again")
    forwards, backwards = frame["forwards"].mean(), frame["backwards"].mean()
    passes = forwards * cost.forward + backwards * (cost.backward or 0.0)
    # The rest is work of Python, once for a block, and as far as it is more, of each image.
    rest = max(0.0, report.seconds[label] - passes * len(frame))
    of_block = min(rest, _BESIDE_SECONDS * float((frame["forwards"] + frame["backwards"]).max()))
    of_image = passes + (rest - of_block) / len(frame)
    seconds = float(of_image * total + of_block * blocks)
    return Trial(len(frame), int(frame["broken"].sum()), forwards, backwards, seconds)
