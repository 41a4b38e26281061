"""Runs on training images, on predictions and without a box; and runs without attacks."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from attacks import ThreatModel
from attacks.threat import Norm
from benchmark.data.sets import load_dataset
from benchmark.judge.records import FolderCell
from benchmark.models.trained import load_saved
from benchmark.run.run_folder import read_run
from benchmark.spec.run_spec import make_spec
from tests.benchmark.conftest import Cli, refused

# Image i = 1, 2, ... has one pixel of 0.5 - i/100 and three of 1, and the model says 1 where the
# sum is above 3.5: within eps of Linf, it rises by 4 eps, and by eps where it must stay in [0, 1].
# All are of class 0, but for the first and the last two of each split, which are misclassified.
PLUGIN = """
import torch

from benchmark.data.dataset import Dataset, Split


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([-1.0, 1.0]))

    def forward(self, x):
        return (x.flatten(1).sum(1, keepdim=True) - 3.5) * self.weight


def load(part):
    i = torch.arange(1, 31 if part == "test" else 41)
    x = torch.ones(len(i), 4)
    x[:, 0] = 0.5 - i / 100
    y = ((i == 1) | (i > len(i) - 2)).long()
    return Split(x.reshape(-1, 1, 2, 2), y)


DATASETS = {"line": lambda root: Dataset("line", ("a", "b"), (1, 2, 2), load)}
"""

PGD = "pgd/steps=20/random_start=False"
WRONG = {1, 29, 30}
REACHES: dict[Norm, tuple[float, float]] = {"linf": (0.0512, 4), "l2": (0.1025, 2)}


def measured(folder: Path, cli: Cli, **values: Any) -> pd.DataFrame:
    """The records of a run on the line, which hold; its folder is `folder / "run"`."""
    spec = folder / "spec.yaml"
    (folder / "mine.py").write_text(PLUGIN)
    defense = {"name": "external", "model": f"{folder}/mine.py:Line", "label": "line"}
    settings = {"data": "line", "norm": "linf", "eps": 0.0512, "plugins": [f"{folder}/mine.py"]}
    parts = {"defenses": [defense], "attacks": [PGD], "block": 8}
    spec.write_text(yaml.safe_dump(settings | parts | values))
    assert cli("run", spec, "--out", folder / "run", "--quiet").status == 0
    ended = cli("verify", folder / "run")
    assert (ended.status, ended.err) == (0, "")
    (report,) = read_run(folder / "run")[2]
    return report.records


def left(records: pd.DataFrame) -> set[int]:
    """The images, counted from 1, that the attack was given and did not break."""
    own = records[records["attack"] == PGD]
    return set(own.loc[~own["broken"], "index"] + 1)


def attacked(records: pd.DataFrame) -> set[int]:
    return set(records.loc[records["attack"] == PGD, "index"] + 1)


def natural(records: pd.DataFrame) -> pd.DataFrame:
    return records[records["attack"] == "natural"].sort_values("index")


def points(run: Path) -> torch.Tensor:
    key = json.loads((run / "run.json").read_text())["rows"][0]["cells"][PGD]
    blocks = FolderCell(run / "cells" / key).blocks()
    return torch.cat([torch.from_numpy(block.adversarial) for block in blocks])


def test_training_images_are_attacked_with_their_labels(tmp_path: Path, cli: Cli) -> None:
    test, train = (measured(tmp_path, cli, split=split) for split in ("test", "train"))
    assert left(test) == set(range(6, 29))
    assert left(train) == set(range(6, 39))
    caption = json.loads((tmp_path / "run" / "table.json").read_text())["caption"]
    assert caption.startswith("Accuracy in % over all 40 line train images, L-infinity eps 0.0512.")


def test_only_the_images_are_others(tmp_path: Path, cli: Cli) -> None:
    words = ["--samples", 60, "--eps", 0.3, "--defense", "vanilla/epochs=2", "--quiet"]
    words += ["--attack", "pgd/steps=2", "--out", tmp_path / "run"]
    specs, models = [], []
    for split in ("test", "train"):
        assert cli("run", *words, "--split", split).status == 0
        spec, manifest, (report,) = read_run(tmp_path / "run")
        specs.append(spec)
        models.append(manifest["rows"][0]["model"])
        images = load_dataset("digits").first(split, 60)
        assert natural(report.records)["label"].tolist() == images.y.tolist()
        model = load_saved(tmp_path / "run" / models[-1]).model
        hits = (model(images.x).argmax(1) == images.y).float().mean()
        assert report.natural == pytest.approx(float(hits))
        assert cli("verify", tmp_path / "run").status == 0
    assert specs[1] == specs[0].model_copy(update={"split": "train"})
    assert models[0] == models[1]
    ended = cli("run", *words, "--split", "train", "--samples", 1443)
    refused(ended, "digits has 1442 train images, not 1443: lower samples")


@pytest.mark.parametrize("bounded", [True, False])
def test_of_predictions_all_are_right_and_what_was_right_keeps_its_verdict(
    tmp_path: Path, cli: Cli, bounded: bool
) -> None:
    by_data = measured(tmp_path, cli, bounded=bounded)
    by_model = measured(tmp_path, cli, bounded=bounded, labels="predictions")
    assert attacked(by_data) == set(range(1, 31)) - WRONG
    assert attacked(by_model) == set(range(1, 31))
    assert not natural(by_model)["broken"].any()
    assert set(by_model["label"]) == {0}
    unchanged = {29, 30}
    assert left(by_model) == left(by_data) | unchanged
    row = json.loads((tmp_path / "run" / "table.json").read_text())["rows"][0]
    assert row["natural"] == 1
    assert row["best_attack"] == pytest.approx((len(left(by_data)) + len(unchanged)) / 30)
    assert "robustness with respect to predictions" in (tmp_path / "run" / "table.md").read_text()


def test_a_trained_model_is_as_robust_on_what_it_has_right(tmp_path: Path, cli: Cli) -> None:
    words = ["--samples", 80, "--eps", 0.5, "--defense", "vanilla/epochs=1", "--quiet"]
    words += ["--attack", "pgd/steps=5", "--block", 32, "--out", tmp_path / "run"]
    frames = []
    for labels in ("data", "predictions"):
        assert cli("run", *words, "--labels", labels).status == 0
        assert cli("verify", tmp_path / "run").status == 0
        (report,) = read_run(tmp_path / "run")[2]
        frames.append(report.records.set_index(["attack", "index"]))
    by_data, by_model = (frame.loc["pgd/steps=5"] for frame in frames)
    assert 0 < len(by_data) < len(by_model) == 80
    columns = ["label", "predicted", "broken", "distance"]
    pd.testing.assert_frame_equal(by_model.loc[by_data.index, columns], by_data[columns])
    assert not frames[1].loc["natural", "broken"].any()


@pytest.mark.parametrize("forget", ["labels of the data", "labels of the spec"])
def test_labels_that_are_no_longer_said_to_be_predictions_do_not_hold(
    tmp_path: Path, cli: Cli, forget: str
) -> None:
    measured(tmp_path, cli, labels="predictions")
    path = tmp_path / "run" / "run.json"
    manifest = json.loads(path.read_text())
    del manifest["data" if forget.endswith("data") else "spec"]["labels"]
    path.write_text(json.dumps(manifest))
    line = f"line is not the data that {tmp_path / 'run'} was measured on"
    refused(cli("verify", tmp_path / "run"), line)


def test_predictions_are_verified_on_the_device_that_is_asked_for(tmp_path: Path, cli: Cli) -> None:
    measured(tmp_path, cli, labels="predictions")
    path = tmp_path / "run" / "run.json"
    manifest = json.loads(path.read_text())
    manifest["spec"]["device"] = "cuda"
    path.write_text(json.dumps(manifest))
    assert cli("verify", tmp_path / "run", "--device", "cpu").status == 0


@pytest.mark.parametrize("norm", list(REACHES))
def test_without_a_box_accuracy_is_that_of_the_closed_form(
    tmp_path: Path, cli: Cli, norm: Norm
) -> None:
    eps, gain = REACHES[norm]
    given = {"norm": norm, "eps": eps}
    within = measured(tmp_path, cli, **given)
    assert left(within) == {i for i in range(1, 31) if i / 100 > eps} - WRONG
    inside = points(tmp_path / "run")
    assert ((inside >= 0) & (inside <= 1)).all()
    beyond = measured(tmp_path, cli, **given, bounded=False)
    assert left(beyond) == {i for i in range(1, 31) if i / 100 > gain * eps} - WRONG
    outside = points(tmp_path / "run")
    assert bool((outside > 1).any())
    own = beyond[beyond["attack"] == PGD]
    assert (own.loc[own["broken"], "distance"] <= eps).all()
    assert "Perturbed images may leave [0, 1]. " in (tmp_path / "run" / "table.md").read_text()


def test_the_box_is_recorded_and_training_keeps_its_own(tmp_path: Path, cli: Cli) -> None:
    words = [
        "--samples",
        20,
        "--eps",
        "1/8",
        "--norm",
        "linf",
        "--quiet",
        "--attack",
        "pgd/steps=2",
    ]
    words += ["--defense", "pgd-at/epochs=1/steps=1", "--out", tmp_path / "run"]
    found = {}
    for flag in ("--bounded", "--no-bounded"):
        assert cli("run", *words, flag).status == 0
        manifest = json.loads((tmp_path / "run" / "run.json").read_text())
        card = tmp_path / "run" / manifest["rows"][0]["model"] / "card.json"
        assert cli("verify", tmp_path / "run").status == 0
        made = json.loads(card.read_text())
        found[flag] = manifest["threat"], made["fingerprint"], card.stat().st_mtime_ns
    threats, weights, times = zip(*found.values(), strict=True)
    assert threats[0] == {"norm": "linf", "eps": 0.125, "lower": 0.0, "upper": 1.0}
    assert threats[1] == {"norm": "linf", "eps": 0.125, "lower": -0.125, "upper": 1.125}
    assert len(set(weights)) == len(set(times)) == 1


def test_without_a_box_no_image_in_it_is_stopped() -> None:
    least: dict[str, Any] = {"eps": 0.3, "norm": "linf", "defenses": ["vanilla"], "suite": "none"}
    threat = make_spec(least | {"bounded": False}).threat
    x = torch.tensor([0.0, 0.5, 1.0])
    for step in (-0.3, 0.3):
        torch.testing.assert_close(threat.clamp(x + step), x + step)
    assert make_spec(least | {"bounded": False}).training_threat == ThreatModel("linf", 0.3)


def test_runs_from_before_these_settings_still_hold(tmp_path: Path, cli: Cli) -> None:
    measured(tmp_path, cli)
    path = tmp_path / "run" / "run.json"
    manifest = json.loads(path.read_text())
    for name in ("split", "labels", "bounded"):
        del manifest["spec"][name]
    manifest["threat"] = {name: manifest["threat"][name] for name in ("norm", "eps")}
    path.write_text(json.dumps(manifest))
    spec, _, (report,) = read_run(tmp_path / "run")
    assert (spec.split, spec.labels, spec.bounded) == ("test", "data", True)
    assert report.threat == ThreatModel("linf", 0.0512)
    assert cli("verify", tmp_path / "run").status == 0
    assert cli("report", tmp_path / "run").status == 0


def test_the_suite_none_measures_natural_accuracy_alone(tmp_path: Path, cli: Cli) -> None:
    records = measured(tmp_path, cli, attacks=[], suite="none")
    assert set(records["attack"]) == {"natural"}
    (row,) = json.loads((tmp_path / "run" / "table.json").read_text())["rows"]
    assert (row["natural"], row["best_attack"], row["per_attack"]) == (0.9, None, {})
    line = (tmp_path / "run" / "table.md").read_text().splitlines()[2]
    assert [cell.strip() for cell in line.split("|")[1:4]] == ["line", "90.0", "-"]
    # With attacks besides, it adds none.
    assert left(measured(tmp_path, cli, suite="none")) == set(range(6, 29))
