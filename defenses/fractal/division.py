"""Fractal divide: which training data each subtask of a frame learns from (Qian 2021, "Robustness
via fractal divide and fractal aggregation", section 3.2).

The members of a frame's subtasks are a tensor (k, n), true where a subtask is trained on a sample;
its subtasks are numbered level by level. Sides (n,) are 0 for samples of the frame's first group, 1
for its second, -1 for others. Level m (counted from 0) splits side m % 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# What a sample is to a subtask: not in its training set, in it, or in it and difficult.
OUT, IN, HARD = 0, 1, 2


class Division(nn.Module):
    """The roles (k, n), uint8, of n training samples for k subtasks: OUT, IN or HARD.

    They are in the state dict while training lasts, so that it can be resumed, and empty after.
    """

    roles: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A buffer, to be where the model is; in the state dict by itself, as its shape changes.
        self.register_buffer("roles", torch.zeros(0, 0, dtype=torch.uint8), persistent=False)

    def forget(self) -> None:
        """Back to what it was before training."""
        self.roles = self.roles.new_zeros(0, 0)

    def of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """For each subtask those of the samples `index` (n,) that are in its training set: their
        roles (k, m), and their places (k, m) in `index`. Where a subtask has fewer of them than
        another, samples that are OUT fill its row."""
        roles = self.roles[:, index]
        most = int((roles != OUT).sum(1).max())
        order = (roles != OUT).sort(dim=1, descending=True, stable=True).indices[:, :most]
        return roles.gather(1, order), order

    def get_extra_state(self) -> Tensor:
        return self.roles.cpu()

    def set_extra_state(self, state: Tensor) -> None:
        self.roles = state.to(self.roles.device)


def one_level(levels: Sequence[int], sides: Tensor, outputs: Tensor) -> Tensor:
    """The members (k, n) where each level is a structure by itself, that splits all data of its
    side.

    outputs  (n, k) by which the data are split: see `split`.
    """
    members = torch.zeros(sum(levels), len(sides), dtype=torch.bool, device=sides.device)
    for number, part in enumerate(parts(levels)):
        side = number % 2
        members[part] = split(sides == side, outputs[:, part], side)
        members[part] |= sides == 1 - side
    return members


def nested(levels: Sequence[int], sides: Tensor, depth: Tensor, outputs: Tensor) -> Tensor:
    """The members (k, n) of the fractal structure: any two samples of opposite sides are together
    in the training set of exactly one subtask.

    depth    (n,) the level that splits a sample, or the number of levels where none does.
    outputs  (n, k) by which the data of a level are split: see `split`.
    """
    members = torch.zeros(sum(levels), len(sides), dtype=torch.bool, device=sides.device)
    for number, part in enumerate(parts(levels)):
        side = number % 2
        members[part] = split((sides == side) & (depth == number), outputs[:, part], side)
        # They are contrasted with all samples of the other side that no earlier level split off.
        members[part] |= (sides == 1 - side) & (depth > number)
    return members


def split(data: Tensor, outputs: Tensor, side: int) -> Tensor:
    """The members (k, n) of one level: each sample of `data` (n,) goes to the subtask that is
    surest of it, by the largest output (n, k) for the first group, the smallest for the second."""
    if not outputs.shape[1]:
        return data.new_zeros(0, len(data))
    surest = outputs.argmax(1) if side == 0 else outputs.argmin(1)
    is_surest = torch.arange(outputs.shape[1], device=data.device)[:, None] == surest
    return is_surest & data


def splitting_levels(levels: Sequence[int], side: int) -> list[int]:
    """The levels that the data of a side are distributed over. The last of them may be one beyond
    the structure, which stands for the data that no level splits."""
    of_side = [m for m, size in enumerate(levels) if size and m % 2 == side]
    return of_side if (len(levels) - 1) % 2 == side else [*of_side, len(levels)]


def depths(
    levels: Sequence[int], sides: Tensor, outputs: Tensor, swapped: Sequence[bool]
) -> Tensor:
    """The level that splits each sample (n,), by k-means on the outputs (n, k) of the first level
    that splits its side, as a one-level structure.

    swapped  for either side, whether its clusters go to the levels from the smallest to the
             largest, in place of from the largest to the smallest.
    """
    depth = torch.zeros_like(sides)
    for side in (0, 1):
        data = (sides == side).nonzero().squeeze(1)
        splitting = splitting_levels(levels, side)
        cluster = torch.zeros_like(data)
        if len(splitting) > 1:
            first = parts(levels)[splitting[0]]
            cluster = _clusters(outputs[data][:, first], len(splitting))[0]
        order = torch.tensor(splitting[::-1] if swapped[side] else splitting, device=sides.device)
        depth[data] = order[cluster]
    return depth


def depth_of(levels: Sequence[int], sides: Tensor, members: Tensor) -> Tensor:
    """The level that splits each sample (n,), from the members (k, n) of a fractal structure."""
    depth = torch.full_like(sides, len(levels))
    for number, part in enumerate(parts(levels)):
        depth[members[part].any(0) & (sides == number % 2)] = number
    return depth


def by_clusters(
    levels: Sequence[int], sides: Tensor, features: Tensor, depth: Tensor | None = None
) -> Tensor:
    """Stand-ins (n, k) for the outputs of subtasks that are to begin anew. They split each level's
    data by k-means on features (n, d): an output is the nearness to a centre for the first group,
    and the distance for the second. A level's data are those of its side or, where depths (n,) are
    given, those of its side and depth."""
    outputs = features.new_zeros(len(sides), sum(levels))
    for number, part in enumerate(parts(levels)):
        data = sides == number % 2
        if depth is not None:
            data &= depth == number
        count = part.stop - part.start
        if 1 < count <= int(data.sum()):
            centres = _clusters(features[data], count)[1]
            distance = torch.cdist(features, centres.to(features))
            outputs[:, part] = distance if number % 2 else -distance
    return outputs


def parts(levels: Sequence[int]) -> list[slice]:
    """The subtasks of each level."""
    ends = [sum(levels[: m + 1]) for m in range(len(levels))]
    return [slice(end - size, end) for end, size in zip(ends, levels, strict=True)]


def _clusters(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """K-means clusters of features (n, d): (n,), numbered from the largest, and centres (k, d)."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # On several threads its sums are not the same each time.
    with threadpool_limits(1):
        kmeans = KMeans(count, n_init=3, random_state=0).fit(features.double().cpu().numpy())
    labels = torch.from_numpy(kmeans.labels_).long()
    order = torch.bincount(labels, minlength=count).argsort(descending=True, stable=True)
    centres = torch.from_numpy(kmeans.cluster_centers_)[order]
    return order.argsort()[labels].to(features.device), centres
