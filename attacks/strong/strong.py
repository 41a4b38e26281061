"""The strongest attack per unit of work: smoothed ascents where they can still change a verdict."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.problem import Facts, NoGradientError, Problem
from attacks.searches.boundary import Boundary
from attacks.searches.ddn import DDN
from attacks.searches.rays import RayS
from attacks.searches.square import Square
from attacks.smoothing import WARM
from attacks.strong.search import (
    FINISH,
    OPINIONS,
    PART,
    QUERIES,
    SEEDED,
    STEPS,
    SURVEYED,
    THROUGH,
    Search,
    Way,
)  # fmt: skip
from attacks.threat import NORMS, Norm

# Temperatures of restarts, from and to.
_HOT, _COLD, _ICY = (3.0, 0.1), (0.1, 0.01), (0.03, 0.003)

# The gap up to which the classes after the first few get an ascent, and its steps.
_OPEN, _BRIEF = 1.0, 20

# On from the best point, on the network itself.
_ON = Way(None, "best", 1.0)

# Each later round: the gap below which a sample is worth it, the steps, and the ways, each taken
# toward the most promising class and the next. Measured on networks whose exact robust error is
# known: what can be broken at all is broken from gaps of a few percent.
_ROUNDS = (
    (0.25, 40, (Way(None, "image", 1.0), Way(_HOT, "far", 1.0))),
    (0.12, 60, (Way(_COLD, "image", 1.0), Way(WARM, "far", 2.0), Way(None, "far", 0.5))),
    (0.03, 40, (Way(_ICY, "image", 1.0), _ON)),
    (0.01, 50, (Way(_ICY, "best", 1.0), _ON)),
)

# Steps of DDN, to the closest points where logits show nothing.
_NEAR = 100

# What sees decisions alone.
_WALKS: dict[Norm, type[Boundary | RayS]] = {"l2": Boundary, "linf": RayS}


@dataclass(frozen=True)
class Strong:
    """Smoothed targeted ascents by promise, restarts where they may do, queries where gradients
    fail.

    1. A survey: to each of up to 10 other classes, the largest logits first, one step of full
       length along the gradient of the smoothed network (see `attacks.smoothing`). It ranks the
       classes by the gap that is left at its end: the label's lead over what another eps would buy,
       by the gradient there. Linearised so, at the far end, classes are ranked better than at the
       image itself (as by DeepFool's step, Moosavi-Dezfooli et al. 2016).
    2. Toward each of the nearest `classes`, an ascent of `steps` steps on the smoothed network from
       the image, whose temperature falls, and a short one on the network itself from where that
       ended. Each point is judged on the network itself, since smoothing changes gradients alone.
       With `quick`, this is all.
    3. Where the model has a surrogate, as fractal classifiers do, ascents from where those on the
       surrogate end; and the same as before, briefer, toward the other classes whose gap is small.
    4. Restarts of samples whose gap is small, at other temperatures and from other points.
    5. A second opinion for the rest: a short Square attack (Andriushchenko et al. 2020), and an
       ascent from where it ended. A sample on which this rises higher than all before gets another.
    6. Samples on which a second opinion rose clearly higher, or nothing rose at all, have gradients
       that are not to be believed: they are climbed against the gradient and, where anything cuts
       it, as if that were the identity (see `attacks.smoothing.through`). Where logits show
       nothing, DDN follows decisions to the closest point (L2 and L-infinity); for the others an
       eighth of `queries` goes to Square. All of them go to it where that wins enough, and to the
       boundary attack (L2) or RayS (L-infinity) there and where logits show nothing, from the
       closest point that is known.

    A broken sample stops at once; a problem's start is not used. Returns points (n, *shape) in the
    ball and the box. Raises ValueError for hyperparameters out of range. Own work, built of the
    parts named above.

    >>> from attacks.threat import ThreatModel
    >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)
    >>> x, y = torch.tensor([[0.6, 0.5], [0.9, 0.5]]), torch.tensor([0, 0])
    >>> points = Strong()(Problem(model, x, y, ThreatModel("l2", 0.2)))
    >>> model(points).argmax(1)  # the first is 0.1 from the boundary, the second 0.4
    tensor([1, 0])
    """

    classes: int = 3
    steps: int = 30
    queries: int = 2000
    quick: bool = False

    version: ClassVar[int] = 5

    def __post_init__(self) -> None:
        if min(self.classes, self.steps, self.queries) < 1:
            raise ValueError("strong: classes, steps and queries must be at least 1")

    @property
    def facts(self) -> Facts:
        """A fixed-budget attack under every norm."""
        first = 2 + SURVEYED + self.classes * (self.steps + FINISH + 2)
        if self.quick:
            return Facts("fixed-budget", NORMS, passes=first)
        others = max(0, SURVEYED - self.classes) * (_BRIEF + FINISH + 2)
        restarts = sum(2 * len(ways) * (steps + FINISH + 2) for _, steps, ways in _ROUNDS)
        seeded = SEEDED * (self.steps + FINISH + 2)
        opinions = OPINIONS * (QUERIES + STEPS + 3)
        through = 1 + THROUGH * (self.steps + 1)
        asked = Square(steps=self.queries).facts.passes or 0
        asked += 4 + self.queries // PART
        asked += max(walk(steps=self.queries).facts.passes or 0 for walk in _WALKS.values())
        asked += (DDN(steps=_NEAR).facts.passes or 0) + 1
        passes = first + seeded + others + restarts + opinions
        passes += self.steps + 1 + through + asked
        return Facts("fixed-budget", NORMS, passes=passes)

    def __call__(self, problem: Problem) -> Tensor:
        search = Search(replace(problem, start=None))
        if bool(search.broken.all()):
            return search.answer
        try:
            doubtful = self._climb(search)
        except NoGradientError:
            doubtful = ~search.broken
        if not self.quick:
            search.stage = "straight through"
            search.pass_through(doubtful, self.steps)
            walk, near = _WALKS.get(problem.threat.norm), torch.zeros_like(doubtful)
            if walk:
                search.stage = "closest points"
                near = search.approach(doubtful, _NEAR)
            search.stage = "queries"
            promising, blind = search.try_queries(self.queries // PART, doubtful & ~near)
            search.ask(Square(steps=self.queries), promising)
            if walk:
                search.ask(walk(steps=self.queries), promising | blind | near, search.closest)
        return search.answer

    def _climb(self, search: "Search") -> Tensor:
        """Parts 1 to 5; the samples whose gradients are not to be believed, bool (n,)."""
        search.stage = "survey"
        search.survey()
        search.stage = "ascents"
        way = Way(WARM, "image", 1.0)
        places = search.targets.shape[1]
        for place in range(min(self.classes, places)):
            search.ascend([search.nearest(place)], self.steps, way, math.inf)
        if self.quick:
            return torch.zeros_like(search.broken)
        search.stage = "surrogate"
        search.seed(self.steps)
        search.stage = "other classes"
        for place in range(self.classes, places):
            search.ascend([search.nearest(place)], _BRIEF, way, _OPEN, search.hopeful)
        search.stage = "restarts"
        for limit, steps, ways in _ROUNDS:
            for way in ways:
                search.ascend(search.promising(limit, way), steps, way, limit)
        search.stage = "second opinions"
        doubtful = search.hear_others()
        search.stage = "turned gradients"
        search.turn(doubtful, self.steps)
        return doubtful
