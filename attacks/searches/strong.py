"""The strongest attack per unit of work: smoothed ascents where they can still change a verdict."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from attacks.objectives import decided, margin
from attacks.problem import Attack, Facts, NoGradientError, Problem, differentiate
from attacks.searches.ascent import Ascent, ascend
from attacks.searches.boundary import Boundary
from attacks.searches.rays import RayS
from attacks.searches.square import Square
from attacks.smoothing import Cooling
from attacks.threat import NORMS, Norm, per_sample

# Temperatures, from and to. The survey keeps the first.
_WARM, _HOT, _COLD = (1.0, 0.03), (3.0, 0.1), (0.1, 0.01)

# Other classes that are surveyed, at most.
_SURVEYED = 10

# Steps on the network itself after a smoothed ascent, and their first length in eps.
_FINISH, _SHORT = 15, 0.25

# The gap up to which the classes after the first few get an ascent, and its steps.
_OPEN, _BRIEF = 1.0, 20


class _Way(NamedTuple):
    """How a restart goes: temperatures, or the network's own gradients; from a random point at the
    end of the budget, or from the clean image; the length of the first step, in eps."""

    cooling: tuple[float, float] | None
    far: bool
    first: float


# Each later round: the gap below which a sample is worth it, the steps, and the ways, each taken
# toward the most promising class and the next. Measured on networks whose exact robust error is
# known: what can be broken at all is broken from gaps of a few percent.
_ROUNDS = (
    (0.25, 40, (_Way(None, False, 1.0), _Way(_HOT, True, 1.0))),
    (0.12, 60, (_Way(_COLD, False, 1.0), _Way(_WARM, True, 2.0), _Way(None, True, 0.5))),
)

# Second opinions that a sample may get, the queries and steps of each, by how much one must add to
# what was gained before for another to follow, and from how much on gradients are not believed.
_OPINIONS, _QUERIES, _STEPS = 10, 100, 30
_WORTH, _DOUBTFUL = 0.02, 0.1

# What sees decisions alone.
_WALKS: dict[Norm, type[Boundary | RayS]] = {"l2": Boundary, "linf": RayS}

# How many times the lead that all attacks won back may be left where more queries can do.
_HOPE = 1.0


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
    3. The same, briefer, toward the other classes whose gap is small enough.
    4. Restarts of samples whose gap is small, at other temperatures and from other points.
    5. A second opinion for the rest: a short Square attack (Andriushchenko et al. 2020), and an
       ascent from where it ended. A sample on which this rises higher than all before gets another.
    6. Samples on which a second opinion rose clearly higher, or nothing rose at all, have gradients
       that are not to be believed: they are climbed against the gradient, given to Square with
       `queries` queries, and with as many to the boundary attack (L2) or RayS (L-infinity).

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

    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if min(self.classes, self.steps, self.queries) < 1:
            raise ValueError("strong: classes, steps and queries must be at least 1")

    @property
    def facts(self) -> Facts:
        """A fixed-budget attack under every norm."""
        first = 2 + _SURVEYED + self.classes * (self.steps + _FINISH + 2)
        if self.quick:
            return Facts("fixed-budget", NORMS, passes=first)
        others = max(0, _SURVEYED - self.classes) * (_BRIEF + _FINISH + 2)
        restarts = sum(2 * len(ways) * (steps + _FINISH + 2) for _, steps, ways in _ROUNDS)
        opinions = _OPINIONS * (_QUERIES + _STEPS + 3)
        asked = Square(steps=self.queries).facts.passes or 0
        asked += max(walk(steps=self.queries).facts.passes or 0 for walk in _WALKS.values())
        passes = first + others + restarts + opinions + self.steps + 1 + asked
        return Facts("fixed-budget", NORMS, passes=passes)

    def __call__(self, problem: Problem) -> Tensor:
        search = _Search(replace(problem, start=None))
        try:
            doubtful = self._climb(search)
        except NoGradientError:
            doubtful = ~search.broken
        if not self.quick:
            search.stage = "queries"
            search.ask(Square(steps=self.queries), doubtful)
            if walk := _WALKS.get(problem.threat.norm):
                search.ask(walk(steps=self.queries), doubtful)
        return search.answer

    def _climb(self, search: "_Search") -> Tensor:
        """Parts 1 to 5; the samples whose gradients are not to be believed, bool (n,)."""
        search.stage = "survey"
        search.survey()
        search.stage = "ascents"
        way = _Way(_WARM, False, 1.0)
        for place in range(min(self.classes, search.places)):
            search.ascend(search.nearest(place), self.steps, way, math.inf)
        if self.quick:
            return torch.zeros_like(search.broken)
        search.stage = "other classes"
        for place in range(self.classes, search.places):
            search.ascend(search.nearest(place), _BRIEF, way, _OPEN)
        search.stage = "restarts"
        for limit, steps, ways in _ROUNDS:
            for way in ways:
                for place in (0, 1):
                    search.ascend(search.promising(place, limit), steps, way, limit)
        search.stage = "second opinions"
        doubtful = search.hear_others()
        search.stage = "turned gradients"
        search.turn(doubtful, self.steps)
        return doubtful


class _Search:
    """What is known of each sample: points (n, *shape), where they are misclassified (n,), the
    margin at the clean image and the highest so far (n,); once surveyed, the classes by promise,
    and the smallest gap to each so far (n, k)."""

    targets: Tensor
    gap: Tensor

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.answer = problem.x.clone()
        with torch.no_grad():
            logits = problem.logits(problem.x)
        self.broken = decided(logits, problem.y)
        self.clean = margin(logits, problem.y)
        self.best = self.clean.clone()
        self.runs = 0
        self.places = 0
        self.smooth = True
        self.stage = ""

    def survey(self) -> None:
        """One long step toward each of the other classes, by whose ends they are ranked."""
        rows = (~self.broken).nonzero().squeeze(1)
        unbroken = self.problem.select(rows)
        y = unbroken.y[:, None]
        cooling = Cooling(_WARM[0], _WARM[0], _SURVEYED + 1)
        smoothed = replace(unbroken, cooling=cooling)

        # The gradients toward all classes, of one forward at the clean image.
        x = unbroken.x.detach().requires_grad_()
        logits = smoothed.logits(x)
        others = logits.detach().scatter(1, y, -math.inf)
        targets = others.topk(min(_SURVEYED, logits.shape[1] - 1), dim=1).indices
        leads = (logits.gather(1, targets) - logits.gather(1, y)).unbind(1)
        pushes = [differentiate(lead, x, retain=True) for lead in leads]

        # The ends of the steps, class by class, for whom is left.
        self.places = targets.shape[1]
        gap = torch.full_like(targets, math.inf, dtype=logits.dtype)
        for place, push in enumerate(pushes):
            left = (~self.broken[rows]).nonzero().squeeze(1)
            if not len(left):
                break
            chosen = smoothed.select(left)
            points = _end(chosen, push[left])
            run = ascend(chosen, points, targets[left, place], 0, 1.0)
            self._learn(rows[left], run)
            gap[left, place] = run.gap
        order = gap.argsort(dim=1, stable=True)
        self.targets = targets.new_zeros(len(self.broken), self.places)
        self.targets[rows] = targets.gather(1, order)
        self.gap = gap.new_full(self.targets.shape, math.inf)
        self.gap[rows] = gap.gather(1, order)
        self.smooth = cooling.softened > 0

    def nearest(self, place: int) -> Tensor:
        """The column (n,) of each sample's class that the survey put at this place."""
        return torch.full_like(self.problem.y, place)

    def promising(self, place: int, limit: float) -> Tensor:
        """The column (n,) of each sample's class of the smallest gap or, at place 1, of the second
        smallest where that is below the limit."""
        gap, order = self.gap.sort(dim=1, stable=True)
        place = min(place, order.shape[1] - 1)
        return torch.where(gap[:, place] < limit, order[:, place], order[:, 0])

    def ascend(self, column: Tensor, steps: int, way: _Way, limit: float) -> None:
        """One run per unbroken sample, toward the target in its column (n,), where the gap to that
        is at most the limit."""
        self.runs += 1
        near = self.gap.gather(1, column[:, None]).squeeze(1) <= limit
        rows = (~self.broken & near).nonzero().squeeze(1)
        if not len(rows):
            return
        column = column[rows]
        chosen, target = self.problem.select(rows), self.targets[rows, column]
        # Where nothing can be smoothed, other starts are what makes runs differ.
        start = chosen.x if self.smooth else chosen.random_start(self.runs)
        if way.far:
            start = _far(chosen, self.runs)
        cooling = Cooling(*way.cooling, steps) if way.cooling and self.smooth else None
        run = ascend(replace(chosen, cooling=cooling), start, target, steps, way.first)
        self._learn(rows, run, column)
        if cooling is not None and bool((~run.hit).any()):
            left = ~run.hit
            own = ascend(chosen.select(left), run.points[left], target[left], _FINISH, _SHORT)
            self._learn(rows[left], own, column[left])

    def turn(self, which: Tensor, steps: int) -> None:
        """An ascent against the gradient for the unbroken of some samples, bool (n,)."""
        rows = (which & ~self.broken).nonzero().squeeze(1)
        if len(rows):
            chosen = self.problem.select(rows)
            self._learn(rows, ascend(chosen, chosen.x, self.targets[rows, 0], steps, 1.0, -1))

    def _learn(self, rows: Tensor, run: Ascent, column: Tensor | None = None) -> None:
        """Take what a run reached for some samples, toward the targets in their columns.

        Where it broke nothing, its point still counts if it is the best: on a randomised model,
        some draws may be wrong there.
        """
        better = per_sample(run.hit | (run.lead > self.best[rows]), run.points)
        self._take(rows, torch.where(better, run.points, self.answer[rows]), run.hit)
        self.best[rows] = self.best[rows].maximum(run.lead)
        if column is not None:
            self.gap[rows, column] = self.gap[rows, column].minimum(run.gap)

    def _take(self, rows: Tensor, points: Tensor, hit: Tensor) -> None:
        """Take points of some samples, and where they are misclassified."""
        self.answer[rows], self.broken[rows] = points, hit
        if self.problem.tell is not None:
            self.problem.tell(self.problem.rows[rows[hit]], self.stage)

    def hear_others(self) -> Tensor:
        """Second opinions; where they or their absence cast doubt on the gradients: bool (n,)."""
        going, doubtful = ~self.broken, torch.zeros_like(self.broken)
        for _ in range(_OPINIONS):
            rows = (going & ~self.broken).nonzero().squeeze(1)
            if not len(rows):
                break
            chosen = self._fresh(rows)
            points = Square(steps=_QUERIES)(chosen)
            with torch.no_grad():
                logits = chosen.logits(points)
            others = logits.scatter(1, chosen.y[:, None], -math.inf)
            run = ascend(chosen, points, others.argmax(1), _STEPS, 1.0)
            reached = margin(logits, chosen.y).maximum(run.lead)
            added, gained = reached - self.best[rows], self.best[rows] - self.clean[rows]
            going[rows] = added > _WORTH * gained
            doubtful[rows] |= added >= _DOUBTFUL * gained
            self._learn(rows, run)
            self.best[rows] = self.best[rows].maximum(reached)
        gained = self.best - self.clean
        return doubtful & ((gained <= 0) | (-self.best <= _HOPE * gained))

    def _fresh(self, rows: Tensor) -> Problem:
        """Some samples with another seed, since Square and Boundary draw the same each time."""
        self.runs += 1
        return replace(self.problem.select(rows), seed=self.problem.seed ^ (self.runs << 32))

    def ask(self, attack: Attack, which: Tensor) -> None:
        """Give the unbroken of some samples to another attack."""
        rows = (which & ~self.broken).nonzero().squeeze(1)
        if not len(rows):
            return
        chosen = self._fresh(rows)
        points = chosen.threat.project(attack(chosen), chosen.x)
        with torch.no_grad():
            hit = decided(chosen.logits(points), chosen.y)
        self._take(rows, torch.where(per_sample(hit, points), points, self.answer[rows]), hit)


def _end(problem: Problem, gradient: Tensor) -> Tensor:
    """The points where a budget ends that climbs a gradient (n, *shape)."""
    threat = problem.threat
    return threat.advance(problem.x, gradient, 2 * threat.eps, problem.x)


def _far(problem: Problem, stream: int) -> Tensor:
    """Random points at the end of the budget: corners of the L-infinity ball and of L1's, points of
    the L2 sphere. Ascents from there reach basins that those from inside hardly ever do."""
    return _end(problem, problem.normal(stream))
