"""A linear classifier, whose smallest perturbations are known in closed form."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from attacks import Problem


class Linear(nn.Module):
    """logits = W x + b on flattened images; float64."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        size = torch.Size(shape).numel()
        weight = torch.randn(classes, size, generator=generator, dtype=torch.float64)
        self.register_buffer("weight", weight / size**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight.to(x).T

    def optimum(self, x: Tensor, y: Tensor, norm: str) -> Tensor:
        """The distance to the nearest boundary without a box: min over the other classes of
        (z_y - z_j) / ||w_y - w_j||, with the dual norm (L2 of L2, L1 of L-infinity,
        L-infinity of L1)."""
        logits = self(x.double())
        gap = logits.gather(1, y[:, None]) - logits
        difference = self.weight[y][:, None] - self.weight[None]
        dual = difference.norm(p={"l2": 2, "linf": 1, "l1": torch.inf}[norm], dim=2)
        ratio = gap / dual.where(dual > 0, 1.0)
        return ratio.scatter(1, y[:, None], torch.inf).amin(1)


def mid_grey(shape: tuple[int, ...], n: int, spread: float = 0.05) -> Tensor:
    """Images far from the ends of the box, float64."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.rand(n, *shape, generator=generator, dtype=torch.float64)
    return 0.5 + spread * (noise - 0.5)


def metered(problem: Problem) -> tuple[Problem, Tensor]:
    """The same problem, and the forwards (n,) that each sample is going to take."""
    calls = torch.zeros(len(problem))
    one = lambda rows, _: calls.index_add_(0, rows, torch.ones(len(rows)))  # noqa: E731
    return replace(problem, meter=one), calls
