"""What was measured: records by sample, in blocks, in memory or on disk.

A cell is one (defense, data, threat, attack, seed). It is a set of blocks, each written whole or
not at all, and a closing note. A run that is killed keeps every block that it finished; running
again, also for more or for fewer samples, works on those alone that no block holds.
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
    """What became of n samples under one attack (or none: natural, certified).

    index         each sample's place among the samples evaluated; label its class.
    predicted     the model's class at the judged point; -1 where its logits are NaN.
    broken        misclassified there, within the threat.
    distance      float64, of the judged point where misclassified, NaN where not; in the cell of a
                  certificate, the radius within which `predicted` holds.
    forwards, backwards   model passes spent on the sample by the attack.
    outside       whether the attack left the sample outside the ball or the box.
    seconds       float64, the time of the block that a sample was measured in, shared equally.
    adversarial   (k, *shape) the judged points of the k misclassified samples, in order.
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

    @property
    def found(self) -> BoolArray:
        """The samples that `adversarial` holds a point for."""
        return ~np.isnan(self.distance)

    def select(self, keep: BoolArray) -> "Block":
        """The block of some samples alone. Points that were not loaded stay so."""
        values = {name: getattr(self, name)[keep] for name in BY_SAMPLE}
        if len(self.adversarial):
            values["adversarial"] = self.adversarial[keep[self.found]]
        return replace(self, **values)

    def frame(self) -> pd.DataFrame:
        """One row per sample, without the images."""
        columns = ("index", "label", "predicted", "broken", "distance", "forwards", "backwards")
        return pd.DataFrame({name: getattr(self, name) for name in columns})


# All fields of a block but the last have one value for each sample.
BY_SAMPLE = tuple(field.name for field in fields(Block))[:-1]


class Cell(Protocol):
    """Where the blocks of one cell are kept. Without `images` their `adversarial` is empty."""

    def blocks(self, images: bool = True) -> Iterator[Block]: ...
    def add(self, block: Block) -> None: ...
    def close(self, note: dict[str, Any]) -> None: ...
    @property
    def note(self) -> dict[str, Any]: ...


class MemoryCell:
    """A cell that lives as long as its report."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self.note: dict[str, Any] = {}

    def blocks(self, images: bool = True) -> Iterator[Block]:
        return iter(self._blocks)

    def add(self, block: Block) -> None:
        self._blocks.append(block)

    def close(self, note: dict[str, Any]) -> None:
        self.note = note


class FolderCell:
    """A cell in a folder: one .npz file per block, and cell.json when closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def blocks(self, images: bool = True) -> Iterator[Block]:
        """The finished blocks, in order. A file that is damaged counts as missing."""
        for path in sorted(self.folder.glob("*.npz")):
            # Read apart from decoding: a disk that fails for a moment has damaged nothing.
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
        # Packed in memory: a disk that is full while zipfile writes makes it raise something else.
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
        return note


def blocks_of(cell: Cell, samples: IntArray, images: bool = True) -> Iterator[Block]:
    """A cell's records of some samples: what it holds of others is left out, and of a sample that
    two blocks hold, the first counts."""
    for block in cell.blocks(images):
        wanted = np.isin(block.index, samples)
        samples = np.setdiff1d(samples, block.index)
        if wanted.any():
            yield block if wanted.all() else block.select(wanted)


def _decode(content: bytes, images: bool) -> Block | None:
    """The block in a file; None where it is damaged."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as data:
            values = {name: data[name] for name in BY_SAMPLE}
            if len({len(value) for value in values.values()}) != 1:
                return None
            images_or_none = data["adversarial"] if images else np.empty(0, np.float32)
            return Block(**values, adversarial=images_or_none)
    except MemoryError:
        raise
    except Exception:  # a damaged file fails in more ways than numpy, zipfile and zlib list
        return None


def write(path: Path, content: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all. Raises UserError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what was measured before is kept: "
            "make room and run the same command again"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises UserError."""
    write(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all. Raises UserError."""
    write_text(path, json.dumps(value, indent=1) + "\n")
