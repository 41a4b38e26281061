"""The only place that judges: attacks a model block by block, and believes nothing it is told."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from attacks import Attack, Problem, ThreatModel
from benchmark.judge.records import Block, Cell, IntArray, blocks_of
from benchmark.judge.subject import Subject

# In the keys of all that is judged here. Raised when the verdict on a point, or what is recorded
# of it, changes; `tests/test_versions.py` notices where it was not.
VERSION = 1

# How far, as a part of eps, a returned point may lie outside before the attack is flagged for it.
# It decides a flag only: every point is projected without tolerance before it is judged.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Samples:
    """Images x (n, *shape) in the box, labels y (n,), and the numbers (n,) that name their noise.

    A sample's number is its place in its data set, so that a subset draws what the whole drew.
    """

    x: Tensor
    y: Tensor
    number: IntArray

    def __len__(self) -> int:
        return len(self.x)


class Meter:
    """Counts the forwards and backwards of each sample of a block, and reports progress."""

    def __init__(self, size: int, device: torch.device, tick: Callable[[int], None]) -> None:
        self.forwards = torch.zeros(size, dtype=torch.int64, device=device)
        self.backwards = torch.zeros_like(self.forwards)
        self._one = torch.ones_like(self.forwards)
        self._calls = 0
        self._tick = tick

    def __call__(self, rows: Tensor, logits: Tensor) -> None:
        one = self._one[: len(rows)]
        self.forwards.index_add_(0, rows, one)
        if logits.requires_grad:

            def count(_: Tensor) -> None:
                self.backwards.index_add_(0, rows, one)

            logits.register_hook(count)
        self._calls += 1
        self._tick(self._calls)


def measure_natural(subject: Subject, samples: Samples, cell: Cell, block: int) -> None:
    """Fill a cell with the model's verdicts on clean images."""
    for part in _parts(_remaining(cell, np.arange(len(samples))), block):
        began = time.perf_counter()
        clean, labels = _fetch(subject, samples, part)
        predicted, wrong = subject.judge(clean, labels)
        distance = torch.where(wrong, 0.0, torch.nan).double()
        cell.add(_block(part, labels, predicted, wrong, distance, began))


def measure_radii(
    subject: Subject,
    samples: Samples,
    threat: ThreatModel,
    cell: Cell,
    block: int,
    advance: Callable[[int], None] = lambda samples: None,
) -> None:
    """Fill a cell with what a model's certificate says of clean images.

    `distance` is the radius within which the class holds, in the norm of the threat: a certificate
    is about L2, and an L-infinity distance r is an L2 distance of up to r * sqrt(dimensions).
    `predicted` is the class that it is about, and `broken` where that is wrong. What the
    certificate raises passes through; the blocks before it are kept.
    """
    for part in _parts(_remaining(cell, np.arange(len(samples)), lambda n, _: advance(n)), block):
        began = time.perf_counter()
        clean, labels = _fetch(subject, samples, part)
        predicted, radius = subject.certify(clean)
        if threat.norm == "linf":
            radius = radius / math.sqrt(clean[0].numel())
        cell.add(_block(part, labels, predicted, predicted != labels, radius, began))
        advance(len(part))


