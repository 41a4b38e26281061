"""Attacks on one-vs-all aggregations of binary classifiers (RoBin, sections 4.2 and B.1).

Each shows its base, any attack, the aggregation's arms through a view. With s the score of an arm,
the loss of its binary classifier is softplus(s) where it should be low and softplus(-s) where it
should be high. An attack raises the loss of some arms: the label's, which falls, and others, which
rise. Those that look at the order of the arms look once, at the clean image.

Differs from the source: the highest arm is taken to be the label's, as it is at every correctly
classified image, and the second highest is the highest other one. The paper does not say at which
point arms are ranked.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from attacks.objectives import cross_entropy, margin
from attacks.problem import NotApplicableError, Problem
from attacks.views import Score, View
from attacks.wrappers.wrapper import Runs, Wrapper, in_turn, outermost


@runtime_checkable
class HasArms(Protocol):
    """An aggregation of binary classifiers, one per class."""

    def arms(self, x: Tensor) -> Tensor:
        """Scores (n, classes) of images (n, *shape); the predicted class has the highest."""
        ...


def _losses(arms: Tensor, y: Tensor, chosen: Tensor) -> Tensor:
    """A value (n,) whose gradient has the direction of the mean gradient of some arms' losses.

    `chosen` holds the numbers of these arms (n, k). The slope of each loss, a sigmoid, weighs its
    arm. The weights sum to 1 and are made from logarithms, so that arms of any confidence keep a
    direction.
    """
    scores = arms.gather(1, chosen)
    wrong_way = torch.where(chosen == y[:, None], -scores, scores)
    return (logsigmoid(wrong_way).softmax(1).detach() * wrong_way).sum(1)


def _softmax(arms: Tensor, y: Tensor, chosen: Tensor) -> Tensor:
    """Cross-entropy, as log-odds, of the softmax over the chosen arms; the first is the label's."""
    return cross_entropy(arms.gather(1, chosen), torch.zeros_like(y))


def _progress(arms: Tensor, y: Tensor, chosen: Tensor) -> Tensor:
    """How far the highest of the chosen arms leads over the label's. Where the label's is the only
    chosen one, all others compete."""
    others = arms.gather(1, chosen).masked_fill(chosen == y[:, None], -torch.inf).amax(1)
    lead = others - arms.gather(1, y[:, None]).squeeze(1)
    return torch.where(others.isinf(), margin(arms, y), lead)


def _aggregation(problem: Problem) -> HasArms:
    """The model, once it is clear that the attack can run on it."""
    outermost(problem)
    if isinstance(problem.model, HasArms):
        return problem.model
    raise NotApplicableError("the model offers no arms (scores per class of binary classifiers)")


def _ranked(problem: Problem, model: HasArms) -> Tensor:
    """Arms (n, classes) from the highest at the clean image down, the label's before all."""
    with torch.no_grad():
        arms = replace(problem, model=model.arms).logits(problem.x)
    label_first = arms.scatter(1, problem.y[:, None], torch.inf)
    return label_first.argsort(dim=1, descending=True, stable=True)


def _on_arms(problem: Problem, model: HasArms, push: Score, chosen: Tensor) -> Problem:
    return problem.seen(View(problem.y, chosen, push, _progress), model.arms)


def _each_arm(problem: Problem, model: HasArms, ranked: Tensor) -> Runs:
    """The runs of best-arm, for `in_turn`."""
    everyone = torch.ones_like(problem.y, dtype=torch.bool)
    arms = ranked.split(1, dim=1)
    return ((_on_arms(problem, model, _losses, arm), everyone) for arm in arms)


def all_ways(problem: Problem, model: HasArms) -> Runs:
    """The runs of softmax, top-2 and best-arm, for `in_turn`."""
    everyone = torch.ones_like(problem.y, dtype=torch.bool)
    ranked = _ranked(problem, model)
    yield _on_arms(problem, model, _softmax, ranked), everyone
    yield _on_arms(problem, model, _losses, ranked[:, :2]), everyone
    yield from _each_arm(problem, model, ranked)


