"""Records and adversarial examples of one row, in one small file.

An example is stored as its perturbation, in whole steps of a grid that is as coarse as the example
bears: it is decoded, judged afresh and measured before it is taken, so that what the file holds is
what breaks the model. Numbers about examples, such as distances, are those of the decoded ones.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacks import ThreatModel
from attacks.messages import one_line
from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples
from benchmark.judge.records import BY_SAMPLE, Block, IntArray, MemoryCell
from benchmark.judge.subject import Subject
from benchmark.report.report import Report
from benchmark.spec.components import CERTIFIED, NATURAL

# The finest step. All of [-1, 1] fits 16 bits in it, and 8-bit images lie on it.
_UNIT = 1 / (255 * 128)

# Steps in units, from the coarsest: 32/255, ..., 1/255, and fractions of that.
_STEPS = (4096, 2048, 1024, 512, 256, 128, 32, 8, 1)

# How much further than the example that was found a rounded one may lie: curves go by distances.
_FURTHER = 1.02

# How much longer an example is tried, at the finest step, where rounding alone loses it.
_STRETCHES = (1.001, 1.003, 1.01)

# By what part of the largest logit another class must lead at a rounded example. Less may be
# rounding of the network's, which differs from one machine to the next.
_LEAD = 1e-4

# Bytes of all arrays together, at most: 20 attacks on 10,000 images of CIFAR-10.
_MOST = 1.3e9

# Samples at once.
_AT_ONCE = 256


@dataclass(frozen=True)
class _Coded:
    """Examples of some samples.

    `steps` (k,) are places in _STEPS, `codes` (k, *shape) perturbations in these steps, and `exact`
    (m, *shape) the points of those at the places `loose` (m,), which are in no whole steps.
    """

    steps: NDArray[np.uint8]
    codes: NDArray[np.int16]
    loose: IntArray
    exact: NDArray[np.float32]

    def decode(self, x: Tensor, threat: ThreatModel) -> Tensor:
        """The points (k, *shape), float32, of images x (k, *shape)."""
        units = torch.tensor(_STEPS, dtype=torch.float64)[torch.from_numpy(self.steps).long()]
        scale = (units * _UNIT).view(-1, *[1] * (x.dim() - 1))
        points = _moved(x, torch.from_numpy(self.codes), scale, threat)
        points[torch.from_numpy(self.loose)] = torch.from_numpy(self.exact)
        return points

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is stored. Signs go into the lowest bit, and bytes apart: most high ones are 0."""
        codes = self.codes.astype(int)
        folded = np.where(codes < 0, -2 * codes - 1, 2 * codes)
        low, high = (folded & 255).astype(np.uint8), (folded >> 8).astype(np.uint8)
        loose = self.loose.astype(np.int32)
        return {
            "steps": self.steps, "low": low, "high": high, "loose": loose, "exact": self.exact
        }  # fmt: skip

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], at: str) -> "_Coded":
        """From what is stored, under names that begin with `at`."""
        folded = arrays[f"{at}low"].astype(int) + (arrays[f"{at}high"].astype(int) << 8)
        codes = np.where(folded & 1, -((folded + 1) >> 1), folded >> 1).astype(np.int16)
        loose = arrays[f"{at}loose"].astype(np.int64)
        return cls(arrays[f"{at}steps"], codes, loose, arrays[f"{at}exact"])


def _moved(x: Tensor, codes: Tensor, scale: Tensor | float, threat: ThreatModel) -> Tensor:
    return threat.clamp((x.double() + codes.double() * scale).float())


