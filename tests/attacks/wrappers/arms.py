"""Aggregations that are made by hand."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks import Attack, Problem, ThreatModel


class Aggregation(nn.Module):
    """Arms from a function of the images."""

    def __init__(self, scores: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scores = scores

    def arms(self, x: Tensor) -> Tensor:
        return self.scores(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.arms(x)


def on_pixels(*base: float) -> Aggregation:
    """Arm j is a number plus pixel j, so that a step's pixels say how each arm was pushed."""
    return Aggregation(lambda x: torch.tensor(base, dtype=x.dtype) + (x - 0.5))


def grey(model: nn.Module, pixels: int, eps: float, label: int = 0) -> Problem:
    x = torch.full((1, pixels), 0.5, dtype=torch.float64)
    return Problem(model, x, torch.tensor([label]), ThreatModel("l2", eps))


def breaks(attack: Attack, problem: Problem) -> Tensor:
    points = problem.threat.enforce(attack(problem), problem.x)
    return problem.model(points).argmax(1) != problem.y


class Random(nn.Module):
    """Arms of random networks, float32."""

    def __init__(self, seed: int, classes: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        size = torch.Size(shape).numel()
        first = torch.randn(size, 16, generator=generator) * (8 / size**0.5)
        self.register_buffer("first", first)
        self.register_buffer("second", torch.randn(16, classes, generator=generator))

    def arms(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - 0.5) @ self.first).sin() @ self.second

    def forward(self, x: Tensor) -> Tensor:
        return self.arms(x).softmax(1)
