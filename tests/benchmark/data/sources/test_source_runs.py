"""Runs on data in files: from a run to its verification, in any working directory, and nothing that
is frozen moves."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from benchmark.data.sets import load_dataset
from benchmark.judge.records import Block, FolderCell
from tests.benchmark.conftest import Cli, refused

ATTACKS = ("pgd/steps=5", "square/steps=30", "cw/steps=10", "foolbox:LinfPGD/steps=5")
WORDS = ("--norm", "linf", "--eps", 0.2, "--defense", "vanilla/epochs=8", "--quiet")
DATA = "csv=in/t.csv/split=0.5/frozen=b"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    table = pd.DataFrame({name: generator.random(80) for name in "abcd"})
    table["count"] = generator.integers(0, 5, 80)
    table["label"] = np.where(table["a"] + table["b"] > 1, "high", "low")
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    table.to_csv("in/t.csv", index=False)


def _run(cli: Cli, data: str = DATA, *words: object) -> Path:
    attacks = [word for attack in ATTACKS for word in ("--attack", attack)]
    ended = cli("run", "--data", data, *WORDS, *attacks, "--out", "run", *words)
    assert ended.status == 0, ended.err
    return Path("run").absolute()


def _blocks(folder: Path) -> list[Block]:
    return [block for cell in (folder / "cells").iterdir() for block in FolderCell(cell).blocks()]


def test_a_run_on_a_table_holds_from_anywhere_and_leaves_frozen_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    folder = _run(cli)
    dataset = load_dataset(DATA)
    x = dataset.test.x.numpy()
    moved = np.zeros(5)
    for block in _blocks(folder):
        if block.adversarial.size:
            moved += np.abs(block.adversarial - x[block.index[block.found]]).sum(0)
    assert (moved[[0, 2, 3]] > 0).all()
    assert (moved[[1, 4]] == 0).all()
    spec = yaml.safe_load((folder / "spec.yaml").read_text())
    assert spec["data"] == f"csv={tmp_path}/in/t.csv/split=0.5/frozen=b"
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["data"]["name"] == "csv=t.csv/label=label/split=0.5/frozen=b"
    assert "2 of 5 features must not change" in manifest["rows"][0]["notes"]
    table = (folder / "table.md").read_text()
    assert f"all {len(x)} csv=t.csv/label=label/split=0.5/frozen=b test rows" in table
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli("report", folder).status == 0
    assert (folder / "table.md").read_text() == table
    ended = cli("verify", folder)
    assert (ended.status, ended.err) == (0, "")
    assert str(tmp_path) not in cli("report", folder).out.partition("For each")[0]


def test_an_example_that_moves_a_frozen_feature_does_not_hold(cli: Cli) -> None:
    folder = _run(cli)
    (row,) = json.loads((folder / "run.json").read_text())["rows"]
    cell = FolderCell(folder / "cells" / row["cells"]["pgd/steps=5"])
    broken = 0
    for block in list(cell.blocks()):
        broken += int(block.broken.sum())
        points = block.adversarial.copy()
        points[:, 1] += np.where(points[:, 1] < 0.5, 0.001, -0.001)
        cell.add(dataclasses.replace(block, adversarial=points))
    ended = cli("verify", folder)
    assert broken > 0
    assert f"vanilla/epochs=8 pgd/steps=5: 0 of {broken} examples hold\n" in ended.out
    assert ended.status == 1


def test_a_run_is_repeated_from_its_own_spec_in_another_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    folder = _run(cli)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli("run", folder / "spec.yaml", "--out", folder, "--quiet").status == 0
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    assert after == before


def test_other_or_missing_data_is_told(tmp_path: Path, cli: Cli) -> None:
    folder, table = _run(cli), Path("in/t.csv")
    content = table.read_text()
    table.write_text(content.replace("high", "High"))
    assert cli("verify", folder).status == 0  # the same rows under other names of the classes
    table.write_text(content.replace("0.9", "0.8"))
    data = f"csv={tmp_path}/in/t.csv/split=0.5/frozen=b"
    refused(cli("verify", folder), f"{data} is not the data that {folder} was measured on")
    table.unlink()
    ended = cli("verify", folder)
    assert ended.status == 1
    assert f"there is no file or folder '{tmp_path}/in/t.csv'" in ended.err
    assert ended.err.count("\n") == 1


def _make_images() -> None:
    """Bright and dark images, as arrays and in a folder."""
    y = np.arange(40) % 2
    x = np.random.default_rng(0).integers(0, 128, (40, 8, 8), np.uint8)
    x += (127 * y[:, None, None]).astype(np.uint8)
    np.savez("in/x.npz", x=x, y=y, class_names=["dark", "bright"])
    for number, image in enumerate(x):
        folder = Path("in/photos") / ("dark", "bright")[y[number]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    "data", ["npz=in/x.npz/scale=255/split=0.5/pair=dark-bright", "folder=in/photos/split=0.5/edge"]
)
def test_runs_on_images_hold_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, data: str
) -> None:
    _make_images()
    words = ("--data", data, *WORDS, "--samples", 9, "--attack", "pgd/steps=3")
    ended = cli("run", *words)
    assert ended.status == 0, ended.err
    assert f"9 of 20 {data.replace('in/', '')} test images (stratified by class" in " ".join(
        ended.out.split()
    )
    (folder,) = (path.absolute() for path in Path("runs").iterdir())
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli("verify", folder).status == 0


def test_two_files_of_one_name_are_told_apart_in_a_study(cli: Cli) -> None:
    _make_images()
    Path("x.npz").write_bytes(Path("in/x.npz").read_bytes())
    same = cli("study", "data", "npz=in/x.npz/scale=255", "npz=x.npz/scale=255", "--split", "test")
    assert same.status == 0, same.err
    np.savez("x.npz", x=np.zeros((4, 8, 8), np.uint8), y=[0, 1, 0, 1])
    ended = cli("study", "data", "npz=in/x.npz/scale=255", "npz=x.npz/scale=255", "--split", "test")
    line = "npz=in/x.npz/scale=255 and npz=x.npz/scale=255 are both npz=x.npz/scale=255"
    refused(ended, f"{line}: rename a file")


def test_a_run_under_two_threats_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    words = ["--threat", "linf:0.2", "--threat", "l2:0.3", "--attack", "pgd/steps=5"]
    defense = ["--defense", "vanilla/epochs=8", "--quiet"]
    ended = cli("run", "--data", DATA, *words, *defense)
    assert ended.status == 0, ended.err
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("csv=t.csv_split=0.5_frozen=b-")
    home = folder.absolute()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli("verify", home).status == 0


def test_what_is_not_split_can_be_measured_and_not_trained_on(cli: Cli) -> None:
    whole, words = "csv=in/t.csv", ("--attack", "pgd/steps=2", "--out", "run")
    ended = cli("run", "--data", whole, *WORDS, *words)
    assert ended.status == 1
    assert ended.err.endswith("add split=0.8 to its name, to train on 80% of each class\n")
    assert cli("train", DATA, "vanilla/epochs=1", "--out", "model", "--quiet").status == 0
    words = (*words, "--norm", "linf", "--eps", 0.2, "--quiet", "--defense", "saved:model")
    ended = cli("run", "--data", whole, *words)
    assert ended.status == 0, ended.err
    assert "all 80 csv=t.csv test rows" in ended.out
    assert cli("verify", "run").status == 0


@pytest.mark.parametrize("defense", ["vanilla/arch=resnet18", "l2nnn/arch=conv", "vanilla/crop=2"])
def test_networks_for_images_are_refused_for_rows_in_one_line(cli: Cli, defense: str) -> None:
    words = ["--eps", 0.2, "--attack", "pgd", "--quiet", "--out", "run"]
    ended = cli("run", "--data", DATA, *words, "--defense", defense)
    assert ended.status == 1
    assert "is for images, not for rows of 5 features" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    "defense", ["pgd-at/steps=2", "l2nnn", "robin", "nbr", "ensemble/members=2"]
)
def test_defenses_train_on_rows(cli: Cli, defense: str) -> None:
    words = ["--norm", "l2", "--eps", 0.2, "--attack", "pgd/steps=2", "--quiet", "--out", "run"]
    ended = cli("run", "--data", DATA, *words, "--defense", f"{defense}/epochs=1")
    assert ended.status == 0, ended.err


def test_a_path_is_refused_with_the_form_that_works(cli: Cli) -> None:
    line = "in/t.csv is a path, and not the name of a data set: write csv=in/t.csv/label=COLUMN"
    refused(cli("run", "--data", "in/t.csv", *WORDS), line)


def test_exact_certificates_are_refused_where_something_is_frozen(cli: Cli) -> None:
    assert (
        cli("train", DATA, "vanilla/epochs=1/widen=0.05", "--out", "model", "--quiet").status == 0
    )
    ended = cli("certify", "model", "--eps", 0.1, "--norm", "linf", "--data", DATA)
    line = "csv=t.csv/label=label/split=0.5/frozen=b has frozen features, and the ball moves all"
    refused(ended, line)
