"""A run holds if it was measured, and does not if anything in it was changed afterwards."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from attacks import PGD, Problem
from benchmark.data.sets import load_dataset
from benchmark.judge.records import Block, FolderCell
from benchmark.keys import key_of
from benchmark.spec.registry import load_plugin
from tests.benchmark.conftest import Cli, Ended

PGD5, CW = "pgd/steps=5", "cw/steps=20/searches=2/minimize"
PLUGIN = """
from pathlib import Path

from benchmark.data.dataset import Dataset, Split
from benchmark.data.sets import digits


def photos(root):
    # A file beside this one says by how much the images are darkened.
    dark = float((Path(__file__).parent / "dark").read_text())
    ten = digits(root)

    def load(part):
        return Split(ten.test.x * dark, ten.test.y)

    return Dataset("photos", ten.labels, ten.shape, load)


DATASETS = {"photos": photos}
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "dark").write_text("1.0")
    (folder / "plugin.py").write_text(PLUGIN)
    return folder / "plugin.py"


def _words(plugin: Path) -> list[object]:
    return [
        *("--data", "photos", "--plugin", plugin, "--samples", 96, "--block", 32, "--eps", 0.5),
        *(
            "--choose",
            "first",
            "--defense",
            "vanilla/epochs=6",
            "--attack",
            PGD5,
            "--attack",
            CW,
            "--quiet",
        ),
    ]


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli, plugin: Path) -> Path:
    """A copy, to be tampered with, of one honest run."""
    honest = plugin.parent / "honest"
    if not honest.exists():
        assert cli("run", *_words(plugin), "--out", honest).status == 0
    shutil.copytree(honest, tmp_path / "run")
    return tmp_path / "run"


def _cell(run: Path, label: str) -> FolderCell:
    (row,) = json.loads((run / "run.json").read_text())["rows"]
    return FolderCell(run / "cells" / row["cells"][label])


def _change(run: Path, label: str, change: Callable[[Block], Block]) -> Block:
    """Change the first block of a cell; the block as it was."""
    cell = _cell(run, label)
    block = next(cell.blocks())
    cell.add(change(block))
    return block


def _edited(values: Any, place: object, value: object) -> Any:
    values = values.copy()
    values[place] = value
    return values


def _rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _assert_refused(ended: Ended, *says: str) -> None:
    assert ended.status == 1
    assert ended.err.startswith("bestattack: ")
    assert ended.err.count("\n") == 1
    assert " holds." not in ended.out
    for part in says:
        assert part in ended.err


def _report(cli: Cli, run: Path) -> None:
    """Write the tables anew, from the tampered records: they must not convince either."""
    assert cli("report", run).status == 0


def test_an_honest_run_holds(run: Path, cli: Cli) -> None:
    ended = cli("verify", run, "--wide")
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    for line, label in zip(lines, (PGD5, CW), strict=False):
        broken = sum(int(block.broken.sum()) for block in _cell(run, label).blocks())
        assert broken > 0
        assert line == f"vanilla/epochs=6 {label}: {broken} of {broken} examples hold"
    assert lines[-2] == f"The table of {run} holds."
    # The recomputed table is the one that the run wrote.
    assert (run / "table.md").read_text().split("\n\n")[0] in ended.out


@pytest.mark.parametrize(
    "changes",
    [
        ("--precision", "float64"),
        ("--mode", "cascade"),
        ("--norm", "linf", "--eps", "8/255"),
        ("--block", 1, "--samples", 5),
        ("--block", 2, "--samples", 5),
    ],
    ids=str,
)
def test_other_honest_runs_hold(
    tmp_path: Path, cli: Cli, plugin: Path, changes: tuple[object, ...]
) -> None:
    words = [*_words(plugin), *changes]
    if "linf" in changes:
        words[words.index(CW)] = "pgd/steps=2"
    assert cli("run", *words, "--out", tmp_path).status == 0
    assert cli("verify", tmp_path).status == 0


