"""The evaluator makes the records of a block: of clean images, of a certificate, of an attack.

It is the only place that judges, and it trusts nothing that an attack returns: points are projected
into the ball and the box, and the model is run on them again.
"""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks import Attack, Problem, ThreatModel
from attacks.generators import seeded
from attacks.segment import pull
from benchmark.executors import Held
from benchmark.executors.executor import Tell
from benchmark.images import Images
from benchmark.judge.records import Block, BoolArray, IntArray
from benchmark.judge.replica import copied, reseed
from benchmark.judge.subject import ATTACKED, Judgement, Subject
from benchmark.judge.surroundings import undisturbed
from defenses.verification import Decision, Method, Readable, decide

# This is part of the keys of all cells. Raise it when the verdict on a point changes, or what is
# recorded about it; `tests/test_versions.py` notices where that was forgotten.
VERSION = 2

# What was read of models, which do not change while they are judged.
_READ: WeakKeyDictionary[nn.Module, Readable] = WeakKeyDictionary()

# How far outside the ball or the box a returned point may lie, relative to eps, before the attack
# is flagged for it, unless rounding the pixels explains it. Only the flag depends on it: every
# point is projected without tolerance.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Samples:
    """The images and labels that a model is measured on.

    x       (n, *shape), images in the box.
    y       (n,), labels.
    number  (n,), the place of each sample in its data set. Noise is drawn by number, so that a
            sample has the same noise in a subset as in the whole set.
    """

    x: Tensor | Images
    y: Tensor
    number: IntArray

    def __len__(self) -> int:
        return len(self.x)

    def at(self, places: IntArray) -> "Batch":
        """The samples at some places (k,)."""
        rows = torch.from_numpy(places)
        return Batch(places, self.x[rows], self.y[rows], torch.from_numpy(self.number[places]))


class Meter:
    """Counts the forward and backward passes of each sample of a block.

    `tick` is called with the number of model calls so far, after each of them.
    """

    def __init__(self, size: int, device: torch.device, tick: Tell) -> None:
        self.forwards = torch.zeros(size, dtype=torch.int64, device=device)
        self.backwards = torch.zeros_like(self.forwards)
        self.calls = 0
        self._tick = tick

    def __call__(self, rows: Tensor, logits: Tensor) -> None:
        ones = torch.ones_like(rows)  # a search may run a sample twice at once
        self.forwards.index_add_(0, rows, ones)
        if logits.requires_grad:

            def count(_: Tensor) -> None:
                self.backwards.index_add_(0, rows, ones)

            logits.register_hook(count)
        self.calls += 1
        self._tick(self.calls)


