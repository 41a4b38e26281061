"""Runs: interrupted, killed, resumed, reported and repeated, with the same numbers at the end."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from tqdm import tqdm

from attacks import PGD, CarliniWagner, Problem
from benchmark.cli.main import main
from benchmark.judge.records import Block, FolderCell
from defenses.training import loop as training
from tests.benchmark.conftest import Cli

CW = "cw/steps=20/searches=2/minimize"
OF_PGD, OF_CW = ("--attack", "pgd/steps=5"), ("--attack", CW)
SETTING: tuple[object, ...] = (
    *("--quiet", "--samples", 96, "--block", 32, "--eps", 0.5, "--defense", "vanilla/epochs=2"),
)
WORDS = (*SETTING, *OF_PGD, *OF_CW)
INTERRUPTED = "bestattack: interrupted; what was measured is kept: run the same command to go on\n"


def _cells(folder: Path) -> dict[str, list[Block]]:
    return {
        path.name: list(FolderCell(path).blocks()) for path in sorted((folder / "cells").iterdir())
    }


def _assert_same_results(one: Path, other: Path) -> None:
    """Weights, records, examples and tables, but for the seconds that they took."""
    assert _weights(one) == _weights(other)
    cells, others = _cells(one), _cells(other)
    assert list(cells) == list(others)
    for key, blocks in cells.items():
        for a, b in zip(blocks, others[key], strict=True):
            for name in (field.name for field in fields(Block) if field.name != "seconds"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
    tables = [json.loads((folder / "table.json").read_text()) for folder in (one, other)]
    assert tables[0]["caption"] == tables[1]["caption"]
    assert tables[0]["rows"] == tables[1]["rows"]
    wide = [(folder / "table.md").read_text().split("\n\n")[0] for folder in (one, other)]
    assert wide[0] == wide[1]


def _weights(folder: Path) -> dict[str, str]:
    cards = (folder / "defenses").glob("*/card.json")
    return {card.parent.name: json.loads(card.read_text())["fingerprint"] for card in cards}


def _times(folder: Path, pattern: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob(pattern)}


def _faulty(
    monkeypatch: pytest.MonkeyPatch, attack: type, call: int, fault: Callable[[], object]
) -> list[list[int]]:
    """Let an attack meet a fault in its n-th call; the samples of each call are noted."""
    seen: list[list[int]] = []
    work: Callable[[Any, Problem], Tensor] = attack.__call__

    def attacked(self: object, problem: Problem) -> Tensor:
        seen.append(problem.index.tolist())
        if len(seen) == call:
            fault()
        return work(self, problem)

    monkeypatch.setattr(attack, "__call__", attacked)
    return seen


def _interrupt() -> None:
    # A shell starts background jobs with the signal ignored, and Python leaves that as it is.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    _bestattack("run", *WORDS, "--out", folder)
    return folder


def _bestattack(*words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bestattack", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code


def test_a_run_that_is_run_again_measures_nothing_anew(
    whole: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in whole.glob("table.*")}
    assert sorted(before) == ["table.csv", "table.json", "table.md"]
    times = _times(whole, "*.npz") | _times(whole, "model.safetensors")
    assert len(times) == 3 + 3 + 3 + 1
    calls = [_faulty(monkeypatch, attack, 0, _interrupt) for attack in (PGD, CarliniWagner)]

    assert cli("run", *WORDS, "--out", whole).status == 0
    assert calls == [[], []]
    assert _times(whole, "*.npz") | _times(whole, "model.safetensors") == times
    assert {path.name: path.read_bytes() for path in whole.glob("table.*")} == before

    ended = cli("report", whole, "--wide")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(before["table.md"].decode() + "\n")
    assert {path.name: path.read_bytes() for path in whole.glob("table.*")} == before


@pytest.mark.parametrize(
    ("attack", "call", "kept", "column"),
    [(PGD, 1, 0, None), (PGD, 2, 1, None), (CarliniWagner, 2, 1, "pgd/steps=5")],
)
def test_an_interrupted_run_is_reported_and_goes_on(
    whole: Path,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    attack: type,
    call: int,
    kept: int,
    column: str | None,
) -> None:
    with monkeypatch.context() as patch:
        before = _faulty(patch, attack, call, _interrupt)
        ended = cli("run", *WORDS, "--out", tmp_path)
    assert ended == (130, "", INTERRUPTED)
    assert not (tmp_path / "table.json").exists()

    # What is measured whole is reported, and nothing else.
    ended = cli("report", tmp_path)
    assert (ended.status, ended.err) == (0, "")
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    (of_whole,) = json.loads((whole / "table.json").read_text())["rows"]
    assert row["natural"] == of_whole["natural"]
    assert row["errors"] == {}
    assert row["per_attack"] == ({column: of_whole["per_attack"][column]} if column else {})
    assert row["best_attack"] == (of_whole["per_attack"][column] if column else None)

    with monkeypatch.context() as patch:
        after = _faulty(patch, attack, 0, _interrupt)
        assert cli("run", *WORDS, "--out", tmp_path).status == 0
    assert after[0] == before[-1]
    assert len(after) == 3 - kept
    _assert_same_results(tmp_path, whole)


def test_an_attack_that_raises_is_an_error_and_goes_on_where_it_stopped(
    whole: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault() -> None:
        raise RuntimeError("two\nlines")

    with monkeypatch.context() as patch:
        _faulty(patch, PGD, 2, fault)
        ended = cli("run", *WORDS, "--out", tmp_path)
    assert (ended.status, ended.err.count("\n")) == (3, 1)
    assert ended.err.startswith(
        "bestattack: failed, and counted for nothing: vanilla/epochs=2: pgd/steps=5: the reasons "
    )
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    (of_whole,) = json.loads((whole / "table.json").read_text())["rows"]
    assert row["errors"] == {"pgd/steps=5": "RuntimeError: two lines"}
    assert row["per_attack"] == {"pgd/steps=5": None, CW: of_whole["per_attack"][CW]}
    assert row["best_attack"] == of_whole["per_attack"][CW]
    assert list(row["flags"]) == ["attack-error"]
    assert cli("report", tmp_path).status == 0
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == [row]

    with monkeypatch.context() as patch:
        after = _faulty(patch, PGD, 0, fault)
        assert cli("run", *WORDS, "--out", tmp_path).status == 0
    assert len(after) == 2
    _assert_same_results(tmp_path, whole)


def test_a_missing_and_a_damaged_block_are_measured_anew(
    whole: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("run", *WORDS, "--out", tmp_path).status == 0
    key = json.loads((tmp_path / "run.json").read_text())["rows"][0]["cells"]["pgd/steps=5"]
    first, second, _ = sorted((tmp_path / "cells" / key).glob("*.npz"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    calls = _faulty(monkeypatch, PGD, 0, _interrupt)
    assert cli("run", *WORDS, "--out", tmp_path).status == 0
    assert len(calls) == 2
    _assert_same_results(tmp_path, whole)


def test_a_run_is_repeated_from_its_folder(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "mine.py").write_text("from attacks import PGD\nATTACKS = {'mine': PGD}\n")
    monkeypatch.chdir(here)
    words = ["--defense", "vanilla/epochs=1", "--attack", "mine/steps=3", "--samples", 40]
    words += ["--eps", "1/4", "--norm", "linf", "--seed", 7, "--mode", "cascade", "--block", 16]
    assert cli("run", *words, "--plugin", "mine.py", "--out", "run", "--quiet").status == 0
    monkeypatch.chdir(there)
    assert cli("run", here / "run" / "spec.yaml", "--out", "run", "--quiet").status == 0
    _assert_same_results(here / "run", there / "run")
    assert (there / "run" / "spec.yaml").read_text() == (here / "run" / "spec.yaml").read_text()


def test_flags_override_the_spec(tmp_path: Path, cli: Cli) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("{eps: 0.5, samples: 8, defenses: [vanilla/epochs=0], attacks: [pgd/steps=1]}")
    ended = cli("run", spec, "--eps", "8/255", "--attack", "pgd/steps=2", "--out", tmp_path / "run")
    assert ended.status == 0
    assert "L2 eps 8/255" in ended.out
    assert "pgd/steps=2" in ended.out
    assert "pgd/steps=1" not in ended.out


def test_a_cascade_ends_with_the_best_attack_of_the_table(
    whole: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for attack in (PGD, CarliniWagner):
        _faulty(monkeypatch, attack, 1, partial(order.append, attack.__name__))
    words = (*SETTING, *OF_CW, *OF_PGD, "--mode", "cascade", "--precision", "float64")
    ended = cli("run", *words, "--out", tmp_path)
    assert ended.status == 0
    assert order == ["PGD", "CarliniWagner"]  # the cheapest first, not as given
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    (of_whole,) = json.loads((whole / "table.json").read_text())["rows"]
    assert row["per_attack"] == {}
    assert row["best_attack"] == of_whole["best_attack"]
    keys = json.loads((tmp_path / "run.json").read_text())["rows"][0]["cells"]
    survivors = _cells(tmp_path)[keys["pgd/steps=5"]]
    left = [i for b in survivors for i, broken in zip(b.index, b.broken, strict=True) if not broken]
    assert [i for block in _cells(tmp_path)[keys[CW]] for i in block.index] == left


@pytest.mark.parametrize("wrong", ["vanila", "vanilla/epoch=1", "saved:nowhere"])
def test_a_defense_that_is_not_valid_is_refused_before_any_work(
    tmp_path: Path, cli: Cli, wrong: str
) -> None:
    ended = cli("run", *WORDS, "--defense", wrong, "--out", tmp_path / "run")
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith("bestattack: ")
    assert not (tmp_path / "run").exists()


def test_a_trained_defense_is_attacked_from_its_folder(
    whole: Path, tmp_path: Path, cli: Cli
) -> None:
    saved = tmp_path / "models" / "mine"
    ended = cli("train", "digits", "vanilla/epochs=2", "--out", saved, "--quiet")
    assert (ended.status, ended.err) == (0, "")
    assert list(_weights(whole).values()) == [
        json.loads((saved / "card.json").read_text())["fingerprint"]
    ]
    words = [f"saved:{saved}" if word == "vanilla/epochs=2" else word for word in WORDS]
    assert cli("run", *words, "--out", tmp_path / "run").status == 0
    tables = [
        json.loads((folder / "table.json").read_text())["rows"][0]
        for folder in (whole, tmp_path / "run")
    ]
    assert tables[1] == tables[0] | {"defense": f"saved:{saved}"}


@pytest.mark.parametrize("command", ["report", "verify"])
@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "{0} holds no run with results: name the folder of a run"),
        ("{", "{0}/run.json is damaged: run the same command again"),
        (
            '{"rows": [{}]}',
            "{0}/run.json is damaged, or of another version: run the same command again",
        ),
    ],
)
def test_a_folder_without_a_run_gets_one_line(
    tmp_path: Path, cli: Cli, command: str, content: str | None, line: str
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
        (tmp_path / "spec.yaml").write_text("{eps: 1, defenses: [vanilla], attacks: [pgd]}")
    ended = cli(command, tmp_path)
    assert ended == (1, "", f"bestattack: {line.format(tmp_path)}\n")


# Blocks that last, so that most kills come in the middle of one, and a checkpoint after each epoch.
SLOW = """
import time
from dataclasses import dataclass

