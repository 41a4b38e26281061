"""Belief functions over binary frames of discernment: from outputs of subtask classifiers to
evidence, and from evidence to a classification (Qian 2021, "Robustness via fractal divide and
fractal aggregation"; equations are of its sections 2 and 3.3).

A frame is two groups of labels. A subtask says how strongly an image speaks against either group of
its frame. Here a dimension of 2 is (against the first group, against the second), which are I and
II in the paper. A weight of evidence w is at most 0, and 0 is no evidence at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Rule = Literal["minimum", "sum"]

# The least argument of the logarithms in (4) and (5), as in the authors' inference code.
_FLOOR = 1e-6


@dataclass(frozen=True)
class Frame:
    """A binary frame of discernment: labels `first` against labels `second`.

    levels  how many subtasks each level of its fractal structure has (section 3.2). Levels take
            turns to split the data of the first group and of the second; (0, 4, 4) leaves the first
            level out and so begins with the second group. (1,) is one subtask for all data.

    Raises ValueError for groups that are empty or share a label, and for a level without subtasks.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    levels: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if not self.first or not self.second or {*self.first} & {*self.second}:
            raise ValueError(f"a frame needs two groups without a common label, not {self}")
        levels = self.levels[1:] if self.levels[:1] == (0,) else self.levels
        if not levels or min(levels) < 1:
            raise ValueError(f"each level needs at least one subtask, not {self.levels}")


def evidence(outputs: Tensor, slope: Tensor, reliability: Tensor, fractions: Tensor) -> Tensor:
    """Weights w = log(1 - belief) against either group, of k subtasks: (n, k, 2) (equations (1) to
    (5)).

    outputs      G (n, k), above 0 for the first group.
    slope        s > 0 of the sigmoid; reliability, b in [0, 1]; each (k,).
    fractions    f (k, 2), of the data of either group that a subtask was trained on.

    The logarithm's argument is kept from falling below 1e-6. It is formed of positive terms alone:
    where x saturates, 1 - belief has no digits left.
    """
    slope, reliability = slope[:, None], reliability[:, None]
    sided, scaled = torch.stack([outputs, -outputs], dim=-1), reliability * fractions
    # How far x is below 0.5 on either side, without the rounding of x near 0.5.
    below = (0.5 * torch.tanh(-0.5 * slope * sided)).relu()
    remaining = 1 - 0.5 * (reliability + scaled) + scaled * torch.sigmoid(slope * sided)
    weight = (remaining / (1 - 0.5 * reliability + scaled * below)).clamp(_FLOOR, 1).log()
    return torch.where(below > 0, weight, 0)


def split_first(left: Tensor, right: Tensor) -> Tensor:
    """Combine the evidence (..., 2) of two classifiers that are trained on disjoint data of the
    first group and on the same data of the second (equation (7)): evidence against the first group
    adds up, and of the evidence against the second the stronger holds."""
    return torch.stack([left[..., 0] + right[..., 0], left[..., 1].minimum(right[..., 1])], dim=-1)


def split_second(left: Tensor, right: Tensor) -> Tensor:
    """As `split_first`, with the groups' parts exchanged (equation (6))."""
    return split_first(left.flip(-1), right.flip(-1)).flip(-1)


def fractal(levels: Sequence[Tensor]) -> Tensor:
    """The evidence (..., 2) of a fractal structure, combined from that of its levels, each
    (..., subtasks, 2), from the last level to the first (equations (8) and (9)). Levels take turns
    to split the data of the first group and of the second. An empty level, or a subtask without
    evidence, changes nothing."""
    combined = torch.zeros_like(levels[-1][..., 0, :])
    for number, level in reversed(list(enumerate(levels))):
        if not level.shape[-2]:
            continue
        if number % 2 == 0:
            within = torch.stack([level[..., 0].sum(-1), level[..., 1].amin(-1)], dim=-1)
            combined = split_first(within, combined)
        else:
            within = torch.stack([level[..., 0].amin(-1), level[..., 1].sum(-1)], dim=-1)
            combined = split_second(within, combined)
    return combined


def over_frames(evidence: Tensor, groups: Tensor, rule: Rule = "minimum") -> Tensor:
    """The evidence against each label: (n, classes), from (n, j, 2) against the groups of j frames;
    groups (j, 2, classes) says which labels are in which.

    rule  "minimum": the strongest evidence counts, as frames share their data (equation (10));
          "sum": evidence adds up, as if they did not (Dempster's rule).
    """
    against = evidence[..., None] * groups
    return against.amin((1, 2)) if rule == "minimum" else against.sum((1, 2))
