"""Classifiers put together from networks for simpler tasks (RoBin: "Simplicity and robustness",
robust binary aggregation; sections 4 and 7, appendix C)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, combinations
from typing import ClassVar

import torch
from torch import Tensor, nn

from defenses.decomposed.decomposition import Decomposed, Decomposition
from defenses.networks.architectures import Shape


class BinaryAggregation(Decomposition):
    """A binary classifier for each class against all others. From images (n, *shape) to scores (n,
    classes), the classifiers' log-odds; the class with the highest score is predicted."""

    def arms(self, x: Tensor) -> Tensor:
        """The scores, one arm for each class."""
        logits = self.tasks(x[None])
        return (logits[..., 1] - logits[..., 0]).T

    def forward(self, x: Tensor) -> Tensor:
        return self.arms(x)


@dataclass(frozen=True, kw_only=True)
class RoBin(Decomposed):
    """RoBin: adversarially trained binary classifiers, one against all (algorithm 1).

    Trained by any `method`; its defaults are those of the paper on CIFAR-10. On MNIST it has
    balanced=False.
    """

    balanced: bool = True

    decomposition: ClassVar[type[Decomposition]] = BinaryAggregation

    def targets(self, classes: int) -> Tensor:
        return torch.eye(classes, dtype=torch.int64)


class PairwiseClassifier(Decomposition):
    """A binary classifier for each pair of classes. From images (n, *shape) to logits (n, classes):
    the sum of the log-probabilities that the classifiers of its pairs give to a class.

    Unstated in the paper: how pairs are put together.
    """

    def forward(self, x: Tensor) -> Tensor:
        logits = self.tasks(x[None]).log_softmax(2)
        # Which label, if any, each class has in each task: (tasks, labels, classes).
        labels = self.targets[:, None] == torch.arange(2, device=x.device)[:, None]
        return torch.einsum("knl,klc->nc", logits, labels.to(logits))


@dataclass(frozen=True, kw_only=True)
class OneVsOne(Decomposed):
    """One-vs-one: an adversarially trained binary classifier for each pair of labels (RoBin,
    section 7)."""

    decomposition: ClassVar[type[Decomposition]] = PairwiseClassifier

    def targets(self, classes: int) -> Tensor:
        pairs = list(combinations(range(classes), 2))
        targets = torch.full((len(pairs), classes), -1)
        for row, (first, second) in zip(targets, pairs, strict=True):
            row[first], row[second] = 0, 1
        return targets


class TwoStageClassifier(Decomposition):
    """A network that chooses a group of classes, and one for each group that chooses a class in it.

    From images (n, *shape) to logits (n, classes): the logit of a class is that of its group, less
    what the class lacks of the best class in the group. So the best class of the best group is
    predicted, and it leads by as much as the one or the other network says.
    """

    places: Tensor
    members: Tensor

    def __init__(self, build: Callable[[int], nn.Module], shape: Shape, targets: Tensor) -> None:
        super().__init__(build, shape, targets)
        groups = targets[0]
        places = targets[1:].gather(0, groups[None])[0]
        self.register_buffer("places", places, persistent=False)
        # Which classes are in each group: (groups, classes).
        members = groups == torch.arange(len(targets) - 1)[:, None]
        self.register_buffer("members", members, persistent=False)

    @property
    def groups(self) -> Tensor:
        """The group (classes,), int64, of each class."""
        return self.targets[0]

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the groups (n, groups), and of each class within its group (n, classes)."""
        logits = self.tasks(x[None])
        return logits[0, :, : len(self.members)], logits[1 + self.groups, :, self.places].T

    def forward(self, x: Tensor) -> Tensor:
        coarse, fine = self.stages(x)
        best = fine[:, None].masked_fill(~self.members, -math.inf).amax(2)
        # Products with zeros and ones: on a GPU, the gradient of a gather varies from run to run.
        members = self.members.to(coarse)
        # In this order, the best class of a group has its group's logit to the last bit.
        return coarse @ members + (fine - best @ members)


@dataclass(frozen=True, kw_only=True)
class TwoStage(Decomposed):
    """Hierarchical: adversarially trained networks for a group of labels, then for a label of the
    group (RoBin, appendix C).

    groups  such as "0+1+8+9-2+3+4+5+6+7", CIFAR-10's objects against its animals: any number of
            groups of labels, each label in one; default: the first half against the last.
    """

    groups: str | None = None

    decomposition: ClassVar[type[Decomposition]] = TwoStageClassifier

    def targets(self, classes: int) -> Tensor:
        groups = self._parsed(classes)
        targets = torch.full((1 + len(groups), classes), -1)
        for number, group in enumerate(groups):
            for place, label in enumerate(group):
                targets[0, label], targets[1 + number, label] = number, place
        return targets

    def _parsed(self, classes: int) -> list[list[int]]:
        half = (classes + 1) // 2
        if self.groups is None:
            return [list(range(half)), list(range(half, classes))]
        try:
            groups = [[int(i) for i in group.split("+")] for group in self.groups.split("-")]
        except ValueError as error:
            raise ValueError(f"groups are written as 0+1-2+3+4, not {self.groups!r}") from error
        if len(groups) < 2 or sorted(chain(*groups)) != list(range(classes)):
            raise ValueError(
                f"groups {self.groups!r}: give two or more, with each label from 0 to "
                f"{classes - 1} in one of them"
            )
        return groups


class AveragedEnsemble(Decomposition):
    """Several multiclass networks. From images (n, *shape) to logits (n, classes): the logarithm of
    the mean of the networks' probabilities."""

    def members(self, x: Tensor) -> Tensor:
        """The logits (members, n, classes) of each network."""
        return self.tasks(x[None])

    def forward(self, x: Tensor) -> Tensor:
        members = self.members(x).log_softmax(2)
        return members.logsumexp(0) - math.log(len(members))


@dataclass(frozen=True, kw_only=True)
class Ensemble(Decomposed):
    """A plain ensemble: adversarially trained multiclass networks, independent of each other
    (RoBin, section 6.2)."""

    members: int = 5

    decomposition: ClassVar[type[Decomposition]] = AveragedEnsemble

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.members < 1:
            raise ValueError(f"members must be at least 1, not {self.members}")

    def targets(self, classes: int) -> Tensor:
        return torch.arange(classes).repeat(self.members, 1)
