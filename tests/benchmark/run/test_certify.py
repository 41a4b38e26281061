"""`bestattack certify`: what it prints, what it writes and what it refuses."""

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from defenses.verification import Decision, decide
from tests.benchmark.conftest import Cli


@pytest.fixture
def folder(cli: Cli, tmp_path: Path) -> Path:
    """A small network, trained a little on two of the digits."""
    words = ("digits/pair=3-8", "vanilla/arch=mlp/widen=0.05/epochs=8/learning_rate=0.01")
    assert cli("train", *words, "--out", tmp_path / "model", "--quiet").status == 0
    return tmp_path / "model"


def test_the_table_says_what_the_records_do(cli: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "exact.csv"
    words = ("certify", folder, "--norm", "linf", "--eps", "0.1", "--samples", 30, "--out", out)
    ended = cli(*words)
    assert ended.status == 0
    records = pd.read_csv(out)
    assert list(records["index"]) == list(range(30))
    counts = records["status"].value_counts()
    assert counts.sum() == counts["robust"] + counts["broken"]
    row = next(line for line in ended.out.splitlines() if line.startswith("| vanilla"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    percent = f"{100 * counts['robust'] / 30:.1f}"
    assert cells[1:5] == [
        f"{100 * records['correct'].mean():.1f}",
        percent,
        f"{counts['robust']} ({percent} %)",
        f"{counts['broken']} ({100 * counts['broken'] / 30:.1f} %)",
    ]
    assert (records.loc[records["status"] == "broken", "distance"] <= 0.1).all()
    assert (records.loc[~records["correct"], "distance"] == 0).all()
    assert records.loc[records["status"] == "robust", "distance"].isna().all()
    assert records.loc[records["status"] == "robust", "correct"].all()
    again = cli(*words, "--data", "digits/pair=3-8", "--quiet")
    same = [column for column in records if column != "seconds"]
    assert again.status == 0
    assert records[same].equals(pd.read_csv(out)[same])


def test_without_time_the_accuracy_is_an_interval(cli: Cli, folder: Path) -> None:
    words = ("certify", folder, "--norm", "linf", "--eps", "0.2", "--samples", 40)
    ended = cli(*words, "--seconds", 0)
    assert ended.status == 0
    assert re.search(r"\| \[\d+\.\d, \d+\.\d\] *\|", ended.out)
    assert "robust % [proven, not broken]" in ended.out
    # Linear bounds alone leave as much open, and more time less.
    cheap = cli(*words, "--method", "crown")
    assert _open(cheap.out) == _open(ended.out) > _open(cli(*words, "--seconds", 20).out)


def _open(table: str) -> int:
    """How many images are undecided."""
    return int(table.splitlines()[4].split("|")[6].split()[0])


def test_l2_is_decided_too(cli: Cli, folder: Path, tmp_path: Path) -> None:
    words = ("certify", folder, "--norm", "l2", "--eps", "0.3", "--samples", 20)
    ended = cli(*words, "--out", tmp_path / "l2.csv")
    assert ended.status == 0, ended.err
    assert "L2 eps 0.3" in ended.out
    records = pd.read_csv(tmp_path / "l2.csv")
    assert {"robust", "broken"} <= set(records["status"])
    assert (records.loc[records["status"] == "broken", "distance"] <= 0.3).all()


def test_an_interruption_keeps_what_is_decided(
    cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> Iterator[Decision]:
        yield from itertools.islice(decide(*args), 7)
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmark.run.certify.decide", interrupted)
    out = tmp_path / "exact.csv"
    ended = cli("certify", folder, "--norm", "linf", "--eps", "0.01", "--out", out)
    assert len(pd.read_csv(out)) == 7
    assert "The first 7 test images" in ended.out
    assert ended.status == 1
    assert "interrupted after 7 of 70 images" in ended.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--norm", "l1"], "bounds are for linf and l2, not l1"),
        (["--samples", "99"], "digits/pair=3-8 has 70 test images, not 99"),
        (["--data", "digits"], "is no model of digits: name the data it was made for"),
        (["--eps", "0"], "eps must be above 0 and finite, not 0.0"),
        (["--method", "crown", "--seconds", "3"], "seconds are of branch: linear bounds take"),
        (["--out", "."], "is a folder: name a CSV file for the result per image"),
        (["--out", __file__], "holds something else than such results: name another file"),
    ],
)
def test_what_it_cannot_do_is_one_line(cli: Cli, folder: Path, words: list[str], line: str) -> None:
    ended = cli("certify", folder, "--norm", "linf", "--eps", "0.1", *words)
    assert ended.status == 1
    assert ended.out == ""
    assert line in ended.err
    assert ended.err.count("\n") == 1


def test_a_folder_without_a_model_and_a_foreign_layer_are_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli("certify", tmp_path, "--eps", "0.1")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    Path("net.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh())\n"
    )
    trained = cli("train", "digits", "external/model=net.py:make", "--out", "m")
    assert trained.status == 0, trained.err
    ended = cli("certify", "m", "--norm", "linf", "--eps", "0.1")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "its operation tanh is not supported" in ended.err


def test_a_card_that_lacks_what_is_needed_is_one_line(
    cli: Cli, folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    card = json.loads((copy / "card.json").read_text())
    (copy / "card.json").write_text(json.dumps(card | {"data": "digits"}))
    ended = cli("certify", copy, "--eps", "0.1")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "is not a card of this program" in ended.err


def test_the_norm_is_that_of_the_card(cli: Cli, folder: Path, tmp_path: Path) -> None:
    ended = cli("certify", folder, "--eps", "0.1")
    assert (ended.status, ended.out) == (1, "")
    assert "was trained for no norm: give --norm linf or --norm l2" in ended.err
    words = ("digits/pair=3-8", "pgd-at/arch=mlp/widen=0.05/epochs=1", "--norm", "linf")
    assert cli("train", *words, "--eps", "0.1", "--out", tmp_path / "at", "--quiet").status == 0
    ended = cli("certify", f"saved:{tmp_path / 'at'}", "--eps", "0.1", "--samples", 5)
    assert ended.out.splitlines()[0].endswith(
        "on digits/pair=3-8, L-infinity eps 0.1, the norm that it was trained for:"
    )
    ended = cli("certify", tmp_path / "at", "--norm", "l2", "--eps", "0.1", "--samples", 5)
    assert ended.out.splitlines()[0].endswith("on digits/pair=3-8, L2 eps 0.1:")


def test_a_network_made_elsewhere_needs_no_folder(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU()).double()\n"
    )
    words = ("certify", f"external/python={tmp_path / 'net.py'}:make", "--eps", "0.01")
    assert "has no card that names its data set: give --data" in cli(*words).err
    words = (*words, "--data", "digits", "--samples", "20")
    assert "was trained for no norm" in cli(*words).err
    ended = cli(*words, "--norm", "linf", "--out", tmp_path / "out.csv")
    assert ended.status == 0, ended.err
    assert set(pd.read_csv(tmp_path / "out.csv")["status"]) == {"robust", "broken"}
