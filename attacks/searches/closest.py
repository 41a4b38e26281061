"""The closest misclassified points that a minimal-norm search knows."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.threat import per_sample
from attacks.working import State


@dataclass
class Closest(State):
    """The closest misclassified points known (n, *shape), and their distances (n,), which are
    infinite where there is none."""

    points: Tensor
    length: Tensor

    def improve(self, other: "Closest") -> None:
        """Take the other points where they are closer."""
        closer = other.length < self.length
        self.length = torch.where(closer, other.length, self.length)
        self.points = torch.where(per_sample(closer, self.points), other.points, self.points)


def far(x: Tensor) -> Tensor:
    """An infinite distance (n,) for each of the images x (n, *shape)."""
    return x.new_full((len(x),), math.inf)
