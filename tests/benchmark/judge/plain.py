"""A plain network whose robust accuracy is known in closed form, and a way to wrap it.

Whatever a test measures on a model that is the same function is known from it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SHAPES = ((12,), (2, 7), (1, 6, 5), (3, 4, 4), (1, 1, 1), (2, 2, 3, 2))

# Half of the samples lie at half of this distance from the boundary, and half of them at twice it.
EPS = 0.1
GREY = 0.47  # the plane goes through images of this grey
N = 8


class Plain(nn.Module):
    """Class 1 above a plane and class 0 below it, by a layer of ReLUs; class 2 is never near."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        super().__init__()
        pixels = int(np.prod(shape))
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(pixels, generator=generator) + 0.5
        self.hidden, self.last = nn.Linear(pixels, 2), nn.Linear(2, 3)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.stack([normal, -normal]) / normal.abs().sum())
            self.hidden.bias.copy_(-GREY * self.hidden.weight.sum(1))
            self.last.weight.copy_(torch.tensor([[-1.0, 1], [1, -1], [0, 0]]))
            self.last.bias.copy_(torch.tensor([0.0, 0, -1]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.hidden(x.flatten(1)).relu())
        return logits


def samples(model: Plain, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images (n, *shape), labels (n,), and which images (n,) are robust within EPS."""
    w = model.hidden.weight[0].detach()
    unit = w.sign() / w.abs().sum() if norm == "linf" else w / w.square().sum()
    robust = torch.arange(N) % 2 == 0
    y = torch.arange(N) // 2 % 2
    reach = EPS * torch.where(robust, 2.0, 0.5) * (2 * y - 1)
    # `reach` is the distance in the norm, which the step along w (or its signs) has as its length.
    length = w.abs().sum() if norm == "linf" else w.norm()
    return GREY + (reach * length)[:, None] * unit, y, robust


class Around(nn.Module):
    """A plain network with something done before and after it."""

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Any] = lambda z: z,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.net(self.before(x)))
