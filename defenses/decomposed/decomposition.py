"""A classification decomposed into tasks, each with a network of its own, trained side by side."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from defenses.decomposed.side_by_side import Networks
from defenses.networks.architectures import Shape, build_architecture
from defenses.recipes.adversarial import AdversarialTraining
from defenses.recipes.batches import Batch, Epoch

# The logit of a label that a task does not have.
_ABSENT = -1e9


class Decomposition(nn.Module):
    """Networks, one for each task.

    build    makes one, to as many logits as it is given.
    shape    of the images: (channels, height, width).
    targets  (tasks, classes), int64: the label in each task of each class, -1: not in it.
    """

    targets: Tensor
    absent: Tensor

    def __init__(self, build: Callable[[int], nn.Module], shape: Shape, targets: Tensor) -> None:
        super().__init__()
        labels = targets.amax(1) + 1
        most = int(labels.max())
        self.networks = Networks(len(targets), lambda: build(most), shape)
        self.register_buffer("targets", targets, persistent=False)
        absent = torch.arange(most) >= labels[:, None]
        self.register_buffer("absent", absent[:, None], persistent=False)

    def tasks(self, x: Tensor) -> Tensor:
        """Logits (tasks, n, labels) at images (1 or tasks, n, *shape): shared, or each task's."""
        logits: Tensor = self.networks(x)
        return logits.masked_fill(self.absent, _ABSENT)


class _InTurn(nn.Module):
    """Logits (n, labels) of images (n, *shape), of which image i is for task i mod tasks."""

    def __init__(self, whole: Decomposition) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unflatten(0, (-1, len(self.whole.targets))).transpose(0, 1)
        return self.whole.tasks(rows).transpose(0, 1).flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class Decomposed(AdversarialTraining):
    """Adversarial training of a decomposition: each task's network by itself, on its own labels and
    its own adversarial examples, all side by side.

    In a step, each task learns from its share of an epoch's samples: as many as the largest task
    has, so that a smaller one goes through its own more than once. The loss is the sum of the
    tasks' mean losses.

    balanced  draw as many samples of each label of a task as of the others (RoBin, section B.3).

    Differs from the source: tasks on part of the classes keep step with the others. So a network of
    one-vs-one learns from fewer samples in a step than `batch`, and the second stages of a
    hierarchy go through theirs several times an epoch.
    """

    balanced: bool = False

    decomposition: ClassVar[type[Decomposition]]

    @abstractmethod
    def targets(self, classes: int) -> Tensor:
        """The tasks, as `Decomposition` takes them. Raises ValueError where they make no sense."""

    def build(self, shape: Shape, classes: int) -> nn.Module:
        def one(outputs: int) -> nn.Module:
            return build_architecture(self.arch, shape, outputs, widen=self.widen)

        return self.decomposition(one, shape, self.targets(classes))

    def batches(self, model: nn.Module, x: Tensor, y: Tensor, epoch: Epoch) -> Iterator[Batch]:
        targets, split = cast(Decomposition, model).targets, epoch.split
        labels = targets[:, y].cpu()
        count = max(len(split), int((labels >= 0).sum(1).max()))
        drawn = torch.stack([_draw(of_task, count, self.balanced) for of_task in labels])
        numbers = drawn.to(x.device).tensor_split(len(split), dim=1)

        def batch(step: int) -> Batch:
            # A seed names the crops behind those of the split, which are drawn and left.
            self.augment(x[split[step]])
            # Sample by sample, and for each sample task by task.
            tasks, samples = numbers[step].shape
            task = torch.arange(tasks, device=x.device).repeat(samples)
            index = numbers[step].T.flatten()
            images, own_labels = self.augment(x[index]), targets[task, y[index]]
            return epoch.batch(step, images, own_labels, task * len(y) + index, tasks)

        return map(batch, range(len(split)))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return batch.networks * super().loss(_InTurn(cast(Decomposition, model)), batch)


def _draw(labels: Tensor, count: int, balanced: bool) -> Tensor:
    """The numbers of `count` samples of a task in random order, given the labels (n,) of all in it,
    -1 where they are not in it."""
    own = (labels >= 0).nonzero().squeeze(1)
    if not len(own):
        raise ValueError("the training data have no sample of one of the tasks")
    if not balanced:
        return _repeated(own, count)
    groups = [(labels == label).nonzero().squeeze(1) for label in labels.unique() if label >= 0]
    each = math.ceil(count / len(groups))
    return torch.stack([_repeated(group, each) for group in groups], dim=1).flatten()[:count]


def _repeated(numbers: Tensor, count: int) -> Tensor:
    """Random permutations of some numbers, one after the other, cut to length."""
    turns = range(math.ceil(count / len(numbers)))
    return torch.cat([numbers[torch.randperm(len(numbers))] for _ in turns])[:count]
