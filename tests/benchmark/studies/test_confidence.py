"""Confidence: gaps and Jacobians against closed forms, the study against its run's own records."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor, nn

from benchmark.data.sets import load_dataset
from benchmark.models.trained import load_saved
from benchmark.run.run_folder import read_run
from benchmark.studies.outputs import gaps, jacobian_norms
from defenses import L2NonexpansiveClassifier
from tests.benchmark.conftest import Cli, assert_written, refused

CPU = torch.device("cpu")
X = torch.rand(11, 1, 3, 4, generator=torch.Generator().manual_seed(0)).double()

# It knows one class of digits, and gives no gradients.
PLUGIN = """
import torch


class Hard(torch.nn.Module):
    def forward(self, x):
        with torch.no_grad():
            bright = x.flatten(1).sum(1, keepdim=True)
            return torch.cat([bright, bright.new_zeros(len(x), 9)], 1)
"""


def linear(weight: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, len(weight))).double()
    with torch.no_grad():
        model[1].weight.copy_(weight)
    return model


def test_gaps_are_of_the_two_largest_logits() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.5], [2.0, 2.0, -1.0], [-7.0, -3.0, -30.0]])
    model = nn.Flatten()
    assert gaps(model, logits[:, :, None], CPU).tolist() == [1.5, 0, 4]


def test_of_a_linear_model_the_norm_is_that_of_its_weight() -> None:
    weight = torch.randn(5, 12).double()
    expected = torch.linalg.matrix_norm(weight, 2).expand(11)
    torch.testing.assert_close(jacobian_norms(linear(weight), X, CPU), expected)
    # More logits than pixels.
    tall = nn.Sequential(linear(weight), nn.Linear(5, 30).double())
    expected = torch.linalg.matrix_norm(tall[1].weight @ weight, 2).expand(11)
    torch.testing.assert_close(jacobian_norms(tall, X, CPU), expected.detach())


def test_it_is_the_largest_singular_value_at_each_image() -> None:
    model = nn.Sequential(linear(torch.randn(9, 12)), nn.Tanh(), nn.Linear(9, 4).double())
    expected = [
        torch.linalg.svdvals(
            torch.autograd.functional.jacobian(lambda one: model(one[None])[0], image).flatten(1)
        )[0]
        for image in X
    ]
    found = jacobian_norms(model, X, CPU)
    torch.testing.assert_close(found, torch.stack(expected))
    assert len(found.unique()) == 11
    # And of float32, as precise as that is.
    single = jacobian_norms(model, X.float(), CPU)
    torch.testing.assert_close(single, found, rtol=1e-5, atol=0)


@pytest.mark.parametrize("classes", [2, 5])
def test_nonexpansive_networks_have_small_jacobians(classes: int) -> None:
    """A single one: 1. One per label: sqrt(classes), as the gradient of each is at most 1."""
    options = {"widen": 0.25}
    x = 3 * torch.randn(60, 1, 8, 8).double()
    single = L2NonexpansiveClassifier("mlp", (1, 8, 8), classes, multi=False, **options)
    assert jacobian_norms(single, x, CPU).max() <= 1 + 1e-9
    multi = L2NonexpansiveClassifier("mlp", (1, 8, 8), classes, multi=True, **options)
    assert jacobian_norms(multi, x, CPU).max() <= math.sqrt(classes) * (1 + 1e-9)
    # Which all but 1 of it can be: logits that are all the same.
    unit = nn.functional.normalize(torch.randn(1, 12).double())
    found = jacobian_norms(linear(unit.expand(classes, 12)), X, CPU)
    torch.testing.assert_close(found, torch.full_like(found, math.sqrt(classes)))


def test_neither_blocks_nor_the_mode_of_the_model_change_them() -> None:
    model = nn.Sequential(
        linear(torch.randn(9, 12)), nn.BatchNorm1d(9).double(), nn.Dropout(), nn.Tanh(),
        nn.Linear(9, 4).double(),
    )  # fmt: skip
    model(X)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = gaps(model, X, CPU), jacobian_norms(model, X, CPU)
    assert model.training
    for block in (1, 4, 11):
        found = gaps(model, X, CPU, block), jacobian_norms(model.eval(), X, CPU, block)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("confidence") / "run"


@pytest.fixture
def run(whole: Path, cli: Cli) -> Path:
    """103 images, of which the first row gets some right and loses some; the second cannot be
    attacked."""
    if not whole.exists():
        plugin = whole.with_name("mine.py")
        plugin.write_text(PLUGIN)
        hard = {"name": "external", "model": f"{plugin}:Hard"}
        values = {
            "eps": 0.6,
            "samples": 103,
            "attacks": ["pgd/steps=5"],
            "defenses": ["vanilla/epochs=4/dropout=0.2/hold_out=100", hard],
        }
        spec = whole.with_name("spec.yaml")
        spec.write_text(yaml.safe_dump(values))
        assert cli("run", spec, "--quiet", "--out", whole).status == 3
    return whole


@pytest.mark.parametrize("bins", [1, 7, 10, 103])
def test_bins_are_the_runs_samples_from_the_surest_on(run: Path, cli: Cli, bins: int) -> None:
    words = [] if bins == 10 else ["--bins", bins]
    found = assert_written(run, "confidence", cli("study", "confidence", run, *words))
    _, manifest, reports = read_run(run)
    x = load_dataset("digits").test.x[:103]
    for report, row in zip(reports, manifest["rows"], strict=True):
        own = found[found["defense"] == report.name]
        assert own["bin"].tolist() == list(range(1, bins + 1))
        assert own["images"].sum() == 103
        assert own["images"].max() - own["images"].min() <= 1
        assert own["gap"].is_monotonic_decreasing
        gap = gaps(load_saved(run / row["model"]).model, x, CPU).double()
        shares = {"natural": report.natural, "best_attack": report.best_attack}
        for column, value in (shares | {"gap": float(gap.mean())}).items():
            mean = np.average(own[column], weights=own["images"])
            assert mean == pytest.approx(value, rel=1e-12, nan_ok=True)
        right = torch.ones(103).double()
        right[[*report.frames["natural"].query("broken")["index"]]] = 0
        parts = right[gap.argsort(descending=True, stable=True)].split(own["images"].tolist())
        assert own["natural"].tolist() == pytest.approx([float(part.mean()) for part in parts])


def test_what_is_said_of_a_whole_defense(run: Path, cli: Cli) -> None:
    ended = cli("study", "confidence", run, "--bins", 5, "--device", "cpu")
    found = assert_written(run, "confidence", ended)
    _, manifest, (first, second) = read_run(run)
    own, hard = (found[found["defense"] == name].iloc[0] for name in (first.name, second.name))
    x = load_dataset("digits").test.x[:103]
    model = load_saved(run / manifest["rows"][0]["model"]).model
    assert own["jacobian_norm"] == pytest.approx(float(jacobian_norms(model, x, CPU).mean()))
    # The share of pairs, a robust image and another, of which the robust one has the larger gap.
    gap, robust = gaps(model, x, CPU), torch.zeros(103, dtype=torch.bool)
    robust[first.survivors()] = True
    assert 10 < int(robust.sum()) < 93
    larger = gap[robust][:, None] > gap[~robust]
    assert own["area"] == pytest.approx(float(larger.double().mean()), abs=1e-9)
    assert own["area"] > 0.6
    assert hard[["jacobian_norm", "area", "best_attack"]].isna().all()

    header, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in ended.out.splitlines()
        if line.startswith("|")
    ]
    assert header == ["defense", "measure", "all", "1", "2", "3", "4", "5"]
    names = ["natural %", "best-attack %", "gap", "Jacobian norm", "area under ROC"]
    assert [line[:2] for line in lines] == [[r.name, n] for r in (first, second) for n in names]
    assert lines[1][2] == f"{100 * first.best_attack:.1f}"
    assert [line[2] for line in lines[6:]] == ["-", f"{hard_gap(found, second.name):.3g}", "-", "-"]
    assert lines[4][3:] == [""] * 5


def hard_gap(found: pd.DataFrame, name: str) -> float:
    own = found[found["defense"] == name]
    return float(np.average(own["gap"], weights=own["images"]))


def test_other_data_too_many_bins_and_no_run_are_refused(
    run: Path, cli: Cli, tmp_path: Path
) -> None:
    line = "103 images do not fill 104 bins: lower bins"
    refused(cli("study", "confidence", run, "--bins", 104), line)
    line = f"{tmp_path} holds no run with results: name the folder of a run"
    refused(cli("study", "confidence", tmp_path), line)
    shutil.copytree(run, tmp_path / "run")
    manifest = json.loads((run / "run.json").read_text())
    manifest["data"]["sha256"] = "0" * 64
    (tmp_path / "run" / "run.json").write_text(json.dumps(manifest))
    line = f"digits is not the data that {tmp_path / 'run'} was measured on"
    refused(cli("study", "confidence", tmp_path / "run"), line)
