"""Records on disk: whole or not at all, and a cell for each thing that determines a result."""

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import Facts, Problem, ThreatModel
from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples, measure_attack
from benchmark.judge.records import Block, FolderCell, cell_key, write, write_json, write_text
from benchmark.judge.subject import examine
from benchmark.run import runner
from benchmark.spec.run_spec import make_spec


def _block(start: int = 0, size: int = 4, seed: int = 0) -> Block:
    rng = np.random.default_rng(seed)
    index = np.arange(start, start + size)
    distance = np.where(np.arange(size) % 2 == 0, rng.random(size), np.nan)
    points = rng.random(((size + 1) // 2, 3), dtype=np.float32)
    counts = rng.integers(0, 9, size)
    return Block(
        index, counts, counts, ~np.isnan(distance), distance, counts, counts, points, 2, 0.5
    )


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
    blocks = [_block(0, 4, 0), _block(4, 1, 1), replace(_block(5, 3, 2), outside=0)]
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

    seen: list[int]
    facts: ClassVar[Facts] = Facts("fixed-budget", norms=("l2",))

    def __call__(self, problem: Problem) -> Tensor:
        self.seen.extend(problem.index.tolist())
        return problem.x


def test_only_the_samples_of_a_damaged_block_are_attacked_anew(tmp_path: Path) -> None:
    x, y = torch.rand(10, 3), torch.zeros(10, dtype=torch.int64)
    samples = Samples(x, y, np.arange(100, 110))
    cell, attack = FolderCell(tmp_path), Noting([])

    def attacked() -> list[int]:
        attack.seen.clear()
        subject = examine(nn.Linear(3, 2), torch.device("cpu"), torch.float32)
        measure_attack(subject, samples, np.arange(10), ThreatModel("l2", 1.0), attack, 0, cell, 4)
        return attack.seen

    assert attacked() == list(range(100, 110))
    assert _files(tmp_path) == ["000000-000003.npz", "000004-000007.npz", "000008-000009.npz"]
    assert attacked() == []
    content = (tmp_path / "000004-000007.npz").read_bytes()
    (tmp_path / "000004-000007.npz").write_bytes(content[:-30])
    assert attacked() == [104, 105, 106, 107]
    (tmp_path / "000008-000009.npz").unlink()
    assert attacked() == [108, 109]
    assert sorted(i for b in cell.blocks() for i in b.index.tolist()) == list(range(10))


def test_a_key_is_of_the_content_and_not_of_its_order() -> None:
    assert cell_key({"a": 1, "b": {"c": 2.5, "d": None}}) == cell_key(
        {"b": {"d": None, "c": 2.5}, "a": 1}
    )
    keys = [cell_key(v) for v in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": 1, "b": 1}, {})]
    assert len(set(keys)) == len(keys)


PLUGIN = """
from dataclasses import dataclass, replace

from attacks import PGD
from benchmark.data.sets import Dataset, Split, digits


@dataclass(frozen=True)
class Mine(PGD):
    size: int = 1


def photos(root):
    ten = digits(root)
    return Dataset("photos", ten.labels, ten.shape, lambda part: Split(ten.test.x / 2, ten.test.y))


ATTACKS = {"mine": Mine}
DATASETS = {"photos": photos}
"""
NET = """
from torch import nn


def net():
    return nn.Sequential(Net())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))
"""
Keys = Callable[..., tuple[str, str]]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """The keys of the natural and of the attack's cell of a tiny run, with a plugin's text."""
    (tmp_path / "net.py").write_text(NET)

    def make(plugin: str = PLUGIN, **changes: Any) -> tuple[str, str]:
        (tmp_path / "plugin.py").write_text(plugin)
        spec = make_spec(
            {"samples": 8, "eps": 0.5, "defenses": ["vanilla/epochs=0"]}
            | {"attacks": ["mine/steps=1"], "plugins": [str(tmp_path / "plugin.py")]}
            | changes
        )
        runner.run(spec, tmp_path / "run", None, False, lambda line: None)
        manifest = json.loads((tmp_path / "run" / "run.json").read_text())
        natural, attack = manifest["rows"][0]["cells"].values()
        return natural, attack

    return make


@pytest.mark.parametrize(
    "change",
    [
        {"defenses": ["vanilla/epochs=0/widen=0.5"]},
        {"defenses": ["vanilla/epochs=1"]},
        {"data": "digits/pair=3-8"},
        {"data": "photos"},
        {"samples": 9},
        {"precision": "float64"},
        {"seed": 1},  # of the training too, and so the weights are others
    ],
)
def test_what_determines_clean_verdicts_changes_both_cells(
    keys: Keys, change: dict[str, Any]
) -> None:
    before, after = keys(), keys(**change)
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    "change",
    [
        {"eps": 0.6},
        {"norm": "linf"},
        {"attacks": ["mine/steps=2"]},
        {"attacks": ["mine/steps=1/size=2"]},
        {"attacks": ["pgd/steps=1"]},
        {"plugin": PLUGIN + "# Changed.\n"},
    ],
)
def test_what_determines_an_attack_changes_its_cell_alone(
    keys: Keys, change: dict[str, Any]
) -> None:
    before, after = keys(), keys(**change)
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_the_seed_changes_the_attacks_cell_where_the_weights_do_not(
    keys: Keys, tmp_path: Path
) -> None:
    keys()
    (saved,) = (tmp_path / "run" / "defenses").iterdir()
    one, other = (keys(defenses=[f"saved:{saved}"], seed=seed) for seed in (0, 1))
    assert one[0] == other[0]
    assert one[1] != other[1]


@pytest.mark.parametrize(
    "change", [{"block": 3}, {"device": "cpu"}, {"attacks": ["mine/steps=01"]}]
)
def test_what_determines_nothing_changes_no_cell(keys: Keys, change: dict[str, Any]) -> None:
    assert keys() == keys(**change)


@pytest.mark.parametrize("wrapped", [{}, {"mean": [0.5], "std": [0.5]}])
def test_the_code_of_a_foreign_model_changes_both_cells(
    keys: Keys, tmp_path: Path, wrapped: dict[str, Any]
) -> None:
    foreign = {"name": "external", "model": f"{tmp_path / 'net.py'}:net", **wrapped}
    before = keys(defenses=[foreign])
    assert keys(defenses=[foreign]) == before
    (tmp_path / "net.py").write_text(NET.replace("x.flatten(1)", "x.flatten(1).square()"))
    after = keys(defenses=[foreign])
    assert before[0] != after[0]
    assert before[1] != after[1]
