"""Records of what was measured on each sample, kept in memory or on disk.

A cell holds the records of one (defense, data, threat, attack, seed). It is a set of blocks, each
written whole or not at all, and a closing note. A run that is killed keeps every block that it
finished. A second run measures only samples without a record.
"""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmark.errors import UserError
from defenses.weights import write_atomically

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """The records of n samples under one attack, on clean images, or of a certificate.

    index        (n,), the place of each sample among the samples that are evaluated.
    label        (n,), its label.
    predicted    (n,), the model's class at the judged point, which is the point that the attack
                 returned, or the clean image; -1 where the logits are NaN.
    broken       (n,), whether the judged point is misclassified and within the threat.
    distance     (n,), float64, the distance of the judged point if it is misclassified, and NaN if
                 not; for a certificate, the radius within which the class does not change.
    forwards     (n,), the forward passes that the attack spent on the sample.
    backwards    (n,), the backward passes.
    outside      (n,), whether the attack returned a point outside the ball or the box.
    seconds      (n,), float64, an equal share of the time that the whole block took.
    adversarial  (k, *shape), the judged points of the k misclassified samples, in order.
    rate         (n,), float64, in what share of its draws a randomised model misclassifies the
                 judged point; 0 or 1, as `broken`, for any other model, and 0 beyond the threat.
    trial        (n,), the same over other draws, by which the worst of several points is chosen.
    stage        (n,), text, the stage of the attack that broke the sample, where it says so; of a
                 search for proofs, what proved the sample or broke it, as `Decision.by` has it.
    bound        (n,), float64, of a search for proofs: by how much the label leads at least; NaN
                 elsewhere.
    """

    index: IntArray
    label: IntArray
    predicted: IntArray
    broken: BoolArray
    distance: NDArray[np.float64]
    forwards: IntArray
    backwards: IntArray
    outside: BoolArray
    seconds: NDArray[np.float64]
    adversarial: NDArray[np.float32] | NDArray[np.float64]
    rate: NDArray[np.float64] | None = None
    trial: NDArray[np.float64] | None = None
    stage: NDArray[np.str_] | None = None
    bound: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.bound is None:
            object.__setattr__(self, "bound", np.full(len(self.index), np.nan))
        if self.stage is None:
            object.__setattr__(self, "stage", np.full(len(self.index), "", np.str_))
        for name in BY_DRAWS:
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.broken.astype(np.float64))

    @property
    def found(self) -> BoolArray:
        """(n,), the samples for which `adversarial` holds a point."""
        return ~np.isnan(self.distance)

    def select(self, keep: BoolArray) -> "Block":
        """The block with the samples to `keep` (n,) alone, and with their points if it has any."""
        values = {name: getattr(self, name)[keep] for name in BY_SAMPLE}
        if len(self.adversarial):
            values["adversarial"] = self.adversarial[keep[self.found]]
        return replace(self, **values)

    def frame(self) -> pd.DataFrame:
        """A table with one row for each sample, without its points."""
        columns = (
            *("index", "label", "predicted", "broken", "distance", "forwards", "backwards"),
            *BY_DRAWS,
            "stage",
        )
        return pd.DataFrame({name: getattr(self, name) for name in columns})


# The fields of a block that have one value for each sample: all but the points. The last two are
# kept where they say more than `broken`.
BY_DRAWS = ("rate", "trial")
_LATER = (*BY_DRAWS, "stage", "bound")
BY_SAMPLE = tuple(field.name for field in fields(Block) if field.name != "adversarial")
# How many samples, and bytes of points, two blocks in memory have at most that are joined.
_JOINED, _LARGE = 256, 1 << 20
# What kind of numbers numpy says that they are, where they are not integers.
_KINDS = {"broken": "b", "outside": "b", "stage": "U"} | dict.fromkeys(
    ("distance", "seconds", "bound", *BY_DRAWS), "f"
)


class Cell(Protocol):
    """A place that keeps the blocks of one cell, and a note about the whole cell."""

    def blocks(self, images: bool = True) -> Iterator[Block]:
        """The blocks so far. If not `images`, their `adversarial` may be empty."""
        ...

    def add(self, block: Block) -> None:
        """Keep a further block."""
        ...

    def close(self, note: dict[str, Any]) -> None:
        """Note what is true of the whole cell, when all its samples are measured."""
        ...

    @property
    def note(self) -> dict[str, Any]:
        """The note; empty if the cell was never closed."""
        ...