def measure_attack(
    subject: Subject,
    samples: Samples,
    index: IntArray,
    threat: ThreatModel,
    attack: Attack,
    seed: int,
    cell: Cell,
    block: int,
    advance: Callable[[int, int], None] = lambda samples, broken: None,
    tick: Callable[[int], None] = lambda calls: None,
    peers: Mapping[str, nn.Module] | None = None,
) -> None:
    """Fill a cell with an attack on the samples at the places `index`.

    `peers` are other models, frozen, on the subject's device, of which the attack gets copies.

    Only samples that no block of the cell holds yet are worked on. `advance` is told of each
    block's (samples, broken ones), those that were there before too, `tick` of each model call
    within a block. What the attack raises passes through; the blocks before it are kept.
    """
    for part in _parts(_remaining(cell, index, advance), block):
        began = time.perf_counter()
        clean, labels = _fetch(subject, samples, part)
        meter = Meter(len(part), subject.device, tick)
        numbers = torch.from_numpy(samples.number[part]).to(subject.device)
        # Copies, because an attack may work in place on what it is given.
        problem = Problem(
            subject.victim(), clean.clone(), labels.clone(), threat, seed, numbers, meter,
            peers=copy.deepcopy(dict(peers or {})),
        )  # fmt: skip
        with torch.enable_grad():
            points = attack(problem).detach()
        if points.shape != clean.shape:
            raise ValueError(f"returned points of shape {tuple(points.shape)}")
        points, outside = _enforce(points.to(clean), clean, attack, threat)
        predicted, wrong = subject.judge(points, labels)
        distance = threat.distance(points, clean)
        broken = wrong & (distance <= threat.eps)
        distance = torch.where(wrong, distance, torch.nan)
        attacked = _Attacked(meter.forwards, meter.backwards, outside, points[wrong])
        cell.add(_block(part, labels, predicted, broken, distance, began, attacked))
        advance(len(part), int(broken.sum()))


def _enforce(
    points: Tensor, clean: Tensor, attack: Attack, threat: ThreatModel
) -> tuple[Tensor, Tensor]:
    """Points in the box, and in the ball where they should be; which were clearly outside (n,)."""
    undefined = points.isnan()
    points = torch.where(undefined, clean, points)
    slack = _ROUNDING * threat.eps
    outside = (points - threat.clamp(points)).abs().flatten(1).amax(1) > slack
    outside |= undefined.flatten(1).any(1)
    near = threat.distance(points, clean) <= threat.eps + slack
    if attack.facts.family == "fixed-budget":
        outside |= ~near
        near = torch.ones_like(near)
    inside = threat.enforce(points, clean)
    shape = (-1, *[1] * (clean.dim() - 1))
    return torch.where(near.view(shape), inside, threat.clamp(points)), outside


def _remaining(
    cell: Cell, index: IntArray, advance: Callable[[int, int], None] = lambda samples, broken: None
) -> IntArray:
    """Those of some places that no block holds yet; `advance` is told of those that one does."""
    held = [np.empty(0, np.int64)]
    for block in blocks_of(cell, index, images=False):
        held.append(block.index)
        advance(len(block.index), int(block.broken.sum()))
    return np.setdiff1d(index, np.concatenate(held))


def _parts(index: IntArray, block: int) -> list[IntArray]:
    return [index[i : i + block] for i in range(0, len(index), block)]


def _fetch(subject: Subject, samples: Samples, part: IntArray) -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(part)
    x, y = samples.x[rows], samples.y[rows]
    return x.to(subject.device, subject.dtype), y.to(subject.device)


@dataclass(frozen=True)
class _Attacked:
    """What an attack did to a block: passes (n,), which points it left outside (n,), and the judged
    points of the misclassified samples."""

    forwards: Tensor
    backwards: Tensor
    outside: Tensor
    adversarial: Tensor


def _block(
    index: IntArray,
    label: Tensor,
    predicted: Tensor,
    broken: Tensor,
    distance: Tensor,
    began: float,
    attacked: _Attacked | None = None,
) -> Block:
    """The records of a block that was begun at a time; without an attack, it took no passes."""
    if attacked is None:
        nothing = torch.zeros_like(label)
        attacked = _Attacked(nothing, nothing, nothing.bool(), torch.empty(0))
    return Block(
        index=index,
        label=label.cpu().numpy(),
        predicted=predicted.cpu().numpy(),
        broken=broken.cpu().numpy(),
        distance=distance.cpu().numpy(),
        forwards=attacked.forwards.cpu().numpy(),
        backwards=attacked.backwards.cpu().numpy(),
        outside=attacked.outside.cpu().numpy(),
        # After all that waits for the device.
        seconds=np.full(len(index), (time.perf_counter() - began) / len(index)),
        adversarial=attacked.adversarial.cpu().numpy(),
    )