@dataclass(frozen=True)
class BestArm(Wrapper):
    """One run of the base per arm, pushing that arm alone: the label's down, another up (RoBin,
    section 4.2).

    The run on the label's arm comes first and is that of `HighestArm`, the others follow from the
    highest down. A sample leaves once it is broken within the budget; where the base minimises, its
    closest point counts. How many passes it takes depends on the model's number of arms, so it has
    no `passes`. Points (n, *shape) as the base's. Raises NotApplicableError where the model has no
    arms.

    >>> from attacks.searches.pgd import PGD
    >>> from attacks.threat import ThreatModel
    >>> class Arms(torch.nn.Module):
    ...     def arms(self, x):
    ...         return torch.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], dim=1)
    ...
    ...     forward = arms
    >>> model = Arms()
    >>> x, y = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
    >>> problem = Problem(model, x, y, ThreatModel("l2", 0.2))
    >>> model(BestArm(PGD(steps=10))(problem)).argmax(1)
    tensor([1])
    >>> BestArm(PGD())(Problem(torch.nn.Identity(), problem.x, problem.y, problem.threat))
    Traceback (most recent call last):
    attacks.problem.NotApplicableError: ...
    """

    version: ClassVar[int] = 1

    def __call__(self, problem: Problem) -> Tensor:
        model = _aggregation(problem)
        runs = _each_arm(problem, model, _ranked(problem, model))
        return in_turn(self.base, problem, runs)


@dataclass(frozen=True)
class HighestArm(Wrapper):
    """All of the budget on the highest arm, which is to fall (RoBin, section B.1).

    Points (n, *shape) as the base's. Raises NotApplicableError where the model has no arms.
    """

    version: ClassVar[int] = 1

    def most_passes(self, base: int) -> int:
        return base

    def __call__(self, problem: Problem) -> Tensor:
        model = _aggregation(problem)
        return self.base(_on_arms(problem, model, _losses, problem.y[:, None]))


@dataclass(frozen=True)
class _Together(Wrapper):
    """One run of the base on several arms at once."""

    def most_passes(self, base: int) -> int:
        return 1 + base

    def _run(self, problem: Problem, push: Score, most: int | None = None) -> Tensor:
        """The base on the highest arms, by default on all."""
        model = _aggregation(problem)
        return self.base(_on_arms(problem, model, push, _ranked(problem, model)[:, :most]))


@dataclass(frozen=True)
class Top2(_Together):
    """The highest arm down and the second highest up, along the mean of their gradients (RoBin,
    section 4.2).

    Points (n, *shape) as the base's. Raises NotApplicableError where the model has no arms.
    """

    version: ClassVar[int] = 1

    def __call__(self, problem: Problem) -> Tensor:
        return self._run(problem, _losses, 2)


@dataclass(frozen=True)
class AverageGradient(_Together):
    """The label's arm down and all others up, along the mean of their gradients (RoBin, section
    B.1).

    Points (n, *shape) as the base's. Raises NotApplicableError where the model has no arms.
    """

    version: ClassVar[int] = 1

    def __call__(self, problem: Problem) -> Tensor:
        return self._run(problem, _losses)


@dataclass(frozen=True)
class SoftmaxAttack(_Together):
    """The arms as the logits of one multiclass model, under cross-entropy (RoBin, section 4.2).

    Points (n, *shape) as the base's. Raises NotApplicableError where the model has no arms.

    Differs from the source: cross-entropy is in the form of `attacks.objectives.cross_entropy`.
    """

    version: ClassVar[int] = 1

    def __call__(self, problem: Problem) -> Tensor:
        return self._run(problem, _softmax)


@dataclass(frozen=True)
class SoftmaxTop2(_Together):
    """The two highest arms as the logits of one model, under cross-entropy (RoBin, section B.1).

    Points (n, *shape) as the base's. Raises NotApplicableError where the model has no arms.
    """

    version: ClassVar[int] = 1

    def __call__(self, problem: Problem) -> Tensor:
        return self._run(problem, _softmax, 2)