class MemoryCell:
    """A cell in memory."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self.note: dict[str, Any] = {}

    def blocks(self, images: bool = True) -> Iterator[Block]:
        return iter(self._blocks)

    def add(self, block: Block) -> None:
        """Keep a further block. Small ones are joined: as arrays of a few samples, records would
        take a hundred times the memory of their numbers."""
        self._blocks.append(block)
        while len(self._blocks) > 1 and (joined := _joined(*self._blocks[-2:])) is not None:
            self._blocks[-2:] = [joined]

    def close(self, note: dict[str, Any]) -> None:
        self.note = note


class FolderCell:
    """A cell in a folder, with an .npz file for each block, and cell.json for the note."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def blocks(self, images: bool = True) -> Iterator[Block]:
        """The blocks, in order. A damaged file counts as missing, so that it is measured again."""
        for path in sorted(self.folder.glob("*.npz")):
            # A file that cannot be read is an error: it need not be damaged.
            try:
                content = path.read_bytes()
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror or error}") from error
            block = _decode(content, images)
            if block is not None:
                yield block

    def add(self, block: Block) -> None:
        name = f"{block.index.min():06d}-{block.index.max():06d}.npz"
        arrays = {field.name: getattr(block, field.name) for field in fields(Block)}
        # Pack in memory first: zipfile hides the error of a disk that becomes full under it.
        content = io.BytesIO()
        np.savez(content, **arrays)
        write(self.folder / name, lambda file: file.write(content.getbuffer()))

    def close(self, note: dict[str, Any]) -> None:
        write_json(self.folder / "cell.json", note)

    @property
    def note(self) -> dict[str, Any]:
        try:
            note: dict[str, Any] = json.loads((self.folder / "cell.json").read_text())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}


def _joined(first: Block, second: Block) -> Block | None:
    """Two blocks as one; None where the first is much larger, so that no record is copied often,
    where they are large, or not of different samples."""
    size = first.adversarial.nbytes + second.adversarial.nbytes
    count = len(first.index) + len(second.index)
    if len(first.index) > len(second.index) or count > _JOINED or size > _LARGE:
        return None
    if len(np.intersect1d(first.index, second.index)):
        return None
    points = [block.adversarial for block in (first, second) if len(block.adversarial)]
    if len(points) == 2 and points[0].shape[1:] != points[1].shape[1:]:
        return None
    values = {
        name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in BY_SAMPLE
    }
    values["adversarial"] = np.concatenate(points) if points else first.adversarial
    return Block(**values)


def blocks_of(cell: Cell, samples: IntArray, images: bool = True) -> Iterator[Block]:
    """The blocks of a cell with the records of some samples alone.

    samples  (k,), the places of the samples. If two blocks hold a sample, the first counts.
    images   as for `Cell.blocks`.
    """
    left = np.zeros(int(samples.max(initial=-1)) + 1, dtype=bool)
    left[samples] = True
    for block in cell.blocks(images):
        known = (block.index >= 0) & (block.index < len(left))
        wanted = known.copy()
        wanted[known] = left[block.index[known]]
        left[block.index[known]] = False
        if wanted.any():
            yield block if wanted.all() else block.select(wanted)


def _decode(content: bytes, images: bool) -> Block | None:
    """The block in the content of a file; None if that is damaged."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as data:
            # Records of earlier versions, which knew no randomised models, have no draws, and no
            # stages or bounds.
            names = [name for name in BY_SAMPLE if name in data or name not in _LATER]
            # Points are read even where they are not wanted: a block of which they are damaged must
            # be measured again.
            block = Block(**{name: data[name] for name in names}, adversarial=data["adversarial"])
        if not _is_whole(block):
            return None
        return block if images else replace(block, adversarial=np.empty(0, np.float32))
    except MemoryError:
        raise
    except Exception:  # a damaged file fails in more ways than numpy, zipfile and zlib list
        return None


def _is_whole(block: Block) -> bool:
    """Whether a block has one value of the right kind in each field for each sample, has no sample
    twice, and has a point for each one found, or none where none are kept."""
    n = len(block.index)
    kinds = {name: getattr(block, name).dtype.kind for name in BY_SAMPLE}
    return (
        n > 0
        and all(getattr(block, name).shape == (n,) for name in BY_SAMPLE)
        and all(kind == _KINDS.get(name, "i") for name, kind in kinds.items())
        and len(np.unique(block.index)) == n
        and block.adversarial.dtype.kind == "f"
        and len(block.adversarial) in (0, int(block.found.sum()))
    )


def write(path: Path, content: Callable[[BinaryIO], object]) -> None:
    """Write a file, whole or not at all. Raises UserError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what was measured before is kept: "
            "make room and run the same command again"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, as `write` does."""
    write(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file, as `write` does."""
    write_text(path, json.dumps(value, indent=1) + "\n")
