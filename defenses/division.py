"""Fractal divide: which training data each subtask of a frame learns from (Qian 2021, "Robustness
via fractal divide and fractal aggregation", section 3.2).

The members of a frame's subtasks are a tensor (k, n), true where a subtask is trained on a sample;
its subtasks are numbered level by level. Sides (n,) are 0 for samples of the frame's first group, 1
for its second, -1 for others. Level m (counted from 0) splits side m % 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def one_level(levels: Sequence[int], sides: Tensor, outputs: Tensor) -> Tensor:
    """Members (k, n) where each level is a structure by itself, that splits all data of its side.

    outputs  (n, k) by which the data are split: see `split`.
    """
    members = torch.zeros(sum(levels), len(sides), dtype=torch.bool, device=sides.device)
    for number, part in enumerate(_parts(levels)):
        side = number % 2
        members[part] = split(sides == side, outputs[:, part], side)
        members[part] |= sides == 1 - side
    return members


def nested(levels: Sequence[int], sides: Tensor, depth: Tensor, outputs: Tensor) -> Tensor:
    """Members (k, n) of the fractal structure: each pair of samples of opposite sides is in those
    of exactly one subtask.

    depth    (n,) the level that splits a sample, or the number of levels where none does.
    outputs  (n, k) by which the data of a level are split: see `split`.
    """
    members = torch.zeros(sum(levels), len(sides), dtype=torch.bool, device=sides.device)
    for number, part in enumerate(_parts(levels)):
        side = number % 2
        members[part] = split((sides == side) & (depth == number), outputs[:, part], side)
        # What no level before this one has split off is the other half of its contrasts.
        members[part] |= (sides == 1 - side) & (depth > number)
    return members


def split(data: Tensor, outputs: Tensor, side: int) -> Tensor:
    """Members (k, n) of one level: each sample of `data` (n,) goes to the subtask that is the
    surest of it: the largest output (n, k) for the first group, the smallest for the second."""
    best = outputs.argmax(1) if side == 0 else outputs.argmin(1)
    mine = torch.arange(outputs.shape[1], device=data.device)[:, None] == best
    return mine & data


def splitting_levels(levels: Sequence[int], side: int) -> list[int]:
    """The levels that the data of a side are distributed over, the last of which may be beyond the
    structure: those data are split by none."""
    own = [m for m, size in enumerate(levels) if size and m % 2 == side]
    return own if (len(levels) - 1) % 2 == side else [*own, len(levels)]


def depths(
    levels: Sequence[int], sides: Tensor, outputs: Tensor, swapped: Sequence[bool], seed: int
) -> Tensor:
    """The level that splits each sample (n,), by k-means on the outputs (n, k) of the first level
    that splits its side, as a one-level structure.

    swapped  for either side, whether its parts, by default the largest first, are the other way
             round.
    """
    depth = torch.zeros_like(sides)
    parts = _parts(levels)
    for side in (0, 1):
        data = (sides == side).nonzero().squeeze(1)
        mine = splitting_levels(levels, side)
        cluster = torch.zeros_like(data)
        if len(mine) > 1:
            cluster = _clusters(outputs[data][:, parts[mine[0]]], len(mine), seed)
        order = torch.tensor(mine[::-1] if swapped[side] else mine, device=sides.device)
        depth[data] = order[cluster]
    return depth


def _clusters(features: Tensor, count: int, seed: int) -> Tensor:
    """K-means clusters (n,) of features (n, d), numbered from the largest."""
    from sklearn.cluster import KMeans

    found = KMeans(count, n_init=10, random_state=seed).fit_predict(features.double().cpu().numpy())
    labels = torch.from_numpy(found).long()
    rank = torch.bincount(labels, minlength=count).argsort(descending=True, stable=True).argsort()
    return rank[labels].to(features.device)


def _parts(levels: Sequence[int]) -> list[slice]:
    """The subtasks of each level."""
    ends = [sum(levels[: m + 1]) for m in range(len(levels))]
    return [slice(end - size, end) for end, size in zip(ends, levels, strict=True)]
