"""Small inputs whose figures are known, each of a kind that is easily measured wrongly."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmark import evaluate
from tests.benchmark.conftest import Cli
from tests.benchmark.small import evaluate_small, refusal

# Models.


class Shifting(nn.Module):
    """A linear model of centred images, which it may centre in place."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.layer, self.in_place = nn.Linear(9, 2), in_place

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer((x.sub_(0.5) if self.in_place else x - 0.5).flatten(1))
        return logits


def test_a_model_that_works_in_place_is_judged_on_the_images_that_were_given() -> None:
    x, net, in_place = torch.rand(40, 1, 3, 3), Shifting(False).eval(), Shifting(True).eval()
    in_place.load_state_dict(net.state_dict())
    y, clean = net(x).argmax(1), x.clone()
    found = [evaluate(m, x, y, eps=0.2, attacks=["square/steps=100"]) for m in (net, in_place)]
    assert [report.natural for report in found] == [1.0, 1.0]
    assert found[0].best_attack < 1
    for label in ("natural", "best-attack"):
        assert np.array_equal(found[0].robust_to(label), found[1].robust_to(label))
    assert torch.equal(x, clean)


class Angles(nn.Module):
    """A linear model of the angles of a Fourier transform, which a complex buffer holds."""

    def __init__(self) -> None:
        super().__init__()
        k = torch.arange(16.0)
        self.register_buffer("w", torch.exp(-2j * torch.pi * k[:, None] * k / 16))
        self.layer = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer((x.flatten(1).to(self.w.dtype) @ self.w).angle())
        return logits


@pytest.mark.parametrize("precision", ["model", "float32", "float64"])
def test_complex_weights_stay_complex(precision: Any) -> None:
    net, x = Angles().eval(), torch.rand(200, 1, 4, 4)
    y = net(x).argmax(1)
    report = evaluate(net, x, y, eps=0.01, attacks=["pgd/steps=5"], precision=precision)
    assert report.natural == 1.0
    examples = report.adversarial["pgd/steps=5"]
    assert len(examples.index)
    fooled = net(torch.from_numpy(examples.points).float()).argmax(1) != y[examples.index]
    assert fooled.double().mean() > 0.9


