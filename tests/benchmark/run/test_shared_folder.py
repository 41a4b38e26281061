"""A run's folder: worked on by one process at a time, and whole again after whatever befell it."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

from benchmark.cli.main import main
from benchmark.folder_lock import HOLDER, LOCK, alone_in
from benchmark.judge.records import FolderCell
from tests.benchmark.conftest import Cli, Ended, refused

CW = "cw/steps=20/searches=2"
WORDS: tuple[object, ...] = (
    *("run", "--quiet", "--data", "digits", "--samples", 24, "--block", 8, "--eps", 0.5),
    *("--defense", "vanilla/epochs=1", "--attack", "pgd/steps=5", "--attack", CW),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bestattack", *map(str, WORDS), "--out", str(folder)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def _rows(folder: Path) -> Any:
    return json.loads((folder / "table.json").read_text())["rows"]


def _cell(folder: Path, label: str) -> FolderCell:
    key = json.loads((folder / "run.json").read_text())["rows"][0]["cells"][label]
    return FolderCell(folder / "cells" / key)


def _block(folder: Path, label: str = CW, place: int = 1) -> Path:
    return sorted(_cell(folder, label).folder.glob("*.npz"))[place]


# What a command that writes is told while another process has the folder.


def _in_use(folder: Path) -> Callable[[Ended], None]:
    def check(ended: Ended) -> None:
        assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
        who = f"process {os.getpid()} on {socket.gethostname()} since 2"
        assert ended.err.startswith(f"bestattack: {folder} is in use by {who}")
        assert ended.err.endswith(": wait until that ends, or name another folder\n")

    return check


def test_every_command_that_writes_is_refused_and_no_reader_is(run: Path, cli: Cli) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    check = _in_use(run)
    with alone_in(run):
        check(cli(*WORDS, "--out", run))
        assert cli("report", run).status == 0
        check(cli("study", "lipschitz", run))
        check(cli("study", "budgets", run, "--eps", "0.1"))
        check(cli("train", "digits", "vanilla/epochs=0", "--out", run))
        assert cli("verify", run).status == 0
    assert not (run / HOLDER).exists()
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {path: text for path, text in after.items() if path.name != LOCK} == {
        path: text for path, text in before.items() if path.name != LOCK
    }
    assert cli("report", run).status == 0


@pytest.mark.parametrize("note", [None, "", "[]", "{}"])
def test_a_holder_without_a_note_is_another_process(run: Path, cli: Cli, note: str | None) -> None:
    with alone_in(run):
        (run / HOLDER).unlink()
        if note is not None:
            (run / HOLDER).write_text(note)
        line = f"{run} is in use by another process: wait until that ends, or name another folder"
        refused(cli(*WORDS, "--out", run), line)


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path, cli: Cli) -> None:
    for words in (("report",), ("study", "lipschitz")):
        assert cli(*words, tmp_path / "nowhere").status == 1
    assert list(tmp_path.iterdir()) == []


# What may befall a folder, each with whether its table then does not hold any more.


def _truncated(run: Path) -> None:
    path = _block(run)
    path.write_bytes(path.read_bytes()[:-100])


def _points_damaged(run: Path) -> None:
    """One bit of the examples, which the records without images do not touch."""
    path = _block(run)
    content = bytearray(path.read_bytes())
    with np.load(path) as data:
        points = data["adversarial"].tobytes()
    assert len(points) > 100
    content[content.index(points) + 50] ^= 1
    path.write_bytes(content)


def _twice(run: Path) -> None:
    """A block that has one sample twice, as no run writes it."""
    path = _block(run, "natural")
    with np.load(path) as data:
        arrays = dict(data)
    arrays["index"] = arrays["index"].copy()
    arrays["index"][0] = arrays["index"][1]
    np.savez(path, **arrays)


def _overlapping(run: Path) -> None:
    """What two runs with other blocks, at once in one folder, left there."""
    cell = _cell(run, CW)
    blocks = list(cell.blocks())
    keep = np.arange(len(blocks[1].index)) >= 3
    cell.add(blocks[1].select(keep))
    cell.add(blocks[0].select(np.arange(len(blocks[0].index)) < 3))
    late = blocks[2].select(np.arange(len(blocks[2].index)) < 5)
    late.index[:] = blocks[1].index[-5:]  # records of samples that others have too
    cell.add(late)


DAMAGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "truncated block": (_truncated, True),
    "empty block": (lambda run: _block(run).write_bytes(b""), True),
    "garbage block": (lambda run: _block(run).write_bytes(b"\0garbage" * 99), True),
    "garbage clean block": (lambda run: _block(run, "natural").write_bytes(b"PK"), True),
    "other arrays": (lambda run: np.savez(_block(run), index=np.array(["a"])), True),
    "damaged examples": (_points_damaged, True),
    "sample twice": (_twice, True),
    "missing block": (lambda run: _block(run).unlink(), True),
    "overlapping blocks": (_overlapping, False),
    "no records": (lambda run: shutil.rmtree(_cell(run, CW).folder), True),
    "no clean records": (lambda run: shutil.rmtree(_cell(run, "natural").folder), True),
    "no cell.json": (lambda run: (_cell(run, CW).folder / "cell.json").unlink(), True),
    "garbage cell.json": (
        lambda run: (_cell(run, CW).folder / "cell.json").write_bytes(b"\xff{"), True
    ),
    "other cell.json": (lambda run: (_cell(run, CW).folder / "cell.json").write_text("[1]"), True),
    "no run.json": (lambda run: (run / "run.json").unlink(), True),
    "garbage run.json": (lambda run: (run / "run.json").write_bytes(b"\xff{"), True),
    "other run.json": (lambda run: (run / "run.json").write_text("[]"), True),
    "garbage table.json": (lambda run: (run / "table.json").write_text("{"), True),
    "no table.json": (lambda run: (run / "table.json").unlink(), True),
    "garbage spec.yaml": (lambda run: (run / "spec.yaml").write_bytes(b"\xff: ["), False),
    "garbage card": (lambda run: next(run.rglob("card.json")).write_text("{"), True),
    "garbage weights": (lambda run: next(run.rglob("*.safetensors")).write_bytes(b"PK"), True),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_heals_by_the_same_command(
    run: Path, whole: Path, cli: Cli, damage: str
) -> None:
    befall, shows = DAMAGES[damage]
    befall(run)
    ended = cli("verify", run)
    assert (ended.status, ended.err.count("\n")) == ((1, 1) if shows else (0, 0))
    assert ("holds." in ended.out) == (not shows)
    assert cli(*WORDS, "--out", run).status == 0
    assert _rows(run) == _rows(whole)
    assert (run / "spec.yaml").read_bytes() == (whole / "spec.yaml").read_bytes()
    assert cli("verify", run).status == 0


def test_files_that_a_killed_process_had_begun_are_deleted(run: Path, cli: Cli) -> None:
    begun = [
        run / ".table.json.4711",
        _cell(run, CW).folder / ".000000-000007.npz.1",
        next(run.rglob("card.json")).with_name(".model.safetensors.99"),
    ]
    mine = [run / ".notes", run / "notes.json.1", _cell(run, CW).folder / ".x.npz.old"]
    for path in (*begun, *mine):
        path.touch()
    assert cli(*WORDS, "--out", run).status == 0
    assert [path for path in begun if path.exists()] == []
    assert all(path.exists() for path in mine)


def test_verify_says_what_is_lacking(run: Path, cli: Cli) -> None:
    manifest = json.loads((run / "run.json").read_text())
    _block(run, "pgd/steps=5").unlink()
    del manifest["rows"][0]["cells"][CW]
    extra = manifest["spec"]["defenses"][0] | {"given_label": "second"}
    manifest["spec"]["defenses"].append(extra)
    (run / "run.json").write_text(json.dumps(manifest))
    (run / "table.json").unlink()
    ended = cli("verify", run)
    recorded, attacked = _attacked(run)
    refused(
        ended._replace(out=""),
        f"the run of {run} is not finished, what there is holds: "
        f"vanilla/epochs=1 pgd/steps=5: incomplete: {recorded} of {attacked} samples are recorded; "
        f"vanilla/epochs=1 {CW}: not finished, or not begun; second: not measured; "
        "table.json is not written: run the same command again",
    )


def test_verify_says_that_records_are_gone(run: Path, cli: Cli) -> None:
    _, attacked = _attacked(run)
    shutil.rmtree(_cell(run, CW).folder)
    refused(
        cli("verify", run)._replace(out=""),
        f"the run of {run} is not finished, what there is holds: vanilla/epochs=1 {CW}: "
        f"incomplete: the records of all {attacked} samples are missing; table.json says "
        "otherwise: run the same command again",
    )
    shutil.rmtree(_cell(run, "natural").folder)
    refused(
        cli("verify", run),
        f"{run}: the clean records of 'vanilla/epochs=1' are not complete (the records of all 24 "
        "samples are missing): run the same command again",
    )


def test_verify_says_that_the_note_on_records_is_gone(run: Path, cli: Cli) -> None:
    (_cell(run, CW).folder / "cell.json").unlink()
    refused(
        cli("verify", run)._replace(out=""),
        f"the table of {run} does not hold, the one above is what does: vanilla/epochs=1 {CW}: "
        "cell.json, which says what it was made with, is missing: run it again",
    )


def _attacked(run: Path) -> tuple[int, int]:
    """Of how many samples pgd has records, and of how many it should."""
    clean = np.concatenate([block.broken for block in _cell(run, "natural").blocks()])
    return sum(len(b.index) for b in _cell(run, "pgd/steps=5").blocks()), int((~clean).sum())


# Processes beside each other


def _child(words: list[str], err: str) -> None:
    torch.set_num_threads(1)
    tqdm.set_lock(RLock())  # not one between processes, which would outlive a kill
    sys.argv = ["bestattack", *words]
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    sys.stderr = open(err, "w", buffering=1)  # noqa: SIM115
    main()


PAIRED = ("run", "--quiet", "--data", "digits", "--samples", "200", "--eps", ".5")
PAIRED += ("--defense", "vanilla/epochs=5", "--attack")


@pytest.mark.parametrize(
    ("attack", "pairs", "kills"),
    [
        ("cw/steps=10/searches=2", 1, 1),
        pytest.param("cw/steps=200", 20, 10, marks=pytest.mark.slow),
    ],
)
def test_two_runs_at_once_in_one_folder(
    tmp_path: Path, cli: Cli, attack: str, pairs: int, kills: int
) -> None:
    """Of each pair the second is refused. So many pairs are left alone, and so many killed."""
    paired = (*PAIRED, attack)
    # Processes forked from one that has imported everything.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [__name__, "benchmark.run.runner", "sklearn.datasets", "scipy.stats", "torch._dynamo"]
    )

    def start(folder: Path, block: int) -> tuple[BaseProcess, Path]:
        err = folder.with_name(f"{folder.name}-{block}.err")
        words = [*paired, "--block", str(block), "--out", str(folder)]
        process = context.Process(target=_child, args=(words, str(err)))
        process.start()
        return process, err

    # An undisturbed run, and what each pair begins with: a model, and few samples.
    began = time.monotonic()
    process, _ = start(tmp_path / "whole", 10)
    process.join()
    assert process.exitcode == 0
    lasts, delays = time.monotonic() - began, random.Random(0)
    assert cli(*paired, "--samples", 5, "--out", tmp_path / "first").status == 0

    refusals = 0
    for number in range(pairs + kills):
        folder = tmp_path / f"pair-{number}"
        shutil.copytree(tmp_path / "first", folder)
        both = [start(folder, block) for block in (10, 7)]
        if number >= pairs:
            time.sleep(delays.uniform(0, lasts))
            for process, _ in both:
                process.kill()
        for process, _ in both:
            process.join()
        codes = sorted(process.exitcode or 0 for process, _ in both)
        if number < pairs:
            assert codes == [0, 1]
            _assert_refused_once(folder, both)
            refusals += 1
        else:
            assert set(codes) <= {-signal.SIGKILL, 0, 1}
            assert cli(*paired, "--out", folder).status == 0
        assert _rows(folder) == _rows(tmp_path / "whole")
        ended = cli("verify", folder)
        assert (ended.status, ended.err) == (0, "")
        assert " holds.\n" in ended.out
    print(f"{pairs} pairs, {refusals} refusals; {kills} killed; a whole run takes {lasts:.1f} s")
    assert refusals == pairs


def _assert_refused_once(folder: Path, both: list[tuple[BaseProcess, Path]]) -> None:
    """One of the two said in one line that the other has the folder; the other said nothing."""
    ((first, silent), (_, told)) = sorted(both, key=lambda pair: pair[0].exitcode or 0)
    assert silent.read_text() == ""
    said = told.read_text()
    assert said.count("\n") == 1
    assert said.startswith(f"bestattack: {folder} is in use by process {first.pid} on ")
