"""What is told of speeds is what was measured, and a torch that computes wrongly is told of."""

import re

import pytest
import torch
from torch import Tensor, nn

from benchmark.direct.inspection import told
from benchmark.direct.pass_cost import Cost
from benchmark.machine import speed

CPU = torch.device("cpu")


def test_an_estimate_is_of_measured_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "cost_of_model", lambda *given: Cost(256, 0.001, 0.003))
    monkeypatch.setattr(speed, "is_fast", lambda device: False)
    rates, example = speed.speed(CPU).lines[:2]
    assert rates.text == "250 a second in float32"
    # 1000 images, 100 steps, 4 ms each.
    assert example.text == f"100 steps of PGD on 1000 images: about {told(400)}"


def test_both_networks_are_timed_in_both_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_SECONDS", 0.001)
    monkeypatch.setattr(speed, "is_fast", lambda device: True)
    section = speed.speed(CPU)
    assert section.title.startswith("Speed on cpu, 1 thread:")
    named = {line.name: line for line in section.lines if line.name}
    assert list(named) == ["CNN-2 on MNIST", "Myrtle on CIFAR"]
    for line in named.values():
        assert re.fullmatch(r"[\d,]+ a second in float32, [\d,]+ in bfloat16", line.text)
        assert not line.remedy


class Rounded(nn.Module):
    """A layer that float32 gets wrong by a share, or wholly."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.off = off

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * (1 + self.off if x.dtype == torch.float32 else 1)


@pytest.mark.parametrize(
    ("off", "is_wrong"), [(0.0, False), (1e-6, False), (0.01, True), (torch.nan, True)]
)
def test_wrong_results_are_told_of(
    off: float, is_wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "build_architecture", lambda *given: Rounded(off))
    monkeypatch.setattr(speed, "_SECONDS", 0.001)
    lines = speed.speed(CPU).lines
    assert any(line.is_wrong for line in lines) == is_wrong
    assert any("a second" in line.text for line in lines) != is_wrong
