"""What attacks that wrap another attack have in common."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks.objectives import decided
from attacks.problem import Attack, Facts, Problem, minimising
from attacks.threat import per_sample

# Problems, and which of their samples each is for, bool (n,).
Runs = Iterable[tuple[Problem, Tensor]]

# Each run of several draws noise of its own, under the seed with this number's k-th multiple mixed
# in: 2^64 over the golden ratio, whose multiples lie far apart. Run 0 keeps the seed.
_TURN = 0x9E3779B97F4A7C15
_SEEDS = 2**63


@dataclass(frozen=True)
class Wrapper:
    """An attack that runs `base`, any attack, and has the facts of that but for the passes."""

    base: Attack

    # Lets configuration validate `base`.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"arbitrary_types_allowed": True}

    @property
    def facts(self) -> Facts:
        """Those of the base, with the passes that this attack takes."""
        facts = self.base.facts
        passes = None if facts.passes is None else self.most_passes(facts.passes)
        return replace(facts, passes=passes)

    def most_passes(self, base: int) -> int | None:
        """The most forward passes that a sample can take, given that number for the base; None
        where it is not known, or depends on the model."""
        return None

    def minimising(self) -> "Wrapper":
        """The same attack around the base that minimises, where the base has that choice."""
        return replace(self, base=minimising(self.base))


def outermost(problem: Problem) -> None:
    """Raises ValueError where another attack already shows its base a view: they do not nest."""
    if problem.view is not None:
        raise ValueError(
            "an attack that chooses what its base sees cannot be the base of another that does"
        )


def in_turn(base: Attack, problem: Problem, runs: Runs) -> Tensor:
    """Points (n, *shape) of several runs of `base` on the same samples.

    Each run is a problem for all samples of `problem`, through one view or another, and which of
    them it is for, bool (n,). A sample leaves once it is broken within the budget, at the cost of
    one forward per run for fixed-budget bases; for bases that minimise it stays, and the closest
    point counts. A sample that no run broke has the point of its first.
    """
    fixed = base.facts.family == "fixed-budget"
    answer = problem.x.clone()
    reach = torch.full((len(problem),), torch.inf, dtype=torch.float64, device=answer.device)
    left = torch.ones(len(problem), dtype=torch.bool, device=answer.device)
    tried = ~left
    for turn, (run, meant_for) in enumerate(runs):
        rows = (left & meant_for).nonzero().squeeze(1)
        if not len(rows):
            continue
        chosen = run.select(rows)
        points = base(replace(chosen, seed=(problem.seed ^ (turn * _TURN)) % _SEEDS)).detach()
        distance = chosen.threat.distance(points, chosen.x)
        if fixed:
            with torch.no_grad():
                broken = decided(chosen.logits(points), chosen.y)
        else:
            # A minimal-norm attack leaves what it does not break at the clean image.
            broken = distance > 0
        better = (broken & (distance < reach[rows])) | ~tried[rows]
        answer[rows] = torch.where(per_sample(better, points), points, answer[rows])
        reach[rows] = torch.where(broken, distance.minimum(reach[rows]), reach[rows])
        tried[rows] = True
        if not base.facts.minimises:
            left[rows] = ~broken if fixed else reach[rows] > chosen.threat.eps
    return answer
