"""Memorization subtasks of neural belief reasoners: single training samples, known by heart
(Qian 2021, "Robustness via fractal divide and fractal aggregation", section 3.1)."""

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """The memorization subtasks of an ensemble: from images t (n, *shape) to outputs (n, m).

    An output is r - ||t - t_i|| times a sign, and so of Lipschitz constant 1 under L2. Its buffers
    are centres t_i (m, *shape), radii r (m,) and signs (m,). A sign is 0 until a sample is known:
    the output is 0 then, which says nothing.
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
        """Learn an image (*shape) by heart at a place from 0 to m - 1. It is of the first group
        (sign 1) or the second (-1). `others` (n, *shape) are the images of the other group; r is
        half the distance to the nearest of them."""
        self.centres[place], self.signs[place] = centre, sign
        self.radii[place] = distances(centre[None], others).amin() / 2


def distances(x: Tensor, y: Tensor) -> Tensor:
    """L2 distances (n, m) of images (n, *shape) from others (m, *shape)."""
    # By matrix products, small distances would be rounding.
    exactly = "donot_use_mm_for_euclid_dist"
    return torch.cdist(x.flatten(1), y.flatten(1), compute_mode=exactly)