@dataclass(frozen=True)
class Batch:
    """Samples that are worked on together: images x (n, *shape), labels y (n,), and, as in
    `Samples`, their numbers (n,). `places` (n,) are where they are among all that are measured."""

    places: IntArray
    x: Tensor
    y: Tensor
    number: Tensor

    def on(self, subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
        """Copies of the images, on a subject's device and of its dtype, of the labels and the
        numbers. As they are, they may be of the caller's inference mode."""
        device = subject.device
        clean = self.x.to(device, subject.dtype, copy=True)
        return clean, self.y.to(device, copy=True), self.number.to(device, copy=True)


@undisturbed()
def judge_block(subject: Held[Subject], samples: Held[Batch], tell: Tell) -> Block:
    """The records of clean images."""
    del tell
    began, judge, batch = time.perf_counter(), subject.get(), samples.get()
    clean, labels, numbers = batch.on(judge)
    verdict = judge.judge(clean, labels, numbers)
    distance = torch.where(verdict.found, 0.0, torch.nan).double()
    return _block(batch.places, labels, verdict, distance, began)


@undisturbed()
def certify_block(
    subject: Held[Subject], threat: ThreatModel, samples: Held[Batch], tell: Tell
) -> Block:
    """The records of the radii that the model certifies at clean images.

    In these records, `predicted` is the class that is certified, `broken` says that it is not the
    label, and `distance` is the radius within which the class does not change, in the norm of the
    threat. A model certifies L2 radii; an L-infinity radius is smaller by sqrt(dimensions), because
    an L-infinity distance r can be an L2 distance of r * sqrt(dimensions). It holds for L1 as it
    is, since the L1 ball lies in the L2 ball.
    """
    del tell
    began, judge, batch = time.perf_counter(), subject.get(), samples.get()
    clean, labels, _ = batch.on(judge)
    predicted, radius = judge.certify(clean)
    if threat.norm == "linf":
        radius = radius / math.sqrt(clean[0].numel())
    verdict = Judgement.of(predicted, predicted != labels)
    return _block(batch.places, labels, verdict, radius, began)


def read_of(judge: Subject, shape: Sequence[int]) -> Readable:
    """What bounds are of: the model in float64, read once for all blocks. Raises ValueError, in one
    line, where there are none."""
    if judge.is_random or judge.is_stateful:
        raise ValueError("it does not give the same for an image each time")
    if not judge.has_twin and judge.dtype != torch.float64:
        raise ValueError("it cannot be run in float64 as the same function")
    if judge.model not in _READ:
        twin = judge.twin() if judge.has_twin else judge.model
        _READ[judge.model] = Readable.of(twin, tuple(shape))
    return _READ[judge.model]


@undisturbed()
def prove_block(
    subject: Held[Subject],
    threat: ThreatModel,
    method: Method,
    seconds: float,
    samples: Held[Batch],
    tell: Tell,
) -> Block:
    """The records of a search for proofs at images that no attack broke, by a method and within so
    many seconds an image, as `decide` has them.

    They are those of an attack without passes, whose points are judged like any. `stage` is what
    proved a sample, or broke it, and `bound` by how much its label leads at least.
    """
    del tell
    began, judge, batch = time.perf_counter(), subject.get(), samples.get()
    clean, labels, numbers = batch.on(judge)
    within = threat.around(clean, judge.terms.frozen)
    decisions = decisions_on(judge, clean, labels, within, method, seconds)
    # Judge the points that the search found, as those of an attack.
    points, has_point = clean.clone(), torch.zeros_like(labels, dtype=torch.bool)
    for row, decision in enumerate(decisions):
        if decision.point is not None:
            points[row], has_point[row] = decision.point.to(points), True
    allowed = judge.terms.allowed
    verdict = judge.judge(points, labels, numbers, 0, allowed).only(has_point)
    own = Problem(judge.victim(), clean, labels, within, index=numbers, allowed=allowed)
    points, verdict = _pulled(judge, own, points, verdict)
    distance = threat.distance(points, clean)
    found_at = torch.where(verdict.found, distance, torch.nan)
    zeros = torch.zeros_like(labels)
    attacked = _Attacked(zeros, zeros, zeros.bool(), points[verdict.found])
    verdict = verdict.only(distance <= threat.eps)
    block = _block(batch.places, labels, verdict, found_at, began, attacked)
    # A point that does not break the sample when it is judged shows nothing.
    robust = np.array([decision.status == "robust" for decision in decisions])
    by = np.array([decision.by for decision in decisions])
    bound = np.array([decision.bound for decision in decisions])
    return replace(block, stage=np.where(robust | block.broken, by, ""), bound=bound)


def decisions_on(
    judge: Subject,
    x: Tensor,
    y: Tensor,
    within: ThreatModel,
    method: Method,
    seconds: float = 0.0,
) -> list[Decision]:
    """What bounds, and a search where the method has one, say of images x (n, *shape) with labels y
    (n,). Raises ValueError, in one line, where there are no bounds."""
    allowed, read = judge.terms.allowed, read_of(judge, x.shape[1:])
    decisions = decide(
        judge.model, x, y, within, seconds, method, read, attacked=True, allowed=allowed
    )
    return list(decisions)


@undisturbed()
def attack_block(
    subject: Held[Subject],
    threat: ThreatModel,
    attack: Attack,
    seed: int,
    peers: Mapping[str, Held[nn.Module]],
    samples: Held[Batch],
    tell: Tell,
) -> Block:
    """The records of an attack on images.

    peers  other models, frozen and on the subject's device. The attack gets copies of them.
    tell   is called with the number of model calls so far, after each of them.

    Errors that the attack raises pass through.
    """
    # Attack copies, because an attack may work in place on what it is given.
    began, judge, batch = time.perf_counter(), subject.get(), samples.get()
    clean, labels, numbers = batch.on(judge)
    within = threat.around(clean, judge.terms.frozen)
    meter = Meter(len(clean), judge.device, tell)
    victim, told = judge.victim(), _Told()
    given = clean.clone(), labels.clone(), copy.deepcopy(within)
    problem = Problem(
        victim, *given, seed, numbers.clone(), meter,
        peers={name: copied(peer.get()) for name, peer in peers.items()},
        draws=judge.expectation, allowed=judge.terms.allowed,
        tell=told,
    )  # fmt: skip
    with seeded(seed, numbers, ATTACKED) as drawn, torch.enable_grad():
        reseed(victim, drawn)
        points = _fresh(attack)(problem).detach()
    if points.shape != clean.shape:
        raise ValueError(f"returned points of shape {tuple(points.shape)}")
    # Judge the points that it returned, once they lie where they may.
    fixed = attack.facts.family == "fixed-budget"
    points, outside = _enforce(points.to(clean), clean, within, fixed, judge.is_random)
    verdict = judge.judge(points, labels, numbers, meter.calls, judge.terms.allowed)
    if not (judge.is_random or judge.is_stateful):
        own = replace(problem, x=clean, y=labels, threat=within, index=numbers, meter=None)
        points, verdict = _pulled(judge, own, points, verdict)
    distance = threat.distance(points, clean)
    attacked = _Attacked(meter.forwards, meter.backwards, outside, points[verdict.found])
    found_at = torch.where(verdict.found, distance, torch.nan)
    verdict = verdict.only(distance <= threat.eps)
    block = _block(batch.places, labels, verdict, found_at, began, attacked)
    return replace(block, stage=told.stages(block.broken))


def _fresh(attack: Attack) -> Attack:
    """A copy of an attack, which remembers nothing of other blocks; itself, where it cannot be
    copied."""
    try:
        return copy.deepcopy(attack)
    except Exception:
        return attack


def _pulled(
    subject: Subject, problem: Problem, points: Tensor, verdict: Judgement
) -> tuple[Tensor, Judgement]:
    """The points (n, *shape), those that are misclassified as near to their images as bisection on
    the segment finds them misclassified, and the verdict on all.

    An attack with a fixed budget has no reason to stay near; what its points show of smaller
    budgets would be lost. Its passes are not the attack's.
    """
    rows = verdict.wrong.nonzero().squeeze(1)
    if not len(rows):
        return points, verdict
    some = problem.select(rows)
    nearer, _ = _enforce(pull(some, points[rows]), some.x, some.threat, False, False)
    judged = subject.judge(nearer, some.y, some.index, 0, subject.terms.allowed)
    rows, nearer = rows[judged.wrong], nearer[judged.wrong]
    points, predicted = points.clone(), verdict.predicted.clone()
    points[rows], predicted[rows] = nearer, judged.predicted[judged.wrong]
    return points, replace(verdict, predicted=predicted)


class _Told(list[tuple[Tensor, str]]):
    """What an attack of several stages told of the samples that they broke, by their rows."""

    def __call__(self, rows: Tensor, stage: str) -> None:
        self.append((rows, stage))

    def stages(self, broken: BoolArray) -> NDArray[np.str_]:
        """The last stage (n,) that broke each of the samples that are broken (n,)."""
        stage = np.full(len(broken), "", dtype=object)
        for rows, name in self:
            stage[rows.cpu().numpy()] = name
        stage[~broken] = ""
        return stage.astype(np.str_)


def _enforce(
    points: Tensor, clean: Tensor, threat: ThreatModel, fixed: bool, is_random: bool
) -> tuple[Tensor, Tensor]:
    """Project the points (n, *shape) that an attack returned, and say which lay outside.

    Points are projected into the box, and into the ball. An attack of minimal norm, not `fixed`,
    may return points beyond the ball; these stay there, unless the model is random: then they lie
    where most draws are wrong, and within the ball some may be. NaN becomes the clean pixel.
    Returns the points, and which of them lay outside by more than rounding (n,).
    """
    undefined = points.isnan()
    points = torch.where(undefined, clean, points)
    slack = _ROUNDING * threat.eps
    rounding = 4 * torch.finfo(points.dtype).eps * max(map(abs, threat.hull))
    excess = max(slack, rounding * math.sqrt(clean[0].numel()))
    outside = (points - threat.clamp(points)).abs().flatten(1).amax(1) > excess
    outside |= undefined.flatten(1).any(1)
    distance = threat.distance(points, clean)
    near = distance <= threat.eps + slack
    if fixed:
        outside |= ~(distance <= threat.eps + excess)
    if fixed or is_random:
        near = torch.ones_like(near)
    inside = threat.enforce(points, clean)
    shape = (-1, *[1] * (clean.dim() - 1))
    return torch.where(near.view(shape), inside, threat.clamp(points)), outside


@dataclass(frozen=True)
class _Attacked:
    """What a block of records has beyond the verdict if it was attacked.

    forwards, backwards  (n,), the passes spent on each sample.
    outside              (n,), whether the returned point lay outside the ball or the box.
    adversarial          (k, *shape), the judged points of the k misclassified samples.
    """

    forwards: Tensor
    backwards: Tensor
    outside: Tensor
    adversarial: Tensor


def _block(
    index: IntArray,
    label: Tensor,
    verdict: Judgement,
    distance: Tensor,
    began: float,
    attacked: _Attacked | None = None,
) -> Block:
    """The records of a block, which was begun at the time `began`.

    Without an attack there are no passes and no points.
    """
    if attacked is None:
        zeros = torch.zeros_like(label)
        attacked = _Attacked(zeros, zeros, zeros.bool(), torch.empty(0, dtype=torch.float32))
    return Block(
        index=index,
        label=label.cpu().numpy(),
        predicted=verdict.predicted.cpu().numpy(),
        broken=verdict.wrong.cpu().numpy(),
        rate=verdict.rate.cpu().numpy(),
        trial=verdict.trial.cpu().numpy(),
        distance=distance.cpu().numpy(),
        forwards=attacked.forwards.cpu().numpy(),
        backwards=attacked.backwards.cpu().numpy(),
        outside=attacked.outside.cpu().numpy(),
        # Read the clock last, after the copies above have waited for the device.
        seconds=np.full(len(index), (time.perf_counter() - began) / len(index)),
        adversarial=attacked.adversarial.cpu().numpy(),
    )
