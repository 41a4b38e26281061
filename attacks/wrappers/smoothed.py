"""Any attack on a smoothed network."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.objectives import decided
from attacks.problem import NoGradientError, Problem
from attacks.smoothing import WARM, Cooling
from attacks.threat import per_sample
from attacks.wrappers.wrapper import Wrapper

# How many steps a base is taken to have that does not say.
USUAL = 100


@dataclass(frozen=True)
class Smoothed(Wrapper):
    """The base with the gradients of the smoothed network, and again with the network's own.

    hot, cold  temperatures of `attacks.smoothing` at the first step and at the last. They fall
               geometrically over as many gradients as the base can take: as many as its passes, or
               its option `steps`, or 100.

    Smoothing changes no value, so that all that the base judges is the network itself. The second
    run begins where the first one ended, for bases that use a start, on the samples that are left;
    where the base minimises, on all of them, and the closest point counts. Where nothing in the
    network can be smoothed, as in a scripted one, that is the base twice.

    Points (n, *shape) as the base's. Raises ValueError for temperatures that do not fall to a
    number above 0.

    Source: the seeded attack on fractal classifiers (section 4.1), made for any network.

    >>> from attacks.searches.pgd import PGD
    >>> from attacks.threat import ThreatModel
    >>> flat = lambda z: torch.stack([torch.relu(z - 0.55), z.new_zeros(len(z))], dim=1) + 1e-3
    >>> model = lambda x: flat(x[:, 0]).sub(torch.tensor([0.0, 2e-3]))
    >>> problem = Problem(model, torch.tensor([[0.5]]), torch.tensor([0]), ThreatModel("l2", 0.1))
    >>> model(Smoothed(PGD(steps=10))(problem)).argmax(1)  # nothing breaks it
    tensor([0])
    """

    hot: float = WARM[0]
    cold: float = WARM[1]

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.hot >= self.cold > 0:
            raise ValueError("smoothed: hot must be at least cold, and cold above 0")

    def most_passes(self, base: int) -> int:
        return 2 * base + 2

    def __call__(self, problem: Problem) -> Tensor:
        points = self.base(self._first(problem)).detach()
        with torch.no_grad():
            hit = decided(problem.logits(points), problem.y)
        minimises = self.base.facts.family == "minimal-norm"
        rows = (torch.ones_like(hit) if minimises else ~hit).nonzero().squeeze(1)
        if not len(rows):
            return points
        left = self._second(replace(problem.select(rows), start=points[rows]))
        try:
            own = self.base(left).detach()
        except NoGradientError:  # what has no gradient may have one when it is smoothed
            return points
        with torch.no_grad():
            better = decided(left.logits(own), left.y)
        if minimises:
            better &= ~hit | (
                left.threat.distance(own, left.x) < left.threat.distance(points, left.x)
            )
        points[rows] = torch.where(per_sample(better, own), own, points[rows])
        return points

    def _first(self, problem: Problem) -> Problem:
        """What the base is given first."""
        return replace(problem, cooling=Cooling(self.hot, self.cold, self._steps()))

    def _second(self, problem: Problem) -> Problem:
        """What it is given where that ended."""
        return problem

    def _steps(self) -> int:
        options = getattr(self.base, "options", {})
        return self.base.facts.passes or options.get("steps") or USUAL


@dataclass(frozen=True)
class BPDA(Smoothed):
    """The smoothed base, which also passes straight through what cuts the gradient (backward pass
    differentiable approximation, Athalye et al. 2018, section 4.1).

    hot, cold  as in `Smoothed`; in the second run, steps are passed through too, at `cold`.

    For models that compress, quantise or purify images by code that torch does not differentiate:
    numpy, blocks without gradients, `detach`, custom functions without a backward pass. Each such
    step that keeps its input's shape counts as the identity when gradients are taken. Points (n,
    *shape) as the base's. Raises as `Smoothed`.

    >>> from attacks.searches.pgd import PGD
    >>> from attacks.threat import ThreatModel
    >>> levels = lambda x: torch.from_numpy((x.detach().numpy() * 8).round() / 8)
    >>> model = lambda x: torch.stack([levels(x)[:, 0], 1 - levels(x)[:, 0]], dim=1)
    >>> problem = Problem(model, torch.tensor([[0.7]]), torch.tensor([0]), ThreatModel("l2", 0.3))
    >>> model(BPDA(PGD(steps=10))(problem)).argmax(1)
    tensor([1])
    """

    version: ClassVar[int] = 1

    def _first(self, problem: Problem) -> Problem:
        cooling = Cooling(self.hot, self.cold, self._steps(), through=True)
        return replace(problem, cooling=cooling)

    def _second(self, problem: Problem) -> Problem:
        return replace(problem, cooling=Cooling(self.cold, self.cold, 0, through=True))
