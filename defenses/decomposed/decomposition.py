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
    """A classifier that consists of a network for each task.

    build    makes a network, given how many logits it has.
    shape    of the images: (channels, height, width).
    targets  (tasks, classes), int64: which label each class has in each task; -1 where the class is
             not in the task.
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
        """The logits (tasks, n, labels) of each task, at images (1 or tasks, n, *shape) that all
        tasks share or that each has for itself."""
        logits: Tensor = self.networks(x)
        return logits.masked_fill(self.absent, _ABSENT)


class _InTurn(nn.Module):
    """The tasks as one model: the logits (n, labels) of images (n, *shape), where image i is for
    task i mod tasks."""

    def __init__(self, decomposition: Decomposition) -> None:
        super().__init__()
        self.decomposition = decomposition

    def forward(self, x: Tensor) -> Tensor:
        by_task = x.unflatten(0, (-1, len(self.decomposition.targets))).transpose(0, 1)
        return self.decomposition.tasks(by_task).transpose(0, 1).flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class Decomposed(AdversarialTraining):
    """Adversarial training of a decomposition: each task's network learns by itself, from its own
    labels and its own adversarial examples, while all are trained side by side.

    An epoch has as many samples for each task as the largest task has, so that a smaller task goes
    through its own more than once, and each step has an equal share of them. The loss is the sum of
    the tasks' mean losses.

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
        def network(outputs: int) -> nn.Module:
            return build_architecture(self.arch, shape, outputs, widen=self.widen)

        return self.decomposition(network, shape, self.targets(classes))

    def computing(self, model: nn.Module) -> nn.Module:
        return cast(Decomposition, model).networks

    def batches(self, model: nn.Module, x: Tensor, y: Tensor, epoch: Epoch) -> Iterator[Batch]:
        targets, split = cast(Decomposition, model).targets, epoch.split
        # The samples of each task, for all steps: (tasks, m) numbers for a step.
        labels = targets[:, y].cpu()
        count = max(len(split), int((labels >= 0).sum(1).max()))
        drawn = torch.stack([_draw(of_task, count, self.balanced) for of_task in labels])
        numbers = drawn.to(x.device).tensor_split(len(split), dim=1)

        def batch(step: int) -> Batch:
            # Draw and discard as many crops as earlier versions did, so that seeds give the same
            # weights.
            if self.crop:
                self.augment(x[split[step]])
            # Sample by sample, and for each sample task by task.
            tasks, samples = numbers[step].shape
            task = torch.arange(tasks, device=x.device).repeat(samples)
            index = numbers[step].T.flatten()
            images, labels = self.augment(x[index]), targets[task, y[index]]
            # Noise is a sample's and a task's own.
            return epoch.batch(step, images, labels, task * len(y) + index, tasks)

        return map(batch, range(len(split)))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return batch.networks * super().loss(_InTurn(cast(Decomposition, model)), batch)


def _draw(labels: Tensor, count: int, balanced: bool) -> Tensor:
    """The numbers of `count` samples of a task in random order, given the labels (n,) that all
    samples have in it; -1 where a sample is not in the task."""
    in_task = (labels >= 0).nonzero().squeeze(1)
    if not len(in_task):
        raise ValueError("the training data have no sample of one of the tasks")
    if not balanced:
        return _repeated(in_task, count)
    groups = [(labels == label).nonzero().squeeze(1) for label in labels.unique() if label >= 0]
    each = math.ceil(count / len(groups))
    return torch.stack([_repeated(group, each) for group in groups], dim=1).flatten()[:count]


def _repeated(numbers: Tensor, count: int) -> Tensor:
    """Random permutations of some numbers, one after the other, cut to length."""
    turns = range(math.ceil(count / len(numbers)))
    return torch.cat([numbers[torch.randperm(len(numbers))] for _ in turns])[:count]