class Coin(nn.Module):
    """Each answer is a guess."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.rand(len(x), 2, dtype=x.dtype) + 0 * x.flatten(1)[:, :1]


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_coin_is_right_half_of_the_time(precision: Any) -> None:
    x, y = torch.rand(100, 1, 2, 2), torch.arange(100) % 2
    report = evaluate(Coin().eval(), x, y, eps=0.1, attacks=["pgd/steps=5"], precision=precision)
    for label in ("natural", "pgd/steps=5", "best-attack"):
        accuracy = report.accuracy(label)
        assert accuracy is not None
        assert accuracy.interval[0] < 0.5 < accuracy.interval[1]
        assert abs(accuracy.value - 0.5) < 4 * 0.5 / math.sqrt(100 * 50)
    assert "non-deterministic" in report.flags


def test_a_model_that_mixes_the_batch_has_one_number_for_every_block_size() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 3),
    ).eval()  # fmt: skip
    x = torch.rand(10, 1, 6, 6)
    with torch.no_grad():
        y = torch.cat([net(image[None]) for image in x]).argmax(1)
    found = [evaluate(net, x, y, eps=0.1, attacks=["pgd/steps=5"], block=b) for b in (10, 4, 1)]
    for report in found:
        assert "batch-dependent" in report.flags
        assert report.natural == 1.0
        assert report.best_attack == found[0].best_attack < 1


def _classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5)
    ).eval()  # fmt: skip


QUICK = {
    "strong": "strong/steps=2/queries=2",
    "cw": "cw/steps=20/searches=2",
    "FAB": "torchattacks:FAB/steps=3",
    "pgd": "pgd/steps=5",
}


@pytest.mark.parametrize("attack", QUICK)
def test_compiled_models_and_inference_mode_change_nothing(attack: str) -> None:
    net, x = _classifier(), torch.rand(4, 1, 8, 8)
    y = net(x).argmax(1)
    options: dict[str, Any] = {"eps": 0.1, "attacks": [QUICK[attack]]}
    plain = evaluate(net, x, y, **options)
    assert plain.natural == 1.0
    with torch.inference_mode():
        report = evaluate(torch.compile(net), x, y, **options)
    assert report.errors == {}
    assert set(report.flags) == set(plain.flags)
    assert np.array_equal(report.robust_to("best-attack"), plain.robust_to("best-attack"))


def test_signals_are_images_of_one_axis() -> None:
    net = nn.Sequential(nn.Conv1d(3, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()
    x = torch.rand(6, 3, 12)
    attacks = [*QUICK.values(), "square/steps=20", "apgd/steps=5"]
    report = evaluate(net, x, net(x).argmax(1), norm="linf", eps=0.1, attacks=attacks)
    assert report.errors == {}
    assert report.natural == 1.0
    # The same network on images of one row.
    flat = nn.Sequential(nn.Flatten(2), net).eval()
    images = evaluate(flat, x[:, :, None], net(x).argmax(1), norm="linf", eps=0.1, attacks=attacks)
    assert images.per_attack["pgd/steps=5"] == report.per_attack["pgd/steps=5"]
    assert report.best_attack <= min(report.per_attack.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_are_evaluated_in_it(dtype: torch.dtype) -> None:
    net, x = _classifier().to(dtype), torch.rand(300, 1, 8, 8)
    y = net(x.to(dtype)).argmax(1)
    report = evaluate(net, x, y, eps=0.1, attacks=["pgd/steps=10"])
    examples = report.adversarial["pgd/steps=10"]
    assert report.natural == 1.0
    assert report.precision == str(dtype)[6:]
    broken = report.robust_to("pgd/steps=10")
    assert broken is not None
    index = np.flatnonzero(~broken)
    points = torch.from_numpy(examples.points[np.isin(examples.index, index)])
    assert len(points) == len(index) > 10
    assert (net(points.to(dtype)).argmax(1) != y[index]).all()


# What is handed over.


class _One(nn.Module):
    """One logit, of the shape that a function makes of it."""

    def __init__(self, shaped: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.shaped = shaped

    def forward(self, x: Tensor) -> Tensor:
        return self.shaped(x[:, :1] - 0.6)


@pytest.mark.parametrize("shaped", [lambda z: z, lambda z: z[:, 0]], ids=["(n, 1)", "(n,)"])
def test_one_logit_gets_a_hint_that_helps(shaped: Callable[[Tensor], Tensor]) -> None:
    assert "pass binary=True" in refusal(_One(shaped).eval())
    report = evaluate_small(_One(shaped).eval(), binary=True)
    assert (report.natural, report.best_attack) == (1.0, 0.0)
    assert evaluate_small(_One(shaped).eval(), binary=True, eps=0.09).best_attack == 1.0


def _forms(x: Tensor, y: Tensor) -> dict[str, tuple[Any, ...]]:
    pairs = TensorDataset(x, y)
    names = [f"feature {place}" for place in range(x.shape[1])]
    return {
        "a DataLoader": (DataLoader(pairs, batch_size=5),),
        "a Dataset": (pairs,),
        "a list of batches": ([(x[:7], y[:7]), (x[7:], y[7:])],),
        "a list of lists": ([[x[:7], y[:7]], [x[7:], y[7:]]],),
        "arrays in batches": ([(x[:7].numpy(), y[:7].numpy()), (x[7:].numpy(), y[7:].numpy())],),
        "a data frame": (
            pd.DataFrame(x.numpy(), columns=names),
            pd.Series(y.numpy(), name="class"),
        ),
        "a column of labels": (x, pd.DataFrame({"class": y.numpy()})),
        "uint16 labels": (x.numpy(), y.numpy().astype(np.uint16)),
        "uint64 labels": (x.numpy(), y.numpy().astype(np.uint64)),
        "one-hot labels": (x, nn.functional.one_hot(y, 3)),
        "lists": (x.tolist(), y.tolist()),
    }


@pytest.mark.parametrize("form", _forms(torch.rand(12, 4), torch.arange(12) % 3))
def test_samples_in_any_form_are_the_same_samples(form: str) -> None:
    net, x = nn.Linear(4, 3).eval(), torch.rand(12, 4)
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    plain = evaluate(net, x, y, eps=0.1, attacks=["pgd/steps=5"])
    report = evaluate(net, *_forms(x, y)[form], eps=0.1, attacks=["pgd/steps=5"])
    for label in ("natural", "best-attack"):
        assert np.array_equal(report.robust_to(label), plain.robust_to(label))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("eps", [1e-6, 1e-7])
def test_a_tiny_eps_is_no_reason_for_a_flag(eps: float, norm: Any) -> None:
    net, x = _classifier(), torch.rand(20, 1, 8, 8)
    attacks = ["pgd/steps=5", "apgd/steps=5", "square/steps=20", "torchattacks:PGD/steps=5"]
    if norm == "l2":
        attacks[-1] = "torchattacks:PGDL2/steps=5"
    report = evaluate(net, x, net(x).argmax(1), norm=norm, eps=eps, attacks=attacks)
    assert report.errors == {}
    assert "outside-ball" not in report.flags
    assert report.natural == 1.0


def test_a_device_may_be_named_in_any_way() -> None:
    for device in ("cpu", "cpu:0", torch.device("cpu"), "auto"):
        assert evaluate_small(device=device).best_attack == 0.0
    beyond = f"cuda:{torch.cuda.device_count()}"
    for device in (beyond, torch.device(beyond)):
        line = f"there is no device {beyond} here: give cpu or auto as the device"
        assert refusal(device=device) == line


def test_a_targeted_attack_may_be_told_how_many_of_a_thousand_classes_to_try() -> None:
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 1000)).eval(), torch.rand(4, 1, 4, 4)
    for attack in ("torchattacks:APGDT/steps=5/n_classes=10", "targeted:apgd/steps=5/classes=9"):
        report = evaluate(net, x, net(x).argmax(1), eps=0.001, attacks=[attack])
        assert report.errors == {}
        assert 9 < report.frames[attack]["forwards"].max() <= 9 * 8


# The command line.


NET = """
import torch
from prep_of_net import prepared
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        return self.layer(prepared(x.flatten(1)))
"""


@pytest.fixture
def measured(tmp_path: Path, cli: Cli) -> Callable[[str, dict[str, Any]], tuple[float, float]]:
    """Natural and best-attack accuracy of a defense, by a run into a folder of some name."""

    def run(out: str, defense: dict[str, Any]) -> tuple[float, float]:
        (tmp_path / "spec.yaml").write_text(json.dumps({"defenses": [defense]}))
        words = ["--samples", 100, "--eps", 0.1, "--attack", "pgd/steps=2", "--quiet"]
        ended = cli("run", tmp_path / "spec.yaml", *words, "--out", tmp_path / out)
        assert ended.status == 0, ended.err
        (row,) = json.loads((tmp_path / out / "table.json").read_text())["rows"]
        return row["natural"], row["best_attack"]

    return run


def test_after_its_helper_was_edited_a_model_is_measured_anew(
    tmp_path: Path, measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "net.py").write_text(NET)

    def found(out: str, line: str) -> tuple[float, float]:
        monkeypatch.delitem(sys.modules, "prep_of_net", raising=False)  # as in a new process
        (tmp_path / "prep_of_net.py").write_text(f"def prepared(x):\n    {line}\n")
        return measured(out, {"name": "external", "model": f"{tmp_path / 'net.py'}:Net"})

    first, edited = found("run", "return x"), found("run", "return x.flip(1)")
    assert edited != first
    assert edited == found("fresh", "return x.flip(1)")
    assert found("run", "return x") == first
    monkeypatch.delitem(sys.modules, "prep_of_net", raising=False)


@pytest.mark.parametrize("epochs", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_after_its_weights_were_overwritten_a_model_is_measured_anew(
    tmp_path: Path, measured: Any, epochs: int
) -> None:
    weights = tmp_path / "weights.safetensors"
    layers = "Flatten(), Linear(64, 10)"

    def found(out: str, seed: int) -> tuple[float, float]:
        drawn = torch.randn(10, 64, generator=torch.Generator().manual_seed(seed))
        save_file({"1.weight": drawn, "1.bias": torch.zeros(10)}, weights)
        defense = {"name": "external", "layers": layers, "weights": str(weights)}
        return measured(out, defense | {"epochs": epochs})

    first, overwritten = found("run", 0), found("run", 1)
    assert overwritten != first
    assert overwritten == found("fresh", 1)
    assert found("run", 0) == first