def test_a_run_with_an_attack_that_failed_holds(
    tmp_path: Path, cli: Cli, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, calls = PGD.__call__, []

    def fail(self: PGD, problem: Problem) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("no")
        return work(self, problem)

    monkeypatch.setattr(PGD, "__call__", fail)
    assert cli("run", *_words(plugin), "--out", tmp_path).status == 3
    ended = cli("verify", tmp_path, "--wide")
    assert ended.status == 0
    assert f"{PGD5} failed: ValueError: no" in ended.out


MOVES: dict[str, Callable[[Any, Any], Any]] = {
    "the clean image": lambda x, clean: clean,
    "outside the ball": lambda x, clean: np.clip(clean + 99 * (x - clean), 0, 1),
    "outside the ball by a hair": lambda x, clean: np.clip(
        clean + 0.500005 / np.linalg.norm(x - clean) * (x - clean), 0, 1
    ),
    "outside the box": lambda x, clean: x * 0 + 1.5,
    "outside the box by a hair": lambda x, clean: np.where(x == x.min(), -1e-7, x),
    "not a number": lambda x, clean: x * np.nan,
    "infinite": lambda x, clean: np.full_like(x, np.inf),
}


@pytest.mark.parametrize(
    ("label", "move"),
    # CW's points lie well inside the ball.
    [(PGD5, move) for move in MOVES] + [(CW, move) for move in MOVES if "ball by" not in move],
)
def test_an_example_that_was_moved_does_not_hold(
    run: Path, cli: Cli, plugin: Path, label: str, move: str
) -> None:
    load_plugin(plugin)
    clean = load_dataset("photos").test.x.numpy()

    def forge(block: Block) -> Block:
        places = block.index[block.found]
        # The farthest that is broken.
        reach = np.where(block.broken, block.distance, 0)[block.found]
        farthest = int(reach.argmax())
        moved = MOVES[move](block.adversarial[farthest], clean[places[farthest]])
        return dataclasses.replace(
            block, adversarial=_edited(block.adversarial, farthest, moved.astype(np.float32))
        )

    _change(run, label, forge)
    _assert_refused(cli("verify", run), f"{label}: 1 examples do not hold")
    _report(cli, run)
    _assert_refused(cli("verify", run), f"{label}: 1 examples do not hold")


def test_a_distance_that_was_changed_is_found(run: Path, cli: Cli) -> None:
    def forge(block: Block) -> Block:
        place = int(np.flatnonzero(block.found)[0])
        distance = _edited(block.distance, place, block.distance[place] * 0.999)
        return dataclasses.replace(block, distance=distance)

    _change(run, CW, forge)
    _report(cli, run)
    _assert_refused(cli("verify", run), f"{CW}: 1 distances are not those of the examples")


def _claim(block: Block, place: int, distance: float) -> Block:
    return dataclasses.replace(
        block,
        broken=_edited(block.broken, place, True),
        distance=_edited(block.distance, place, distance),
    )


def test_a_sample_claimed_as_broken_without_an_example_does_not_hold(run: Path, cli: Cli) -> None:
    def forge(block: Block) -> Block:
        return _claim(block, int(np.flatnonzero(~block.found)[0]), np.nan)

    _change(run, PGD5, forge)
    _report(cli, run)
    _assert_refused(cli("verify", run), f"{PGD5}: 1 examples do not hold")


@pytest.mark.parametrize("points", ["too few", "of another shape", "too many", "no numbers"])
def test_a_block_whose_examples_do_not_match_does_not_hold(
    run: Path, cli: Cli, points: str
) -> None:
    def forge(block: Block) -> Block:
        adversarial: Any = block.adversarial
        if points == "too few":
            return _claim(block, int(np.flatnonzero(~block.found)[0]), 0.1)
        if points == "too many":
            adversarial = np.concatenate([adversarial, adversarial])
        if points == "of another shape":
            adversarial = adversarial[:, :, :4]
        if points == "no numbers":
            adversarial = adversarial.astype("U4")
        return dataclasses.replace(block, adversarial=adversarial)

    _change(run, PGD5, forge)
    # A block that cannot be whole counts as lost, and is measured again.
    lost = f"{PGD5}: incomplete: "
    fits = f"{PGD5}: a block of records does not fit the data"
    line = fits if points == "of another shape" else lost
    _assert_refused(cli("verify", run), line)
    _report(cli, run)
    _assert_refused(cli("verify", run), line)


def test_a_broken_sample_that_is_hidden_is_found(run: Path, cli: Cli) -> None:
    def forge(block: Block) -> Block:
        return dataclasses.replace(block, broken=np.zeros_like(block.broken))

    block = _change(run, PGD5, forge)
    _report(cli, run)
    count = int(block.broken.sum())
    assert count > 0
    _assert_refused(
        cli("verify", run),
        f"{PGD5}: {count} samples recorded as unbroken are broken by their own examples",
    )


@pytest.mark.parametrize("place", [-1, 96, 10**6])
def test_records_of_other_samples_count_for_nothing(run: Path, cli: Cli, place: int) -> None:
    before = cli("verify", run)
    _change(run, CW, lambda b: dataclasses.replace(b, index=_edited(b.index, 0, place)))
    assert cli("verify", run) == before
    # Where the sample itself is no longer recorded, the run is incomplete.
    cell = _cell(run, CW)
    next(cell.folder.glob("000000-*.npz")).unlink()
    _assert_refused(cli("verify", run), f"{CW}: incomplete: ")


def test_a_label_that_was_changed_is_found(run: Path, cli: Cli) -> None:
    for label in (PGD5, "natural"):
        _change(
            run, label, lambda b: dataclasses.replace(b, label=_edited(b.label, 0, b.label[0] ^ 1))
        )
    _report(cli, run)
    _assert_refused(
        cli("verify", run),
        f"{PGD5}: 1 labels are not those of the data",
        "natural: 1 labels are not those of the data",
    )


@pytest.mark.parametrize("value", [True, False])
def test_a_clean_verdict_that_was_changed_is_found(run: Path, cli: Cli, value: bool) -> None:
    def forge(block: Block) -> Block:
        place = int(np.flatnonzero(block.broken != value)[0])
        return dataclasses.replace(
            block,
            broken=_edited(block.broken, place, value),
            distance=_edited(block.distance, place, 0.0 if value else np.nan),
        )

    _change(run, "natural", forge)
    _report(cli, run)
    _assert_refused(cli("verify", run), "natural: 1 records are not as found now")


def test_two_changes_that_leave_the_column_as_it_was_are_found(run: Path, cli: Cli) -> None:
    def column() -> float:
        (row,) = json.loads((run / "table.json").read_text())["rows"]
        return float(row["per_attack"][PGD5])

    before = column()

    def forge(block: Block) -> Block:
        broken = block.broken.copy()
        broken[np.flatnonzero(block.broken)[0]] = False
        broken[np.flatnonzero(~block.broken)[0]] = True
        return dataclasses.replace(block, broken=broken)

    _change(run, PGD5, forge)
    _report(cli, run)
    assert column() == before
    _assert_refused(cli("verify", run), "1 examples do not hold", "1 samples recorded as unbroken")


@pytest.mark.parametrize("label", [PGD5, CW])
def test_a_block_that_was_deleted_leaves_the_run_incomplete(
    run: Path, cli: Cli, label: str
) -> None:
    kept = [len(block.index) for block in _cell(run, label).blocks()]
    next(_cell(run, label).folder.glob("000000-*.npz")).unlink()
    line = f"{label}: incomplete: {sum(kept[1:])} of {sum(kept)} samples are recorded"
    _assert_refused(cli("verify", run), line)
    _report(cli, run)
    _assert_refused(cli("verify", run), line)


def test_a_clean_block_that_was_deleted_leaves_the_run_incomplete(run: Path, cli: Cli) -> None:
    next(_cell(run, "natural").folder.glob("000000-*.npz")).unlink()
    _assert_refused(cli("verify", run), "the clean records of 'vanilla/epochs=6' are not complete")


def test_records_twice_count_once(run: Path, cli: Cli) -> None:
    before = cli("verify", run)
    copied = next(_cell(run, PGD5).folder.glob("000000-*.npz"))
    shutil.copy(copied, copied.with_name("copy.npz"))
    _report(cli, run)
    assert cli("verify", run) == before


def test_weights_that_were_changed_are_found(run: Path, cli: Cli) -> None:
    (path,) = run.rglob("model.safetensors")
    weights = load_file(path)
    name = next(iter(weights))
    weights[name] = weights[name] + 1e-3
    save_file(weights, path)
    _assert_refused(cli("verify", run), "model.safetensors is missing or damaged")


def test_weights_that_were_changed_with_their_card_are_found(
    run: Path, cli: Cli, tmp_path: Path, plugin: Path
) -> None:
    # Another model, whole and honest, in place of the one that was attacked.
    words = [*_words(plugin), "--seed", 1]
    assert cli("run", *words, "--out", tmp_path / "other").status == 0
    (ours,) = (run / "defenses").iterdir()
    (theirs,) = (tmp_path / "other" / "defenses").iterdir()
    card = json.loads((theirs / "card.json").read_text())
    fingerprint = json.loads((ours / "card.json").read_text())["fingerprint"]
    for claimed in (card["fingerprint"], fingerprint):
        shutil.copy(theirs / "model.safetensors", ours)
        (ours / "card.json").write_text(json.dumps(card | {"fingerprint": claimed}))
        for label in ("natural", PGD5, CW):
            _assert_refused(cli("verify", run), f"{label}: made with other weights, data or threat")


def test_a_model_that_is_gone_gets_one_line(run: Path, cli: Cli) -> None:
    (home,) = (run / "defenses").iterdir()
    shutil.rmtree(home)
    _assert_refused(cli("verify", run), "no saved model in")


def test_data_that_was_changed_is_found(run: Path, cli: Cli, plugin: Path) -> None:
    (plugin.parent / "dark").write_text("0.999999")
    try:
        _assert_refused(cli("verify", run), f"photos is not the data that {run} was measured on")
    finally:
        (plugin.parent / "dark").write_text("1.0")


def test_a_budget_that_was_changed_is_found(run: Path, cli: Cli) -> None:
    # As if what was measured at 0.5 had been measured at 2: all examples still hold there.
    _rewrite(run / "run.json", lambda manifest: manifest["threat"].update(eps=2.0))
    ended = cli("verify", run)
    assert (ended.status, ended.out) == (1, "")
    assert "run.json was changed: its threat, mode or seed is not its spec's" in ended.err
    _rewrite(run / "run.json", lambda manifest: manifest["spec"].update(eps=2.0))
    _report(cli, run)
    _assert_refused(cli("verify", run), f"{PGD5}: made with other weights, data or threat")


def test_records_of_another_cell_do_not_hold(run: Path, cli: Cli) -> None:
    def swap(manifest: dict[str, Any]) -> None:
        cells = manifest["rows"][0]["cells"]
        cells["natural"] = key_of({"made": "up"})

    shutil.copytree(_cell(run, "natural").folder, run / "cells" / key_of({"made": "up"}))
    _rewrite(run / "run.json", swap)
    _assert_refused(cli("verify", run), "natural: made with other weights, data or threat")


@pytest.mark.parametrize(
    ("key", "value"), [("best_attack", 0.99), ("natural", 1.0), ("per_attack", {PGD5: 0.99})]
)
def test_a_table_that_says_otherwise_is_found(run: Path, cli: Cli, key: str, value: object) -> None:
    _rewrite(run / "table.json", lambda table: table["rows"][0].update({key: value}))
    _assert_refused(cli("verify", run), "table.json says otherwise")


@pytest.mark.parametrize("name", ["table.md", "table.csv"])
def test_a_file_of_the_table_that_says_otherwise_is_found(run: Path, cli: Cli, name: str) -> None:
    table = run / name
    table.write_text(table.read_text().replace("0", "9"))
    _assert_refused(cli("verify", run), f"{name} is not what the records give")
    _report(cli, run)
    assert cli("verify", run).status == 0


def test_an_attack_that_was_left_out_is_found(run: Path, cli: Cli) -> None:
    _rewrite(run / "run.json", lambda manifest: manifest["rows"][0]["cells"].pop(PGD5))
    _assert_refused(cli("verify", run), "table.json says otherwise")
