"""Code of plugins and of files goes to workers by itself."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import Cli

pytest.importorskip("ray")

from benchmark.executors.on_ray import OnRay, on_ray

PLUGIN = """
from dataclasses import dataclass

import torch
from torch import nn

from attacks import Facts
from defenses import Vanilla


SLOPE = 1.0


@dataclass(frozen=True)
class Push:
    size: float = 0.05

    @property
    def facts(self):
        return Facts("fixed-budget", norms=("linf",), passes=1)

    def __call__(self, problem):
        problem.logits(problem.x)
        return problem.x + self.size * SLOPE


ATTACKS = {"push": Push}
"""
NETWORK = """
from torch import nn

import settings_elsewhere
from our_layers import Scaled
from settings_elsewhere import SETTINGS

settings_elsewhere.SETTINGS["factor"] = 3

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.scaled = Scaled()

    def forward(self, x):
        return SETTINGS["factor"] * self.scaled(self.linear(x.flatten(1)))
"""
LAYERS = """
from torch import nn


class Scaled(nn.Module):
    def forward(self, x):
        return 2 * x
"""


@pytest.fixture(scope="module")
def ray_of_two() -> Iterator[OnRay]:
    with on_ray(2, None, 1) as executor:
        yield executor


def test_a_plugin_and_a_file_of_code(
    ray_of_two: OnRay, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del ray_of_two  # the command works on it
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "our_layers.py").write_text(LAYERS)
    # A module that workers could import, but not with what is set in it.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "settings_elsewhere.py").write_text('SETTINGS = {"factor": 1}')
    monkeypatch.syspath_prepend(str(elsewhere))
    torch.manual_seed(0)
    state = {"linear.weight": torch.randn(10, 64), "linear.bias": torch.zeros(10)}
    torch.save(state, tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    words = ["--norm", "linf", "--eps", "0.1", "--samples", "30", "--block", "8", "--quiet"]
    words += ["--plugin", "mine.py", "--attack", "push", "--attack", "pgd/steps=5"]
    words += ["--defense", "external/python=net.py:Net/weights=w.pt/mean=0/std=1"]
    ways = {"here": ["--threads", "1"], "there": ["--workers", "2", "--threads", "1"]}
    for out, more in ways.items():
        ended = cli("run", *words, *more, "--out", tmp_path / out)
        assert ended.status == 0, ended.err
    here, there = (_broken(tmp_path / out) for out in ways)
    assert here == there
    assert any(map(any, (verdicts.values() for verdicts in here.values())))


def _broken(run: Path) -> dict[str, dict[int, bool]]:
    """Which samples are broken in each cell of a run."""
    found: dict[str, dict[int, bool]] = {}
    for path in sorted((run / "cells").glob("*/*.npz")):
        block = np.load(path)
        verdicts = dict(zip(block["index"].tolist(), block["broken"].tolist(), strict=True))
        found.setdefault(path.parent.name, {}).update(verdicts)
    return found
