"""A smooth model and problems on it, for the attacks of libraries."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import Problem, ThreatModel

EPS = {"l2": 0.5, "linf": 0.1, "l1": 3.0}


class Smooth(nn.Module):
    """Two layers without kinks, which count the images that they see and refuse to train."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        size = torch.Size(shape).numel()
        self.first = nn.Parameter(torch.randn(size, 16, generator=generator) * 3 / size**0.5)
        self.second = nn.Parameter(torch.randn(16, classes, generator=generator))
        self.images = 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.images += len(x)
        return torch.tanh((x.flatten(1) - 0.5) @ self.first) @ self.second


def images(shape: tuple[int, ...], n: int) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(n))


def smooth_problem(shape: tuple[int, ...], classes: int, n: int, norm: str, **more: Any) -> Problem:
    model, x = Smooth(shape, classes), images(shape, n)
    return Problem(model, x, model(x).argmax(1), ThreatModel(norm, EPS[norm]), **more)


def line(error: pytest.ExceptionInfo[ValueError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)
