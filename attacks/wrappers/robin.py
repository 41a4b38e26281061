"""The evaluation of RoBin, whatever kind of model it meets."""

from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor

from attacks.problem import Attack, Model, Problem
from attacks.wrappers.arms import HasArms, all_ways
from attacks.wrappers.stages import HasStages, Hierarchical
from attacks.wrappers.wrapper import Wrapper, in_turn, outermost


@dataclass(frozen=True)
class RoBinEvaluation(Wrapper):
    """RoBin's evaluation with the base: softmax, top-2 and best-arm on a model with arms, the base
    itself and on the stages of one that has these, else itself (section 5 and appendix C).

    Each run is on the samples that those before left; where the base minimises, the closest point
    counts. Points (n, *shape) as the base's.

    Differs from the source: the worst of them for each sample; there, the strongest of them over
    all samples, which can only be weaker.

    >>> from attacks.searches.pgd import PGD
    >>> from attacks.threat import ThreatModel
    >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)
    >>> x, y = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
    >>> problem = Problem(model, x, y, ThreatModel("l2", 0.2))
    >>> base = PGD(steps=10)  # on a model without arms or stages, it is the base itself
    >>> RoBinEvaluation(base)(problem).equal(base(problem))
    True
    """

    version: ClassVar[int] = 1

    def on(self, model: Model) -> Attack:
        """The attack that this is on a model: the base where it has neither arms nor stages."""
        return self if isinstance(model, HasArms | HasStages) else self.base

    def __call__(self, problem: Problem) -> Tensor:
        model = problem.model
        if self.on(model) is not self:
            return self.base(problem)
        outermost(problem)
        if isinstance(model, HasArms):
            return in_turn(self.base, problem, all_ways(problem, model))
        assert isinstance(model, HasStages)
        whole = [(problem, torch.ones_like(problem.y, dtype=torch.bool))]
        stages = Hierarchical(self.base).runs(problem, model)
        return in_turn(self.base, problem, chain(whole, stages))
