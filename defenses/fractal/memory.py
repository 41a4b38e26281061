"""Memorization subtasks of neural belief reasoners: single training samples that are known by heart
(Qian 2021, "Robustness via fractal divide and fractal aggregation", section 3.1)."""

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """From images (n, *shape) to outputs (n, m) of m subtasks, each r - ||t - t_i|| or the negative
    of it, by the sign: of Lipschitz constant 1 under L2.

    centres (m, *shape), t_i; radii (m,), r; signs (m,), which are 0 until a sample is known: such a
    subtask's output is 0, which says nothing.
    """

    centres: Tensor
    radii: Tensor
    signs: Tensor

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(count, *shape))
        self.register_buffer("radii", torch.zeros(count))
        self.register_buffer("signs", torch.zeros(count))

    def forward(self, x: Tensor) -> Tensor:
        return self.signs * (self.radii - distances(x, self.centres))

    def keep(self, place: int, centre: Tensor, others: Tensor, sign: int) -> None:
        """Know an image (*shape) by heart: of the first group (sign 1) or the second (-1), where
        `others` (n, *shape) are those of the other; r is half the distance to the nearest."""
        self.centres[place], self.signs[place] = centre, sign
        self.radii[place] = distances(centre[None], others).amin() / 2


def distances(x: Tensor, y: Tensor) -> Tensor:
    """L2 distances (n, m) of images (n, *shape) from others (m, *shape)."""
    # By matrix products, small distances would be rounding.
    exactly = "donot_use_mm_for_euclid_dist"
    return torch.cdist(x.flatten(1), y.flatten(1), compute_mode=exactly)
