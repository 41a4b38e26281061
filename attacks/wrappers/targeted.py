"""Targeted runs of an attack, one class after another."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks.objectives import TARGETED_OBJECTIVES, TargetedName, check_objective
from attacks.problem import NoGradientError, Problem
from attacks.targets import by_distance, by_logit
from attacks.views import View
from attacks.wrappers.wrapper import Wrapper, in_turn, outermost

# How many classes are ranked by their boundaries, as in MALT.
_RANKED = 100


@dataclass(frozen=True)
class Targeted(Wrapper):
    """The base toward each of several other classes in turn (Croce and Hein 2020, section 4).

    classes    how many: the first by `ranking`; all others where there are fewer.
    objective  what rises: the target's lead over the label ("margin"), that of probabilities
               ("probability-margin"), the log-odds of the target ("cross-entropy"), or the targeted
               difference of logits ratio ("dlr").
    ranking    by the highest logits at the clean image ("logit"), or by the nearest boundaries, by
               the gradients there ("distance"; MALT, Melamed et al. 2024): of the classes with the
               100 highest logits, a backward each. Where the model gives no gradients, by logits.

    Whatever the base's own objective, that is what it sees. A sample counts as broken when it is
    misclassified in any way. A sample leaves once it is broken within the budget; where the base
    minimises, its closest point counts. Points (n, *shape) as the base's. Raises ValueError for
    options out of range.

    >>> from attacks.searches.pgd import PGD
    >>> from attacks.threat import ThreatModel
    >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)
    >>> x, y = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
    >>> problem = Problem(model, x, y, ThreatModel("l2", 0.2))
    >>> model(Targeted(PGD(steps=10), classes=1)(problem)).argmax(1)
    tensor([1])
    """

    classes: int = 9
    objective: TargetedName = "margin"
    ranking: Literal["logit", "distance"] = "logit"

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError("targeted: classes must be at least 1")
        check_objective("targeted", self.objective, TARGETED_OBJECTIVES)
        if self.ranking not in ("logit", "distance"):
            raise ValueError(f"targeted: unknown ranking {self.ranking!r}: use logit or distance")

    def most_passes(self, base: int) -> int:
        return 1 + self.classes * (1 + base)

    def __call__(self, problem: Problem) -> Tensor:
        outermost(problem)
        return in_turn(self.base, problem, self._runs(problem))

    def _runs(self, problem: Problem) -> Iterator[tuple[Problem, Tensor]]:
        push = TARGETED_OBJECTIVES[self.objective]
        everyone = torch.ones_like(problem.y, dtype=torch.bool)
        targets = self._ranked(problem)
        for target in targets[:, : self.classes].unbind(1):
            # Above 0 only where the target beats the label, it is its own progress.
            yield problem.seen(View(problem.y, target, push, push)), everyone

    def _ranked(self, problem: Problem) -> Tensor:
        """The classes to go for (n, k), the first first."""
        if self.ranking == "distance":
            with suppress(NoGradientError):
                return by_distance(problem, max(self.classes, _RANKED))[0]
        return by_logit(problem)
