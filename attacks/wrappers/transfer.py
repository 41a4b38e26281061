"""Attacks that craft points on one model and bring them to another."""

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from attacks.objectives import decided, margin
from attacks.problem import (
    Attack,
    CanMaximise,
    Facts,
    Model,
    Problem,
    minimising,
)
from attacks.smoothing import WARM, Cooling
from attacks.targets import by_logit
from attacks.threat import per_sample
from attacks.views import View
from attacks.wrappers.smoothed import USUAL
from attacks.wrappers.wrapper import Wrapper, outermost


@runtime_checkable
class HasSurrogate(Protocol):
    """A model that offers another, easier to differentiate, to craft points on."""

    def surrogate(self) -> Model:
        """A model from the same images to the same classes, in eval mode: of a fractal classifier,
        the same network with the slopes of its sigmoids lowered to about 5 (fractal classifiers,
        section 4.1)."""
        ...


def _crafting(problem: Problem, name: str | None, steps: int | None) -> Problem:
    """The problem on the model to craft points on: a peer's surrogate, the peer itself where it has
    none, or the target's own surrogate. That of a model that offers none is the model with smoothed
    gradients, over so many steps."""
    model = problem.model
    if name is not None:
        if name not in problem.peers:
            known = f"use one of {', '.join(problem.peers)}" if problem.peers else "there is none"
            raise ValueError(f"no other model {name!r} to craft points on: {known}")
        model = problem.peers[name]
    if isinstance(model, HasSurrogate):
        return replace(problem, model=model.surrogate())
    if name is None:
        return replace(problem, cooling=Cooling(*WARM, steps or USUAL))
    return replace(problem, model=model)


def _sources(source: str | None, base: Attack) -> tuple[str, ...]:
    """The models by name that an attack around a base crafts points on."""
    return (*(() if source is None else (source,)), *base.facts.sources)


def _lead(logits: Tensor, target: Tensor) -> Tensor:
    return -margin(logits, target)


def _toward(problem: Problem, source: Model, target: Tensor) -> Problem:
    """The problem of having the source predict the target."""
    view = View(target, target, lambda logits, y, _: _lead(logits, y), margin=_lead)
    return problem.seen(view, source)


def _closest(problem: Problem, candidates: list[Tensor], otherwise: Tensor) -> Tensor:
    """Per sample the closest candidate that the model misclassifies, at a forward each."""
    answer, reach = otherwise, problem.threat.distance(otherwise, problem.x).fill_(torch.inf)
    for points in candidates:
        with torch.no_grad():
            broken = decided(problem.logits(points), problem.y)
        distance = problem.threat.distance(points, problem.x)
        closer = broken & (distance < reach)
        answer = torch.where(per_sample(closer, points), points, answer)
        reach = torch.where(closer, distance, reach)
    return answer


def _stretched(problem: Problem, points: Tensor) -> Tensor:
    """The points moved along their direction to the edge of the ball, clipped to the box."""
    return problem.threat.edge(problem.x, points - problem.x)


@dataclass(frozen=True)
class Transfer(Wrapper):
    """The base on a source model; the points are for the target (RoBin, section B.2).

    source    the name of another model under evaluation: its surrogate where it has one, else
              itself; default: the target's own surrogate, or the target with smoothed gradients
              where it offers none.
    targeted  on the source, go for the class that is the target's highest other at the clean image
              (in RoBin its second-highest arm).

    A base that can climb on beyond the source's boundary, as PGD does, does so, in one run whatever
    its restarts, and where that ends is the answer. Other bases' points are also tried stretched to
    the edge of the ball; the closest that the target misclassifies counts. Passes on the source
    count as work too.

    Points (n, *shape) as the base's. Raises ValueError where there is no model of that name.

    >>> from attacks.searches.pgd import PGD
    >>> from attacks.threat import ThreatModel
    >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)
    >>> near = lambda x: torch.stack([x[:, 0], 0.9 - x[:, 0]], dim=1)
    >>> x, threat = torch.tensor([[0.6, 0.5]]), ThreatModel("l2", 0.2)
    >>> problem = Problem(model, x, torch.tensor([0]), threat, peers={"near": near})
    >>> model(Transfer(PGD(steps=10), source="near")(problem)).argmax(1)
    tensor([1])
    """

    source: str | None = None
    targeted: bool = False

    version: ClassVar[int] = 3

    @property
    def facts(self) -> Facts:
        """Those of the base, with the passes of this attack and its source."""
        return replace(super().facts, transfers=True, sources=_sources(self.source, self.base))

    def most_passes(self, base: int) -> int:
        return base + 2 + self.targeted

    def __call__(self, problem: Problem) -> Tensor:
        outermost(problem)
        crafting = _crafting(problem, self.source, self.base.facts.passes)
        if self.targeted:
            crafting = _toward(crafting, crafting.model, by_logit(problem)[:, 0])
        if isinstance(self.base, CanMaximise):
            return self.base.maximise(crafting).detach()
        points = self.base(crafting).detach()
        stretched = _stretched(problem, points)
        otherwise = stretched if self.base.facts.family == "fixed-budget" else problem.x
        return _closest(problem, [points, stretched], otherwise)


@dataclass(frozen=True)
class Seeded(Wrapper):
    """The base on the target, started from what it finds on a source model (seeded CW, "SCW", of
    fractal classifiers, section 4.1).

    source  as in `Transfer`.

    On the source, a base that can minimise does; what it leaves there unbroken starts at the clean
    image, or where a fixed-budget base ended. Where the target misclassifies the start and the
    base finds nothing closer, the start is the answer; so also for a base that ignores starts.
    Passes on the source count as work too. Points (n, *shape) as the base's; raises as `Transfer`.

    >>> from attacks.searches.carlini_wagner import CarliniWagner
    >>> from attacks.threat import ThreatModel
    >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)
    >>> near = lambda x: torch.stack([x[:, 0], 0.9 - x[:, 0]], dim=1)
    >>> x, threat = torch.tensor([[0.6, 0.5]]), ThreatModel("l2", 0.2)
    >>> problem = Problem(model, x, torch.tensor([0]), threat, peers={"near": near})
    >>> points = Seeded(CarliniWagner(steps=50), source="near")(problem)
    >>> float(threat.distance(points, x)) < 0.2
    True
    """

    source: str | None = None

    version: ClassVar[int] = 2

    @property
    def facts(self) -> Facts:
        """Those of the base, with the passes of this attack and its source."""
        return replace(super().facts, sources=_sources(self.source, self.base))

    def most_passes(self, base: int) -> int:
        return 2 * base + 2

    def __call__(self, problem: Problem) -> Tensor:
        outermost(problem)
        base = minimising(self.base)
        start = base(_crafting(problem, self.source, base.facts.passes)).detach()
        points = self.base(replace(problem, start=start)).detach()
        otherwise = points if self.base.facts.family == "fixed-budget" else problem.x
        return _closest(problem, [points, start], otherwise)
