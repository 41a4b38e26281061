"""The evidence for one row: its records and adversarial examples, in one small file.

An example is stored as its perturbation, rounded to whole steps of a grid. The grid is the coarsest
on which the rounded example still breaks the model; it is found by decoding the example, judging it
again and measuring it, grid by grid. So what the file holds is what breaks the model, and its
numbers, such as distances, are those of the decoded examples.
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
from benchmark.judge.steadiness import call
from benchmark.judge.subject import Subject
from benchmark.report.report import Report
from benchmark.spec.components import CERTIFIED, NATURAL, SEARCH

# The finest step. All of [-1, 1] fits into 16 bits in it, and pixels of 8 bits are whole in it.
_UNIT = 1 / (255 * 128)

# The steps in units of the finest, the coarsest first: 32/255, ..., 1/255, and fractions of that.
_STEPS = (4096, 2048, 1024, 512, 256, 128, 32, 8, 1)

# How much farther from the image a rounded example may lie than the example that an attack found,
# because curves show the distances.
_FURTHER = 1.02

# The factors by which a perturbation is made longer, at the finest step, where its rounding alone
# does not break the model.
_STRETCHES = (1.001, 1.003, 1.01)

# By how much another class must lead at a rounded example, relative to the largest logit. A smaller
# lead may be lost on another machine, where the network rounds differently.
_LEAD = 1e-4

# The most bytes that all arrays of a file may take: 20 attacks on 10,000 images of CIFAR-10.
_MOST = 1.3e9

# How many samples are judged at once.
_AT_ONCE = 256


@dataclass(frozen=True)
class _Coded:
    """The encoded examples of k samples.

    steps  (k,), the step of each example, as a place in _STEPS.
    codes  (k, *shape), the perturbations in whole steps.
    loose  (m,), the places of the examples that no whole number of steps can express.
    exact  (m, *shape), the points of these examples.
    """

    steps: NDArray[np.uint8]
    codes: NDArray[np.int16]
    loose: IntArray
    exact: NDArray[np.float32]

    def decode(self, x: Tensor, threat: ThreatModel) -> Tensor:
        """The points (k, *shape), float32, for the clean images x (k, *shape)."""
        units = torch.tensor(_STEPS, dtype=torch.float64)[torch.from_numpy(self.steps).long()]
        scale = (units * _UNIT).view(-1, *[1] * (x.dim() - 1))
        points = _moved(x, torch.from_numpy(self.codes), scale, threat)
        points[torch.from_numpy(self.loose)] = torch.from_numpy(self.exact)
        return points

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays to store, by name.

        Signs become the lowest bit, and the high bytes an array by themselves, which compresses
        well because most are 0.
        """
        codes = self.codes.astype(int)
        folded = np.where(codes < 0, -2 * codes - 1, 2 * codes)
        low, high = (folded & 255).astype(np.uint8), (folded >> 8).astype(np.uint8)
        loose = self.loose.astype(np.int32)
        return {
            "steps": self.steps, "low": low, "high": high, "loose": loose, "exact": self.exact
        }  # fmt: skip

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], at: str) -> "_Coded":
        """The examples in arrays whose names begin with `at`."""
        folded = arrays[f"{at}low"].astype(int) + (arrays[f"{at}high"].astype(int) << 8)
        codes = np.where(folded & 1, -((folded + 1) >> 1), folded >> 1).astype(np.int16)
        loose = arrays[f"{at}loose"].astype(np.int64)
        return cls(arrays[f"{at}steps"], codes, loose, arrays[f"{at}exact"])


def _moved(x: Tensor, codes: Tensor, scale: Tensor | float, threat: ThreatModel) -> Tensor:
    """The points, in the box, at perturbations of x that are given in steps of length `scale`."""
    return threat.clamp((x.double() + codes.double() * scale).float())


