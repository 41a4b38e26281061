"""The scale that a model expects of its images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """A model whose images are normalised first, to (x - mean) / std per channel. So it takes
    images in [0, 1].

    mean and std hold one number per channel, or one for all. Raises ValueError where their lengths
    differ or std is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError("mean and std must be equally long, and std above 0")
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits


def scaled(
    mean: Sequence[float], std: Sequence[float], lowest: float, highest: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std of images in [0, 1] for a model whose mean and std are of images in
    [lowest, highest].

    >>> scaled((127.5,), (127.5,), 0, 255)
    ((0.5,), (0.5,))
    """
    width = highest - lowest
    return (
        tuple((value - lowest) / width for value in mean),
        tuple(value / width for value in std),
    )
