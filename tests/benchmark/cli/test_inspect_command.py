"""`bestattack inspect` looks at models that exist, and says in one line where there is none."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import Cli

CODE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
"""
WORDS = ("inspect", "--data", "digits", "--norm", "linf", "--eps", "4/255", "--attack", "pgd")


def test_a_model_of_any_source_is_looked_at(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    ended = cli(*WORDS, f"external/python={tmp_path}/mine.py:net/mean=0/std=1", "--samples", 50)
    assert ended.status == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    whole = re.sub(r"\n +", "", ended.out)
    lines = dict(line.split(": ", 1) for line in whole.splitlines())
    assert "1,510 parameters" in lines["model"]
    assert lines["smoothed"].strip() == "relu x 1"
    assert "images" in lines["natural"]
    assert "looking at the model" in ended.err


def test_a_saved_model_is_named_by_its_folder(cli: Cli, tmp_path: Path) -> None:
    home = tmp_path / "saved"
    assert cli("train", "digits", "vanilla/epochs=1", "--out", home, "--quiet").status == 0
    for name in (home, f"saved:{home}"):
        ended = cli(*WORDS, name, "--quiet")
        assert ended.status == 0
        assert "broke" in ended.out
        assert not ended.err


def test_what_must_not_move_and_is_sorted_is_looked_at(cli: Cli, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((90, 3))
    label = np.sort(np.arange(90) % 3)
    rows[:, 0] = label / 2
    table = "\n".join(f"{a},{b},{c},{k}" for (a, b, c), k in zip(rows, label, strict=True))
    (tmp_path / "t.csv").write_text(f"a,b,c,kind\n{table}\n")
    model = nn.Linear(3, 3)
    model.load_state_dict(
        {"weight": torch.tensor([[-4.0, 0, 0], [0, 0, 0], [4.0, 0, 0]]),
         "bias": torch.tensor([1.0, 0.0, -3.0])}
    )  # fmt: skip
    torch.export.save(
        torch.export.export(
            model, (torch.rand(2, 3),), dynamic_shapes=({0: torch.export.Dim("n")},)
        ),
        tmp_path / "net.pt2",
    )
    words = ("inspect", f"external/exported={tmp_path}/net.pt2", "--norm", "linf", "--eps", 0.2)
    data = ("--data", f"csv={tmp_path}/t.csv/label=kind")
    ended = cli(*words, *data, "--attack", "pgd")
    assert ended.status == 0
    assert "64 of 64 images are classified correctly" in ended.out
    ended = cli(*words, "--data", f"{data[1]}/frozen=a", "--attack", "pgd")
    assert "broke 0 of 8" in ended.out  # what decides must not change


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("vanilla", "vanilla is trained first: bestattack train digits vanilla --out FOLDER"),
        ("vanila", "unknown defense 'vanila': did you mean 'vanilla'?"),
        ("saved:nowhere", "/nowhere: train it first"),
        ("external/onnx=nowhere.onnx", "nowhere.onnx: there is no such file"),
        ("external/timm=resnet18", "give weights, pretrained for the library's, or epochs"),
    ],
)
def test_what_is_no_model_gets_one_line(cli: Cli, name: str, line: str) -> None:
    ended = cli(*WORDS, name)
    assert ended.status == 1
    assert line in ended.err
    assert ended.err.count("\n") == 1
    assert not ended.out
