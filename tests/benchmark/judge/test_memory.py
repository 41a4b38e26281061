"""Memory does not grow with the number of samples attacked, beyond the data itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MEGABYTE = 2**20
PIXELS = 28 * 28

# A linear model whose weights make every image of either class easy to classify, and to break.
PLUGIN = """
import os
from dataclasses import dataclass

import torch
from torch import nn

from benchmark.data.dataset import Dataset, Split
from defenses import Vanilla


def load(part):
    n = int(os.environ["SAMPLES"]) if part == "test" else 2
    # Black but for one pixel, so that packing the examples takes no time.
    x, y = torch.zeros(n, 1, 28, 28), torch.arange(n) % 2
    x[:, 0, 0, 0] = y.float()
    return Split(x, y)


@dataclass(frozen=True, kw_only=True)
class Pixel(Vanilla):
    epochs: int = 0

    def build(self, shape, classes):
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
        with torch.no_grad():
            model[1].weight.zero_()
            model[1].weight[:, 0] = torch.tensor([-1.0, 1.0])
            model[1].bias[:] = torch.tensor([0.5, -0.5])
        return model


DATASETS = {"noise": lambda root: Dataset("noise", ("0", "1"), (1, 28, 28), load)}
DEFENSES = {"pixel": Pixel}
"""


def _start(tmp_path: Path, samples: int, attacks: int) -> "subprocess.Popen[bytes]":
    words = ["run", "--quiet", "--plugin", str(tmp_path / "plugin.py"), "--data", "noise"]
    words += ["--eps", "2", "--defense", "pixel", "--block", "1000"]
    words += ["--out", str(tmp_path / str(samples))]
    for number in range(attacks):
        words += ["--attack", f"pgd/steps=2/random_start=false/step_size=0.{90 + number}"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SAMPLES": str(samples)}
    return subprocess.Popen(
        [sys.executable, "-m", "bestattack", *words],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
    )


def _peak(process: "subprocess.Popen[bytes]") -> int:
    """The most memory, in bytes, that a run took."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_samples_beyond_the_data(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    few, many, attacks = 1_000, 10_000, 9
    processes = [_start(tmp_path, samples, attacks) for samples in (few, many)]
    least, most = (_peak(process) for process in processes)
    data = (many - few) * PIXELS * 4
    assert most - least < data + 200 * MEGABYTE

    # All samples were broken by all attacks: kept in memory, their examples would not fit.
    assert attacks * data > data + 200 * MEGABYTE
    (row,) = json.loads((tmp_path / str(many) / "table.json").read_text())["rows"]
    assert row["natural"] == 1.0
    assert list(row["per_attack"].values()) == [0.0] * attacks