def _encode(subject: Subject, x: Tensor, y: Tensor, points: Tensor, threat: ThreatModel) -> _Coded:
    """Examples (k, *shape) of images x (k, *shape) with labels y (k,), all of which break the
    model, rounded as far as they still do."""
    last = len(_STEPS) - 1
    steps = torch.full((len(x),), last, dtype=torch.uint8)
    codes = torch.zeros(x.shape, dtype=torch.int16)
    delta, left = points.double() - x.double(), torch.arange(len(x))
    reach = (_FURTHER * threat.length(delta)).clamp_max(threat.eps)
    # To the nearest step, or toward zero, which stays in the ball; then a little longer.
    tries = [
        (place, 1.0, toward_zero) for place in range(last + 1) for toward_zero in (False, True)
    ]
    for place, stretch, toward_zero in [*tries, *((last, s, False) for s in _STRETCHES)]:
        if not len(left):
            break
        tried = _rounded(stretch * delta[left], _STEPS[place] * _UNIT, toward_zero)
        some = _moved(x[left], tried, _STEPS[place] * _UNIT, threat)
        near = threat.distance(some, x[left]) <= reach[left]
        held = near.clone()
        held[near] = _clear(subject, some[near], y[left][near])
        codes[left[held]], steps[left[held]] = tried[held], place
        left = left[~held]
    return _Coded(steps.numpy(), codes.numpy(), left.numpy(), points[left].float().numpy())


def _rounded(delta: Tensor, step: float, toward_zero: bool) -> Tensor:
    """Perturbations in whole steps, int16."""
    scaled = delta / step
    if toward_zero:
        # What is a whole number of steps but for float32 is not one less.
        scaled = scaled.sign() * (scaled.abs() + 1e-3).floor()
    bound = round(1 / step)
    return scaled.round().clamp(-bound, bound).to(torch.int16)


def _clear(subject: Subject, points: Tensor, y: Tensor) -> Tensor:
    """Where the model misclassifies points (k, *shape), and clearly: bool (k,)."""
    clear = [torch.zeros(0, dtype=torch.bool)]
    for x, own in zip(points.split(_AT_ONCE), y.split(_AT_ONCE), strict=True):
        x, own = x.to(subject.device), own.to(subject.device)
        _, wrong = subject.judge(x, own)
        with torch.no_grad():
            logits = subject.model(x.to(subject.dtype))
        most = logits.scatter(1, own[:, None], -torch.inf).amax(1)
        lead = most - logits.gather(1, own[:, None])[:, 0]
        clear.append((wrong & (lead > _LEAD * logits.abs().amax(1))).cpu())
    return torch.cat(clear)


def pack(report: Report, subject: Subject, samples: Samples) -> bytes:
    """What a report was made from, as the content of an evidence file.

    Of examples, those that broke a sample. `subject` judges them, so it must be of the model that
    the report is on.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for place, label in enumerate(report.keys):
        blocks = list(report.blocks(label))
        found = _packed(label, _joined(blocks), subject, samples, report.threat) if blocks else {}
        arrays |= {f"{place}/{name}": array for name, array in found.items()}
    content = io.BytesIO()
    # As numpy's own .npz, which it reads, but a seventh smaller.
    with zipfile.ZipFile(content, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return content.getvalue()


def _joined(blocks: Sequence[Block]) -> Block:
    """All samples of some blocks, in order, with the points of the broken ones alone."""
    order = np.argsort(np.concatenate([block.index for block in blocks]))
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(block, name) for block in blocks])[order]
        for name in BY_SAMPLE
    }
    places = np.argsort(np.concatenate([block.index[block.broken] for block in blocks]))
    points = [
        block.adversarial[block.broken[block.found]] for block in blocks if len(block.adversarial)
    ]
    adversarial: NDArray[Any] = np.concatenate(points)[places] if points else np.empty(0)
    return Block(**joined, adversarial=adversarial)


def _packed(
    label: str, block: Block, subject: Subject, samples: Samples, threat: ThreatModel
) -> dict[str, NDArray[Any]]:
    """What is stored of a cell."""
    arrays: dict[str, NDArray[Any]] = {"index": block.index.astype(np.int32)}
    predicted = block.predicted
    if label == CERTIFIED:
        arrays["radius"] = block.distance
    elif label == NATURAL:
        arrays["label"] = block.label.astype(np.int16)
        # Another class in one precision alone is rounding, and no error.
        predicted = np.where(block.broken, predicted, block.label)
    else:
        arrays["forwards"] = block.forwards.astype(np.int32)
        arrays["backwards"] = block.backwards.astype(np.int32)
        arrays["broken"] = np.packbits(block.broken)
        # Points beyond eps are no evidence of anything: nothing was found within it.
        predicted = np.where(block.found & ~block.broken, block.label, predicted)
    if label not in (NATURAL, CERTIFIED) and block.broken.any():
        at = torch.from_numpy(block.index[block.broken])
        x, y = samples.x[at], samples.y[at]
        coded = _encode(subject, x, y, torch.from_numpy(block.adversarial), threat)
        arrays |= coded.arrays()
        predicted[block.broken] = _classes(subject, coded.decode(x, threat), y)
    return arrays | {"predicted": predicted.astype(np.int16)}


def _classes(subject: Subject, points: Tensor, y: Tensor) -> IntArray:
    parts = zip(points.split(_AT_ONCE), y.split(_AT_ONCE), strict=True)
    judged = [subject.judge(p.to(subject.device), label.to(subject.device)) for p, label in parts]
    return torch.cat([predicted for predicted, _ in judged]).cpu().numpy()


def unpack(
    content: bytes, labels: Sequence[str], samples: Samples, threat: ThreatModel
) -> dict[str, MemoryCell]:
    """The cells in an evidence file, by label, in the order in which they were packed.

    Distances are those of the examples in it. Raises UserError where the file is damaged or does
    not fit the samples.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as data:
            if sum(member.file_size for member in data.zip.infolist()) > _MOST:
                raise UserError(f"the evidence is damaged: unpacked, it is above {_MOST:.0g} bytes")
            arrays = {name: data[name] for name in data.files}
        return {
            label: _cell(label, f"{place}/", arrays, samples, threat)
            for place, label in enumerate(labels)
        }
    except UserError:
        raise
    except Exception as error:  # damaged files fail in more ways than numpy and zipfile list
        raise UserError(f"the evidence is damaged: {one_line(error)}") from error


