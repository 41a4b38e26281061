"""Any attack on a smoothed network."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.objectives import decided
from attacks.problem import NoGradientError, Problem
from attacks.smoothing import Cooling
from attacks.threat import per_sample
from attacks.wrappers.wrapper import Wrapper

# How many steps a base is taken to have that does not say.
USUAL = 100

# The temperatures of a smoothed network that stands in for a surrogate.
SURROGATE = (1.0, 0.03)


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

    hot: float = 1.0
    cold: float = 0.03

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.hot >= self.cold > 0:
            raise ValueError("smoothed: hot must be at least cold, and cold above 0")

    def most_passes(self, base: int) -> int:
        return 2 * base + 2

    def __call__(self, problem: Problem) -> Tensor:
        cooling = Cooling(self.hot, self.cold, self._steps())
        points = self.base(replace(problem, cooling=cooling)).detach()
        with torch.no_grad():
            hit = decided(problem.logits(points), problem.y)
        minimises = self.base.facts.family == "minimal-norm"
        rows = (torch.ones_like(hit) if minimises else ~hit).nonzero().squeeze(1)
        if not len(rows):
            return points
        left = replace(problem.select(rows), start=points[rows])
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

    def _steps(self) -> int:
        options = getattr(self.base, "options", {})
        return self.base.facts.passes or options.get("steps") or USUAL
