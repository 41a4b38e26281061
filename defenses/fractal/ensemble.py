"""Ensembles of subtask classifiers that reason by belief functions: neural belief reasoners and
fractal classifiers (Qian 2021, "Robustness via fractal divide and fractal aggregation")."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from defenses.fractal.belief import Frame, Rule, evidence, fractal, over_frames
from defenses.fractal.division import OUT, Division
from defenses.fractal.memory import Memory
from defenses.fractal.output_ensemble import AT_ONCE, OutputEnsemble
from defenses.nonexpansive.stacks import Stack


class BeliefEnsemble(OutputEnsemble):
    """From images (n, *shape) to weights of evidence (n, classes), at most 0: the predicted label
    is the one that the least speaks against.

    frames       each with as many subtasks as its levels have; subtasks are numbered in that order.
    subtasks     from images (1, n, *shape) to outputs (k, n, 1), each of Lipschitz constant at
                 most 1.
    slope        s > 0 of all subtasks at first; reliability, b in (0, 1], likewise.
    rule         how evidence is combined over frames: `defenses.fractal.belief.over_frames`.
    memory       memorization subtasks, whose outputs follow those of `subtasks`: each is the only
                 subtask of one of the last frames.

    `fractions` (k, 2) say what part of the data of either group each subtask was trained on.
    `division` holds which samples these are while training lasts, and `rows` which subtasks each
    frame has. The first `trained` of all subtasks are no memories. Raises ValueError for values out
    of range.
    """

    fractions: Tensor
    members: Tensor
    groups: Tensor
    sides: Tensor

    def __init__(
        self,
        frames: Sequence[Frame],
        classes: int,
        subtasks: nn.Module,
        slope: float = 5.0,
        reliability: float = 0.9,
        rule: Rule = "minimum",
        memory: Memory | None = None,
    ) -> None:
        super().__init__()
        if not (slope > 0 and 0 < reliability <= 1):
            raise ValueError("slope must be above 0 and reliability in (0, 1]")
        self.frames, self.classes, self.rule = tuple(frames), classes, rule
        self.subtasks, self.memory = subtasks, memory
        self.division = Division()
        sizes = torch.tensor([sum(frame.levels) for frame in frames])
        count, ends = int(sizes.sum()), sizes.cumsum(0).tolist()
        self.rows = [slice(end - size, end) for end, size in zip(ends, sizes.tolist(), strict=True)]
        self.trained = count - (len(memory.signs) if memory is not None else 0)
        # Not trained with the subtasks: the certificate wants s > 0 and b in [0, 1].
        self.slope = nn.Parameter(torch.full((count,), slope), requires_grad=False)
        self.reliability = nn.Parameter(torch.full((count,), reliability), requires_grad=False)
        self.register_buffer("fractions", torch.ones(count, 2))
        # A memory that holds no sample yet says nothing, even if its output is moved.
        self.fractions[self.trained :] = 0
        self.register_buffer("members", _members(self.frames), persistent=False)
        groups = _groups(self.frames, classes)
        self.register_buffer("groups", groups, persistent=False)
        sides = (groups[:, 0].int() - groups[:, 1].int()).repeat_interleave(sizes, dim=0)
        self.register_buffer("sides", sides, persistent=False)

    def signs(self, y: Tensor) -> Tensor:
        """For each subtask and label y (n,) the sign that its output should have: (k, n), 1 for the
        first group, -1 for the second, 0 for neither."""
        return self.sides[:, y]

    def outputs_of(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        if rows.start is None or not isinstance(self.subtasks, Stack):
            return super().outputs_of(x, rows)
        some = [self.subtasks.some(part[None], rows) for part in x.split(AT_ONCE)]
        return torch.cat(some, dim=1).squeeze(2).T

    def divide(self, roles: Tensor, y: Tensor, reserved: Tensor | None = None) -> None:
        """Set new roles (k, n) of the training samples with labels y (n,), for the subtasks that
        are trained. The fractions are those of the samples that are not reserved, bool (n,)."""
        signs = self.signs(y)[: self.trained]
        if reserved is not None:
            signs = signs.masked_fill(reserved, 0)
        groups = torch.stack([signs > 0, signs < 0], dim=-1)
        trained = (groups & (roles != OUT)[..., None]).sum(1)
        self.fractions[: self.trained] = trained / groups.sum(1).clamp_min(1)
        self.division.roles = roles

    def outputs(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.subtasks(x[None]).squeeze(2).T
        return outputs if self.memory is None else torch.cat([outputs, self.memory(x)], dim=1)

    def aggregate(self, outputs: Tensor) -> Tensor:
        weights = evidence(outputs, self.slope, self.reliability, self.fractions)
        padded = nn.functional.pad(weights, (0, 0, 0, 1))
        levels = padded[:, self.members].unbind(2)
        return over_frames(fractal(levels), self.groups, self.rule)

    def worst_case(self, outputs: Tensor, label: Tensor, offset: Tensor) -> Tensor:
        """As `OutputEnsemble.worst_case`. The evidence against the label is the most that moves can
        make it, that against each other the least: exact where no frame has both in one group."""
        is_label = nn.functional.one_hot(label, self.classes).bool()
        # For each class, all outputs are moved against the label and for any other class.
        moves = torch.where(is_label, -offset[:, None], offset[:, None])[..., None] * self.sides.T
        moved = (outputs[:, None] + moves).flatten(0, 1)
        logits = self.aggregate(moved).unflatten(0, (-1, self.classes))
        worst: Tensor = logits.diagonal(dim1=1, dim2=2)
        return worst


def _members(frames: Sequence[Frame]) -> Tensor:
    """(j, levels, most): the numbers of the subtasks of each level of each frame. Shorter levels
    are filled up with the number of all subtasks, which stands for one without evidence."""
    count = sum(sum(frame.levels) for frame in frames)
    depth = max(len(frame.levels) for frame in frames)
    most = max(max(frame.levels) for frame in frames)
    members = torch.full((len(frames), depth, most), count)
    start = 0
    for j, frame in enumerate(frames):
        for level, size in enumerate(frame.levels):
            members[j, level, :size] = torch.arange(start, start + size)
            start += size
    return members


def _groups(frames: Sequence[Frame], classes: int) -> Tensor:
    """(j, 2, classes), bool: which labels are in which group of each frame."""
    groups = torch.zeros(len(frames), 2, classes, dtype=torch.bool)
    for j, frame in enumerate(frames):
        for side, group in enumerate((frame.first, frame.second)):
            for label in group:
                groups[j, side, label] = True
    return groups