def _cell(
    label: str,
    at: str,
    arrays: Mapping[str, NDArray[Any]],
    samples: Samples,
    threat: ThreatModel,
) -> MemoryCell:
    cell = MemoryCell()
    if not len(arrays.get(f"{at}index", ())):  # of an attack that does not apply
        return cell
    index = arrays[f"{at}index"].astype(np.int64)
    if not (np.diff(index) > 0).all() or index[0] < 0 or index[-1] >= len(samples):
        raise UserError(f"the evidence is damaged: {label} has samples twice, or others")
    own = samples.y.numpy()[index]
    predicted = arrays[f"{at}predicted"].astype(np.int64)
    nothing = np.zeros_like(index)
    forwards = backwards = nothing
    broken = predicted != own
    distance = np.where(broken, 0.0, np.nan)
    points = np.empty((0, *samples.x.shape[1:]), np.float32)
    if label == CERTIFIED:
        distance = arrays[f"{at}radius"].astype(np.float64)
    elif label == NATURAL:
        own = arrays[f"{at}label"].astype(np.int64)
    else:
        forwards, backwards = (
            arrays[f"{at}{name}"].astype(np.int64) for name in ("forwards", "backwards")
        )
        broken = np.unpackbits(arrays[f"{at}broken"], count=len(index)).astype(bool)
        distance = np.full(len(index), np.nan)
        if broken.any():
            x = samples.x[torch.from_numpy(index[broken])]
            found = _Coded.of(arrays, at).decode(x, threat)
            distance[broken] = threat.distance(found, x).numpy()
            points = found.numpy()
    lengths = {len(part) for part in (own, predicted, forwards, backwards, broken, distance)}
    if lengths != {len(index)} or min(forwards.min(), backwards.min()) < 0:
        raise UserError(f"the evidence is damaged: {label} has not one record for each sample")
    ends = np.concatenate([[0], np.cumsum(broken)])
    for start in range(0, len(index), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        mine = points[ends[start] : ends[min(part.stop, len(index))]] if len(points) else points
        # How long it took, and what was left outside, the record says for the whole cell.
        zeros = np.zeros(len(index[part]))
        cell.add(
            Block(
                index[part], own[part], predicted[part], broken[part], distance[part],
                forwards[part], backwards[part], zeros.astype(bool), zeros,
                mine,
            )
        )  # fmt: skip
    return cell