def _encode(subject: Subject, x: Tensor, y: Tensor, points: Tensor, threat: ThreatModel) -> _Coded:
    """Encode examples in the coarsest steps in which they still break the model.

    x, y    (k, *shape) and (k,), the clean images and their labels.
    points  (k, *shape), the examples, all of which break the model.
    """
    last = len(_STEPS) - 1
    steps = torch.full((len(x),), last, dtype=torch.uint8)
    codes = torch.zeros(x.shape, dtype=torch.int16)
    delta, left = points.double() - x.double(), torch.arange(len(x))
    reach = (_FURTHER * threat.length(delta)).clamp_max(threat.eps)
    # With each step, round to the nearest multiple, then toward zero, which stays in the ball. With
    # the finest, make the perturbation a little longer in the end.
    tries = [
        (place, 1.0, toward_zero) for place in range(last + 1) for toward_zero in (False, True)
    ]
    tries += [(last, stretch, False) for stretch in _STRETCHES]
    for place, stretch, toward_zero in tries:
        if not len(left):
            break
        rounded = _rounded(stretch * delta[left], _STEPS[place] * _UNIT, toward_zero)
        decoded = _moved(x[left], rounded, _STEPS[place] * _UNIT, threat)
        near = threat.distance(decoded, x[left]) <= reach[left]
        holds = near.clone()
        holds[near] = _clear(subject, decoded[near], y[left][near])
        codes[left[holds]], steps[left[holds]] = rounded[holds], place
        left = left[~holds]
    return _Coded(steps.numpy(), codes.numpy(), left.numpy(), points[left].float().numpy())


def _rounded(delta: Tensor, step: float, toward_zero: bool) -> Tensor:
    """Perturbations as whole numbers of steps, int16."""
    scaled = delta / step
    if toward_zero:
        # A number of steps that is whole but for the rounding of float32 must not become one less.
        scaled = scaled.sign() * (scaled.abs() + 1e-3).floor()
    bound = round(1 / step)
    return scaled.round().clamp(-bound, bound).to(torch.int16)


def _clear(subject: Subject, points: Tensor, y: Tensor) -> Tensor:
    """Which points (k, *shape) the model misclassifies by a clear lead: bool (k,)."""
    clear = [torch.zeros(0, dtype=torch.bool)]
    for x, labels in zip(points.split(_AT_ONCE), y.split(_AT_ONCE), strict=True):
        x, labels = x.to(subject.device), labels.to(subject.device)
        wrong = subject.judge(x, labels).wrong
        logits = call(subject.model, x.to(subject.dtype))
        best_other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        lead = best_other - logits.gather(1, labels[:, None])[:, 0]
        clear.append((wrong & (lead > _LEAD * logits.abs().amax(1))).cpu())
    return torch.cat(clear)


def pack(report: Report, subject: Subject, samples: Samples) -> bytes:
    """Pack the records of a report into the content of an evidence file.

    Only examples that broke a sample are packed. `subject` judges them again, so it must be of the
    model that the report is on.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for place, label in enumerate(report.keys):
        blocks = list(report.blocks(label))
        packed = _packed(label, _joined(blocks), subject, samples, report.threat) if blocks else {}
        arrays |= {f"{place}/{name}": array for name, array in packed.items()}
    content = io.BytesIO()
    # The format is that of numpy's .npz, which numpy can read, but LZMA makes it a seventh smaller.
    with zipfile.ZipFile(content, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return content.getvalue()


def _joined(blocks: Sequence[Block]) -> Block:
    """One block with all samples of some blocks, in order, and points of the broken ones alone."""
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


# What proves a sample or breaks it in a search for proofs, in order.
_PROVEN_BY = np.array(["", "alpha-crown", "branching", "crown", "solver"])


def _packed(
    label: str, block: Block, subject: Subject, samples: Samples, threat: ThreatModel
) -> dict[str, NDArray[Any]]:
    """The arrays to store for the records of one cell, by name."""
    arrays: dict[str, NDArray[Any]] = {"index": block.index.astype(np.int32)}
    predicted = block.predicted
    if label in (NATURAL, CERTIFIED):
        # A class that is wrong in one precision alone is due to rounding, and not an error.
        predicted = np.where(block.broken, predicted, block.label)
    if label == CERTIFIED:
        arrays["radius"] = block.distance
    elif label == NATURAL:
        arrays["label"] = block.label.astype(np.int16)
    else:
        arrays["forwards"] = block.forwards.astype(np.int32)
        arrays["backwards"] = block.backwards.astype(np.int32)
        arrays["broken"] = np.packbits(block.broken)
        # Points beyond eps are not stored; the evidence is then that nothing was found within it.
        predicted = np.where(block.found & ~block.broken, block.label, predicted)
    if label == SEARCH:
        arrays["by"] = np.searchsorted(_PROVEN_BY, np.asarray(block.stage)).astype(np.int8)
        arrays["bound"] = np.asarray(block.bound)
    if label not in (NATURAL, CERTIFIED) and block.broken.any():
        places = torch.from_numpy(block.index[block.broken])
        x, y = samples.x[places], samples.y[places]
        coded = _encode(subject, x, y, torch.from_numpy(block.adversarial), threat)
        arrays |= coded.arrays()
        predicted[block.broken] = _classes(subject, coded.decode(x, threat), y)
    return arrays | {"predicted": predicted.astype(np.int16)}


def _classes(subject: Subject, points: Tensor, y: Tensor) -> IntArray:
    """The classes (k,) of points (k, *shape) with labels y (k,)."""
    device = subject.device
    batches = zip(points.split(_AT_ONCE), y.split(_AT_ONCE), strict=True)
    judged = [subject.judge(x.to(device), labels.to(device)).predicted for x, labels in batches]
    return torch.cat(judged).cpu().numpy()


def unpack(
    content: bytes, labels: Sequence[str], samples: Samples, threat: ThreatModel
) -> dict[str, MemoryCell]:
    """Unpack the cells in the content of an evidence file.

    labels   the labels of the cells, in the order in which they were packed.
    samples  the samples that they were measured on.

    Returns the cells by label, with the distances of the decoded examples. Raises UserError where
    the file is damaged or does not fit the samples.
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


