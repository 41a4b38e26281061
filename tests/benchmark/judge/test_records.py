"""Records on disk: whole or not at all, and a cell for each thing that determines a result."""

import errno
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import Facts, Problem, ThreatModel
from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples
from benchmark.judge.examination import examine
from benchmark.judge.records import (
    BY_SAMPLE,
    Block,
    FolderCell,
    MemoryCell,
    blocks_of,
    write,
    write_json,
    write_text,
)
from tests.benchmark.small import Noted, measure_attack


def _block(start: int = 0, size: int = 4, seed: int = 0) -> Block:
    rng = np.random.default_rng(seed)
    index = np.arange(start, start + size)
    distance = np.where(np.arange(size) % 2 == 0, rng.random(size), np.nan)
    points = rng.random(((size + 1) // 2, 3), dtype=np.float32)
    counts = rng.integers(0, 9, size)
    return Block(
        index, counts, counts, ~np.isnan(distance), distance, counts, counts,
        outside=counts > 4, seconds=rng.random(size), adversarial=points,
    )  # fmt: skip


def _same(one: Block, other: Block) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")
        and np.asarray(a).dtype == np.asarray(b).dtype
        for a, b in ((getattr(one, f.name), getattr(other, f.name)) for f in fields(Block))
    )


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ValueError("a bug")])
def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(file: BinaryIO) -> None:
        file.write(b"new" * 10_000)
        raise error

    with pytest.raises((UserError, ValueError)):
        write(path, fail)
    assert path.read_text() == "old"
    assert _files(tmp_path) == ["file"]

    with pytest.raises((UserError, ValueError)):
        write(tmp_path / "another", fail)
    assert _files(tmp_path) == ["file"]


def test_a_full_disk_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError) as error:
        write(tmp_path / "file", fail)
    assert str(error.value) == (
        f"cannot write {tmp_path / 'file'}: No space left on device; what was measured before is "
        "kept: make room and run the same command again"
    )
    (tmp_path / "plain").write_text("")
    with pytest.raises(UserError, match=r"^cannot write .*plain/file: "):
        write_json(tmp_path / "plain" / "file", {})


def test_a_cell_gives_back_what_it_was_given(tmp_path: Path) -> None:
    cell = FolderCell(tmp_path / "cell")
    assert list(cell.blocks()) == []
    assert cell.note == {}
    blocks = [_block(0, 4, 0), _block(4, 1, 1), _block(5, 3, 2)]
    for block in reversed(blocks):
        cell.add(block)
    cell.close({"identity": {"a": 1}})
    again = FolderCell(tmp_path / "cell")
    assert all(_same(a, b) for a, b in zip(again.blocks(), blocks, strict=True))
    assert again.note == {"identity": {"a": 1}}


def test_a_damaged_block_is_dropped_and_never_read_as_another(tmp_path: Path) -> None:
    cell, block = FolderCell(tmp_path), _block(size=40)
    cell.add(block)
    (path,) = tmp_path.glob("*.npz")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    damaged = [whole[:cut] for cut in rng.integers(0, len(whole), 40)]
    damaged += [b"", b"\0" * len(whole), b"PK" + whole]
    for place in rng.integers(0, len(whole), 400):
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        damaged.append(bytes(changed))
    dropped = 0
    for content in damaged:
        path.write_bytes(content)
        found = list(cell.blocks())
        # Some bytes of a zip file, such as its dates, mean nothing here.
        assert not found or _same(found[0], block)
        assert path.exists()
        dropped += not found
    assert dropped > len(damaged) / 2


def test_a_block_that_cannot_be_read_now_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = FolderCell(tmp_path)
    cell.add(_block())
    (path,) = tmp_path.glob("*.npz")

    def fail(self: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", fail)
        with pytest.raises(UserError, match=f"^cannot read {path}: Too many open files$"):
            list(cell.blocks())
    assert _same(next(cell.blocks()), _block())


def test_a_damaged_note_is_as_none(tmp_path: Path) -> None:
    cell = FolderCell(tmp_path)
    (tmp_path / "cell.json").write_text('{"identity": ')
    assert cell.note == {}


@dataclass(frozen=True)
class Noting:
    """Notes which samples it is given, and gives them back as they are."""

    seen: Noted
    facts: ClassVar[Facts] = Facts("fixed-budget", norms=("l2",))

    def __call__(self, problem: Problem) -> Tensor:
        self.seen.extend(problem.index.tolist())
        return problem.x


def test_only_the_samples_of_a_damaged_block_are_attacked_anew(tmp_path: Path) -> None:
    x, y = torch.rand(10, 3), torch.zeros(10, dtype=torch.int64)
    samples = Samples(x, y, np.arange(100, 110))
    cell, attack = FolderCell(tmp_path), Noting(Noted())

    def attacked() -> list[int]:
        attack.seen.clear()
        subject = examine(nn.Linear(3, 2), x, torch.device("cpu"))
        measure_attack(subject, samples, np.arange(10), ThreatModel("l2", 1.0), attack, 0, cell, 4)
        return attack.seen

    assert attacked() == list(range(100, 110))
    assert _files(tmp_path) == ["000000-000003.npz", "000004-000006.npz", "000007-000009.npz"]
    assert attacked() == []
    content = (tmp_path / "000004-000006.npz").read_bytes()
    (tmp_path / "000004-000006.npz").write_bytes(content[:-30])
    assert attacked() == [104, 105, 106]
    (tmp_path / "000007-000009.npz").unlink()
    assert attacked() == [107, 108, 109]
    assert sorted(i for b in cell.blocks() for i in b.index.tolist()) == list(range(10))


def test_the_records_of_some_samples_are_those_alone() -> None:
    cell = MemoryCell()
    for block in (_block(0, 6, 0), _block(6, 5, 1)):
        cell.add(block)
    wanted = np.array([1, 4, 8])
    first, second = blocks_of(cell, wanted)
    assert [*first.index, *second.index] == [1, 4, 8]
    whole = {int(i): block for block in cell.blocks() for i in block.index}
    for block in (first, second):
        assert len(block.adversarial) == block.found.sum()
        points = iter(block.adversarial)
        for place, sample in enumerate(block.index):
            source = whole[int(sample)]
            at = int(np.flatnonzero(source.index == sample)[0])
            for name in BY_SAMPLE:
                np.testing.assert_array_equal(
                    getattr(block, name)[place], getattr(source, name)[at]
                )
            if block.found[place]:
                before = int(source.found[:at].sum())
                np.testing.assert_array_equal(next(points), source.adversarial[before])


def test_of_a_sample_that_two_blocks_hold_the_first_counts() -> None:
    cell = MemoryCell()
    for block in (_block(0, 4, 0), _block(2, 4, 1)):
        cell.add(block)
    blocks = list(blocks_of(cell, np.arange(6)))
    assert [block.index.tolist() for block in blocks] == [[0, 1, 2, 3], [4, 5]]


def test_more_samples_are_attacked_alone_and_fewer_not_at_all(tmp_path: Path) -> None:
    x, y = torch.rand(20, 3), torch.zeros(20, dtype=torch.int64)
    samples, attack = Samples(x, y, np.arange(20)), Noting(Noted())
    subject = examine(nn.Linear(3, 2), x, torch.device("cpu"))
    seen = []
    for count in (10, 20, 4):
        attack.seen.clear()
        index = np.arange(count)
        measure_attack(
            subject, samples, index, ThreatModel("l2", 1.0), attack, 0, FolderCell(tmp_path), 8
        )
        seen.append(list(attack.seen))
    assert seen == [list(range(10)), list(range(10, 20)), []]
