"""Ensembles of subtask classifiers that reason by belief functions: neural belief reasoners and
fractal classifiers (Qian 2021, "Robustness via fractal divide and fractal aggregation")."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from defenses.belief import Frame, Rule, evidence, fractal, over_frames
from defenses.division import OUT, Division

# The slope of a surrogate's sigmoids (section 4.1).
SURROGATE_SLOPE = 5.0

# Images at once when all of a training set is asked.
_AT_ONCE = 1024

# Halvings of a threshold's interval: below the rounding of float32.
_HALVINGS = 30


class BeliefEnsemble(nn.Module):
    """From images (n, *shape) to weights of evidence (n, classes), at most 0: the predicted label
    is the one that the least speaks against.

    frames       each with as many subtasks as its levels have; subtasks are numbered in that order.
    subtasks     images (1, n, *shape) to outputs (k, n, 1), each of Lipschitz constant at most 1.
    slope        s of all subtasks at first; reliability, b in (0, 1], likewise.
    rule         how evidence is combined over frames: `defenses.belief.over_frames`.

    `fractions` (k, 2) are those of each subtask's groups that it was trained on; `division` holds
    which samples these are while training lasts, and `rows` each frame's subtasks. Raises
    ValueError for values out of range.
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
    ) -> None:
        super().__init__()
        if not (slope > 0 and 0 < reliability <= 1):
            raise ValueError("slope must be above 0 and reliability in (0, 1]")
        self.frames, self.classes, self.rule = tuple(frames), classes, rule
        self.subtasks = subtasks
        self.division = Division()
        sizes = torch.tensor([sum(frame.levels) for frame in frames])
        count, ends = int(sizes.sum()), sizes.cumsum(0).tolist()
        self.rows = [slice(end - size, end) for end, size in zip(ends, sizes.tolist(), strict=True)]
        self.slope = nn.Parameter(torch.full((count,), slope))
        self.reliability = nn.Parameter(torch.full((count,), reliability))
        self.register_buffer("fractions", torch.ones(count, 2))
        self.register_buffer("members", _members(self.frames), persistent=False)
        groups = _groups(self.frames, classes)
        self.register_buffer("groups", groups, persistent=False)
        sides = (groups[:, 0].int() - groups[:, 1].int()).repeat_interleave(sizes, dim=0)
        self.register_buffer("sides", sides, persistent=False)

    def signs(self, y: Tensor) -> Tensor:
        """For each subtask and label y (n,) the sign that its output should have: (k, n), 1 for the
        first group, -1 for the second, 0 for neither."""
        return self.sides[:, y]

    def divide(self, roles: Tensor, y: Tensor) -> None:
        """Take in new roles (k, n) of the training samples with labels y (n,)."""
        signs = self.signs(y)
        groups = torch.stack([signs > 0, signs < 0], dim=-1)
        trained = (groups & (roles != OUT)[..., None]).sum(1)
        self.fractions.copy_(trained / groups.sum(1).clamp_min(1))
        self.division.roles = roles

    def outputs(self, x: Tensor) -> Tensor:
        """G (n, k) of all subtasks at images (n, *shape)."""
        outputs: Tensor = self.subtasks(x[None])
        return outputs.squeeze(2).T

    def outputs_of(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """G (n, k) of some subtasks at any number of images (n, *shape)."""
        return torch.cat([self.outputs(part)[:, rows] for part in x.split(_AT_ONCE)])

    def aggregate(self, outputs: Tensor) -> Tensor:
        """The logits (n, classes) that outputs G (n, k) give."""
        weights = evidence(outputs, self.slope, self.reliability, self.fractions)
        padded = nn.functional.pad(weights, (0, 0, 0, 1))
        levels = padded[:, self.members].unbind(2)
        return over_frames(fractal(levels), self.groups, self.rule)

    def forward(self, x: Tensor) -> Tensor:
        return self.aggregate(self.outputs(x))

    def surrogate(self) -> "BeliefEnsemble":
        """A copy whose sigmoids have slopes of at most 5, so that they saturate less."""
        easier = copy.deepcopy(self)
        with torch.no_grad():
            easier.slope.clamp_(max=SURROGATE_SLOPE)
        return easier

    @torch.no_grad()
    def certified_radius(self, x: Tensor) -> Tensor:
        """L2 radius (n,) around images (n, *shape) within which the predicted label stays: the
        least shift of all outputs, each its own way, that could change it (section 4.3)."""
        return self.threshold(self.outputs(x))

    @torch.no_grad()
    def threshold(self, outputs: Tensor) -> Tensor:
        """The adversarial offset (n,) up to which outputs G (n, k) keep the predicted label, found
        by bisection.

        Against each other label, every output moves by the offset at worst: the evidence against
        the predicted label is the most that such moves can make it, that against the other the
        least. This is exact where no frame has both labels in one group, a lower bound otherwise.
        """
        label = self.aggregate(outputs).argmax(1)
        # Beyond it every subtask that knows the label is against it.
        far = outputs.abs().amax(1)
        near = torch.zeros_like(far)
        for _ in range(_HALVINGS):
            middle = (near + far) / 2
            holds = self._withstands(outputs, label, middle)
            near, far = torch.where(holds, middle, near), torch.where(holds, far, middle)
        return near

    def _withstands(self, outputs: Tensor, label: Tensor, offset: Tensor) -> Tensor:
        """Whether the labels (n,) are kept for certain under an offset (n,)."""
        own = nn.functional.one_hot(label, self.classes).bool()
        signs = torch.where(own, -offset[:, None], offset[:, None])[..., None] * self.sides.T
        shifted = (outputs[:, None] + signs).flatten(0, 1)
        against = self.aggregate(shifted).unflatten(0, (-1, self.classes)).diagonal(0, 1, 2)
        others = against.masked_fill(own, -math.inf).amax(1)
        kept: Tensor = against[own] > others
        return kept


def _members(frames: Sequence[Frame]) -> Tensor:
    """(j, levels, most): the subtasks of each level of each frame, filled with the number of all
    subtasks, which stands for one without evidence."""
    count = sum(sum(frame.levels) for frame in frames)
    depth = max(len(frame.levels) for frame in frames)
    most = max(max(frame.levels) for frame in frames)
    members = torch.full((len(frames), depth, most), count)
    at = 0
    for j, frame in enumerate(frames):
        for level, size in enumerate(frame.levels):
            members[j, level, :size] = torch.arange(at, at + size)
            at += size
    return members


def _groups(frames: Sequence[Frame], classes: int) -> Tensor:
    groups = torch.zeros(len(frames), 2, classes, dtype=torch.bool)
    for j, frame in enumerate(frames):
        for side, group in enumerate((frame.first, frame.second)):
            for label in group:
                groups[j, side, label] = True
    return groups