def _proofs(
    arrays: Mapping[str, NDArray[Any]], at: str, n: int
) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """What proved each of n samples, and by how much the label leads."""
    if f"{at}by" not in arrays:
        return np.full(n, "", dtype="U16"), np.full(n, np.nan)
    return _PROVEN_BY[arrays[f"{at}by"]], arrays[f"{at}bound"].astype(np.float64)


def _cell(
    label: str,
    at: str,
    arrays: Mapping[str, NDArray[Any]],
    samples: Samples,
    threat: ThreatModel,
) -> MemoryCell:
    """The cell in the arrays whose names begin with `at`."""
    # Read which samples it holds.
    cell = MemoryCell()
    if not len(arrays.get(f"{at}index", ())):  # an attack that does not apply to the model
        return cell
    index = arrays[f"{at}index"].astype(np.int64)
    if not (np.diff(index) > 0).all() or index[0] < 0 or index[-1] >= len(samples):
        raise UserError(f"the evidence is damaged: {label} has samples twice, or others")
    # Read what the records say of them.
    labels = samples.y.numpy()[index]
    predicted = arrays[f"{at}predicted"].astype(np.int64)
    forwards = backwards = np.zeros_like(index)
    broken = predicted != labels
    distance = np.where(broken, 0.0, np.nan)
    points = np.empty((0, *samples.x.shape[1:]), np.float32)
    stage, bound = _proofs(arrays, at, len(index))
    if label == CERTIFIED:
        distance = arrays[f"{at}radius"].astype(np.float64)
    elif label == NATURAL:
        labels = arrays[f"{at}label"].astype(np.int64)
    else:
        forwards, backwards = (
            arrays[f"{at}{name}"].astype(np.int64) for name in ("forwards", "backwards")
        )
        broken = np.unpackbits(arrays[f"{at}broken"], count=len(index)).astype(bool)
        distance = np.full(len(index), np.nan)
        if broken.any():
            x = samples.x[torch.from_numpy(index[broken])]
            decoded = _Coded.of(arrays, at).decode(x, threat)
            distance[broken] = threat.distance(decoded, x).numpy()
            points = decoded.numpy()
    columns = (labels, predicted, forwards, backwards, broken, distance, stage, bound)
    lengths = {len(column) for column in columns}
    if lengths != {len(index)} or min(forwards.min(), backwards.min()) < 0:
        raise UserError(f"the evidence is damaged: {label} has not one record for each sample")
    # Make blocks of them: the points of the samples before place i are the first ends[i].
    ends = np.concatenate([[0], np.cumsum(broken)])
    for start in range(0, len(index), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        end = min(rows.stop, len(index))
        adversarial = points[ends[start] : ends[end]] if len(points) else points
        # The record holds the seconds and the count of points outside for the cell as a whole.
        zeros = np.zeros(end - start)
        cell.add(
            Block(
                index[rows], labels[rows], predicted[rows], broken[rows], distance[rows],
                forwards[rows], backwards[rows], zeros.astype(bool), zeros, adversarial,
                stage=stage[rows], bound=bound[rows],
            )
        )  # fmt: skip
    return cell
