"""Attacks on two-stage hierarchical classifiers (RoBin, appendix C)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from attacks.objectives import margin
from attacks.problem import NotApplicableError, Problem
from attacks.views import View
from attacks.wrappers.wrapper import Runs, Wrapper, in_turn, outermost

Stage = Literal["first", "second", "first-then-second"]


@runtime_checkable
class HasStages(Protocol):
    """A classifier that chooses a group of classes, and then a class of that group.

    groups  the group (classes,), int64, of each class. Groups are numbered from 0.
    """

    groups: Tensor

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse logits (n, groups) and fine logits (n, classes) of images (n, *shape); each fine
        logit is from the model of its class's group. Predicted is the best class of the best
        group."""
        ...


def _first(groups: Tensor, outputs: Tensor, y: Tensor, group: Tensor) -> Tensor:
    """The lead of the best other group over the label's; -inf where there is no other."""
    return margin(outputs[:, : outputs.shape[1] - len(groups)], group)


def _second(groups: Tensor, outputs: Tensor, y: Tensor, group: Tensor) -> Tensor:
    """The lead over the label of the best other class of its group; -inf where it is alone."""
    fine = outputs[:, outputs.shape[1] - len(groups) :]
    return margin(fine.masked_fill(groups != group[:, None], -torch.inf), y)


def _either(groups: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
    group = groups[y]
    return _first(groups, outputs, y, group).maximum(_second(groups, outputs, y, group))


@dataclass(frozen=True)
class Hierarchical(Wrapper):
    """The base on the stages of a hierarchical classifier (RoBin, appendix C).

    stage  "first": on the model that chooses the group; "second": on the one that chooses among
           the classes of the label's group; "first-then-second": on the second where the first
           run did not break the sample, or also where it did if the base minimises.

    The base raises the lead, in the stage's logits, of the best other group or class; whatever
    its objective, that is what it sees. A sample is broken wherever the whole is wrong, by either
    stage. A stage that offers the sample no alternative is passed over; then the point is the clean
    image.

    Points (n, *shape) as the base's. Raises NotApplicableError where the model has no stages,
    ValueError for an unknown stage.
    """

    stage: Stage = "first-then-second"

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.stage not in get_args(Stage):
            raise ValueError(
                f"hierarchical: unknown stage {self.stage!r}: use {', '.join(get_args(Stage))}"
            )

    def most_passes(self, base: int) -> int:
        return len(self.stage.split("-then-")) * (1 + base)

    def __call__(self, problem: Problem) -> Tensor:
        outermost(problem)
        model = problem.model
        if not isinstance(model, HasStages):
            raise NotApplicableError("the model offers no stages (a group, then a class of it)")
        return in_turn(self.base, problem, self.runs(problem, model))

    def runs(self, problem: Problem, model: HasStages) -> Runs:
        """The runs of the base, for `in_turn`."""
        groups = model.groups.to(problem.y.device)
        several_groups = (groups != groups[0]).any().expand(len(problem))
        several_classes = (groups[problem.y][:, None] == groups).sum(1) > 1
        stages = {"first": (_first, several_groups), "second": (_second, several_classes)}

        def joined(x: Tensor) -> Tensor:
            return torch.cat(model.stages(x), dim=1)

        for name in self.stage.split("-then-"):
            score, open_to = stages[name]
            lead = partial(score, groups)
            view = View(problem.y, groups[problem.y], lead, lead, partial(_either, groups))
            yield problem.seen(view, joined), open_to