from attacks import PGD
from defenses.training import loop as training

training.CHECKPOINT_SECONDS = 0.0


@dataclass(frozen=True)
class Slow(PGD):
    def __call__(self, problem):
        points = super().__call__(problem)
        time.sleep(0.08)
        return points


ATTACKS = {"slow": Slow}
"""


def _child(words: list[str]) -> None:
    torch.set_num_threads(1)
    tqdm.set_lock(RLock())  # not one between processes, which would outlive a kill
    sys.argv = ["bestattack", *words]
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    main()


@pytest.mark.parametrize(("times", "kinds"), [(3, 2), pytest.param(10, 4, marks=pytest.mark.slow)])
def test_a_run_killed_often_ends_as_an_undisturbed_one(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, times: int, kinds: int
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", training.CHECKPOINT_SECONDS)
    (tmp_path / "slow.py").write_text(SLOW)
    words = ["--block", "32", "--eps", "0.5", "--plugin", str(tmp_path / "slow.py")]
    words += ["--defense", "vanilla/epochs=20", "--defense", "pgd-at/epochs=8/steps=3"]
    words += ["--attack", "slow/steps=10", "--attack", "slow/steps=10/objective=margin"]
    # Processes forked from one that has imported everything: the kills meet work, not imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [__name__, "benchmark.run.runner", "sklearn.datasets", "scipy.stats", "torch._dynamo"]
    )

    def start(folder: Path) -> BaseProcess:
        process = context.Process(
            target=_child, args=(["run", *words, "--quiet", "--out", str(folder)],)
        )
        process.start()
        return process

    start(tmp_path / "warm-up").terminate()
    began = time.monotonic()
    process = start(tmp_path / "whole")
    process.join()
    assert process.exitcode == 0
    whole, delays = time.monotonic() - began, random.Random(0)
    ended, done = [], set()
    # So many, and until they came at as many kinds of moments: with no block done, with some...
    while ended.count(-signal.SIGKILL) < times or len(done) < kinds:
        process = start(tmp_path / "killed")
        process.join(delays.uniform(0, whole / 6))
        process.kill()
        process.join()
        ended.append(process.exitcode)
        done.add(len(_times(tmp_path / "killed", "*.npz")))
        assert set(ended) <= {-signal.SIGKILL, 0}
        assert len(ended) < 50
    process = start(tmp_path / "killed")
    process.join()
    assert process.exitcode == 0

    _assert_same_results(tmp_path / "killed", tmp_path / "whole")
    assert cli("verify", tmp_path / "killed").status == 0


def test_training_again_resumes_and_never_replaces_another_model(cli: Cli, tmp_path: Path) -> None:
    words = ("train", "digits", "vanilla/epochs=1", "--out", tmp_path / "m")
    assert cli(*words).status == 0
    card, weights = ((tmp_path / "m" / name) for name in ("card.json", "model.safetensors"))
    before = card.read_bytes(), weights.stat().st_mtime_ns
    assert cli(*words).status == 0
    assert (card.read_bytes(), weights.stat().st_mtime_ns) == before
    ended = cli("train", "digits", "vanilla/epochs=2", "--out", tmp_path / "m")
    assert ended.status == 1
    assert "holds another model" in ended.err
    assert card.read_bytes() == before[0]


def test_a_spec_of_the_user_is_not_replaced(cli: Cli, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("# Mine.\n{eps: 1, samples: 5, defenses: [vanilla/epochs=1], attacks: [pgd]}\n")
    before = spec.read_bytes()
    ended = cli("run", spec, "--out", tmp_path)
    assert ended.status == 1
    assert "which a run replaces: name another --out" in ended.err
    assert spec.read_bytes() == before


def test_a_rerun_that_fails_leaves_the_earlier_run_whole(cli: Cli, tmp_path: Path) -> None:
    run = ("run", "--data", "digits", "--samples", "20", "--eps", "0.5", "--attack", "pgd/steps=2")
    assert cli(*run, "--defense", "vanilla/epochs=1", "--out", tmp_path).status == 0
    table = (tmp_path / "table.json").read_bytes()
    broken = cli(*run, "--defense", "vanilla/epochs=1/learning_rate=1e30", "--out", tmp_path)
    assert broken.status == 1
    assert (tmp_path / "table.json").read_bytes() == table
    assert cli("verify", tmp_path).status == 0


def test_another_block_size_measures_anew_only_what_depends_on_it(tmp_path: Path, cli: Cli) -> None:
    """A library's noise is drawn for a block at once; ours for each sample."""
    noise = "foolbox:L2AdditiveGaussianNoiseAttack"
    keys = []
    for block in ("7", "9"):
        cli(
            "run", "--data", "digits", "--samples", "9", "--eps", "0.5", "--attack", "pgd/steps=2",
            "--attack", noise, "--defense", "vanilla/epochs=1", "--block", block,
            "--out", str(tmp_path),
        )  # fmt: skip
        keys.append(json.loads((tmp_path / "run.json").read_text())["rows"][0]["cells"])
    assert keys[0]["pgd/steps=2"] == keys[1]["pgd/steps=2"]
    assert keys[0][noise] != keys[1][noise]
