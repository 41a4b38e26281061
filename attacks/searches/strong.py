"""The strongest attack per unit of work: targeted ascents where they can still change a verdict."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from attacks.objectives import decided, margin, targeted_margin
from attacks.problem import Facts, NoGradientError, Problem, climb
from attacks.searches.boundary import Boundary
from attacks.searches.penalties import slopes
from attacks.searches.square import Square
from attacks.threat import per_sample
from attacks.working import Reached, Working, due

# The weight of the new step against the momentum, as in APGD.
_MOMENTUM = 0.75

# Each later round: the gap below which a sample is worth it, how many runs, and their steps.
# Measured on networks whose exact robust error is known: what can be broken at all is broken from
# gaps of a few percent.
_ROUNDS = ((0.25, 2, 60), (0.12, 4, 100), (0.06, 12, 100))

# Lengths of the first step, in eps, that restarts take in turn.
_FIRST = (1.0, 2.0, 0.5, 4.0)

# Second opinions that a sample may get, the queries and steps of each, by how much one must add to
# what was gained before for another to follow, and from how much on gradients are not believed.
_OPINIONS, _QUERIES, _STEPS = 10, 200, 30
_WORTH, _DOUBTFUL = 0.02, 0.1


@dataclass(frozen=True)
class Strong:
    """Targeted margin ascents by distance, restarts by promise, queries where gradients fail.

    1. Other classes are ranked by linearised distance at the clean image: the label's lead over the
       dual norm of its gradient (as DeepFool's step does, Moosavi-Dezfooli et al. 2016), which is
       measured for the 10 classes with the largest logits. Toward each of the nearest `classes`,
       one ascent of `steps` normalised gradient steps of the logit difference, from a random start,
       with APGD's momentum (Croce and Hein 2020) and a step size that falls from eps along a half
       cosine.
    2. Restarts go to samples whose gap is small: the lead that is left over what another eps would
       buy, by the gradient at the best point. The smaller the gap, the more and longer restarts.
       They begin at the end of the budget, with first steps of half to 4 eps in turn.
    3. A second opinion for the rest: a short Square attack (Andriushchenko et al. 2020), and an
       ascent from where it ended. A sample on which this rises higher than all before gets another.
    4. Samples on which a second opinion rose clearly higher, or nothing rose at all, have gradients
       that are not to be believed: they are given to Square with `queries` queries, and under L2 to
       the boundary attack with as many.

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

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if min(self.classes, self.steps, self.queries) < 1:
            raise ValueError("strong: classes, steps and queries must be at least 1")

    @property
    def facts(self) -> Facts:
        """A fixed-budget attack under both norms."""
        restarts = sum(count * (steps + 1) for _, count, steps in _ROUNDS)
        opinions = _OPINIONS * (_QUERIES + _STEPS + 3)
        asked = sum(
            1 + (attack.facts.passes or 0)
            for attack in (Square(steps=self.queries), Boundary(steps=self.queries))
        )
        passes = 2 + self.classes * (self.steps + 1) + restarts + opinions + asked
        return Facts("fixed-budget", passes=passes)

    def __call__(self, problem: Problem) -> Tensor:
        search = _Search(replace(problem, start=None))
        try:
            doubtful = self._climb(search)
        except NoGradientError:
            doubtful = ~search.broken
        search.ask(Square(steps=self.queries), doubtful)
        if problem.threat.norm == "l2":
            search.ask(Boundary(steps=self.queries), doubtful)
        return search.answer

    def _climb(self, search: "_Search") -> Tensor:
        """Parts 1 to 3; the samples whose gradients are not to be believed, bool (n,)."""
        search.rank(self.classes)
        for place in range(search.targets.shape[1]):
            search.ascend(torch.full_like(search.problem.y, place), self.steps, 1.0, math.inf)
        for limit, count, steps in _ROUNDS:
            for turn in range(count):
                first = _FIRST[turn // 2 % len(_FIRST)]
                search.ascend(search.promising(turn % 2, limit), steps, first, limit)
        return search.hear_others()


class _Search:
    """What is known of each sample: points (n, *shape), where they are misclassified (n,), the
    margin at the clean image and the highest so far (n,); once ranked, the classes worth a try,
    nearest first, and the smallest gap to each so far (n, k)."""

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

    def rank(self, most: int) -> None:
        """Choose the other classes that are nearest to the clean image by linearised distance."""
        unbroken = self.problem.select(~self.broken)
        y = unbroken.y[:, None]
        slope, logits = slopes(unbroken, unbroken.x)
        distance = ((logits.gather(1, y) - logits) / slope).scatter(1, y, math.inf)
        nearest = distance.topk(min(most, logits.shape[1] - 1), dim=1, largest=False).indices
        self.targets = nearest.new_zeros(len(self.broken), nearest.shape[1])
        self.targets[~self.broken] = nearest
        self.gap = torch.full_like(self.targets, math.inf, dtype=distance.dtype)

    def promising(self, place: int, limit: float) -> Tensor:
        """The column (n,) of each sample's class of the smallest gap or, at place 1, of the second
        smallest where that is below the limit."""
        gap, order = self.gap.sort(dim=1, stable=True)
        place = min(place, order.shape[1] - 1)
        return torch.where(gap[:, place] < limit, order[:, place], order[:, 0])

    def ascend(self, column: Tensor, steps: int, first: float, limit: float) -> None:
        """One run per unbroken sample whose smallest gap is below the limit, each toward the target
        in its column (n,)."""
        self.runs += 1
        rows = (~self.broken & (self.gap.amin(1) <= limit)).nonzero().squeeze(1)
        if not len(rows):
            return
        column = column[rows]
        chosen = self.problem.select(rows)
        far = math.isfinite(limit)
        start = _far(chosen, self.runs) if far else chosen.random_start(self.runs)
        run = _ascend(chosen, start, self.targets[rows, column], steps, first)
        self.answer[rows], self.broken[rows] = run.points, run.hit
        self.best[rows] = self.best[rows].maximum(run.lead)
        self.gap[rows, column] = self.gap[rows, column].minimum(run.gap)

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
            run = _ascend(chosen, points, others.argmax(1), _STEPS, 1.0)
            self.answer[rows], self.broken[rows] = run.points, run.hit
            reached = margin(logits, chosen.y).maximum(run.lead)
            added, gained = reached - self.best[rows], self.best[rows] - self.clean[rows]
            going[rows] = added > _WORTH * gained
            doubtful[rows] |= added >= _DOUBTFUL * gained
            self.best[rows] = self.best[rows].maximum(reached)
        return doubtful

    def _fresh(self, rows: Tensor) -> Problem:
        """Some samples with another seed, since Square and Boundary draw the same each time."""
        self.runs += 1
        return replace(self.problem.select(rows), seed=self.problem.seed ^ (self.runs << 32))

    def ask(self, attack: Square | Boundary, which: Tensor) -> None:
        """Give the unbroken of some samples to another attack."""
        rows = (which & ~self.broken).nonzero().squeeze(1)
        if not len(rows):
            return
        chosen = self._fresh(rows)
        points = chosen.threat.project(attack(chosen), chosen.x)
        with torch.no_grad():
            hit = decided(chosen.logits(points), chosen.y)
        self.answer[rows[hit]] = points[hit]
        self.broken[rows] = hit


def _far(problem: Problem, stream: int) -> Tensor:
    """Random points at the end of the budget: corners of the L-infinity ball, points of the L2
    sphere. Ascents from there reach basins that those from inside hardly ever do."""
    threat = problem.threat
    return threat.edge(problem.x, threat.ascent(problem.normal(stream)))


@dataclass
class _Ascent(Reached):
    """How far an ascent is with each sample: points (n, *shape), misclassified where `hit` (n,);
    the highest lead of the target so far (n,), and the gap there (n,); the target (n,), the point
    before and the gradient (n, *shape)."""

    lead: Tensor
    gap: Tensor
    target: Tensor
    previous: Tensor
    gradient: Tensor


def _ascend(problem: Problem, start: Tensor, target: Tensor, steps: int, first: float) -> _Ascent:
    """Climb the lead of each sample's target (n,) over its label, from `start` (n, *shape)."""
    threat = problem.threat
    tiny = torch.finfo(start.dtype).tiny
    hit = torch.zeros_like(target, dtype=torch.bool)
    lead = start.new_full((len(problem),), -math.inf)
    state = _Ascent(start, hit, lead, -lead, target, start, torch.zeros_like(start))
    batch = Working(problem, state)
    for step in range(steps + 1):
        objective = partial(targeted_margin, target=state.target)
        state.gradient, value, logits = climb(batch.problem, state.points, objective)
        new = value > state.lead
        slope = threat.dual_length(state.gradient)
        state.lead = torch.where(new, value, state.lead)
        state.gap = torch.where(new, -value / (threat.eps * slope).clamp_min(tiny), state.gap)
        state.hit |= decided(logits, batch.problem.y)
        if step == steps or (due(step) and not batch.retire(state.hit)):
            break
        # A sample that is broken but still in the batch stays where it is.
        moving = per_sample((~state.hit).to(start.dtype), state.points)
        size = first * threat.eps * (1 + math.cos(math.pi * step / steps)) / 2
        x, points, threat = batch.problem.x, state.points, batch.problem.threat
        ahead = threat.project(points + size * threat.ascent(state.gradient), x)
        weight = _MOMENTUM if step else 1.0
        move = weight * (ahead - points) + (1 - weight) * (points - state.previous)
        state.previous, state.points = points, threat.project(points + moving * move, x)
    return batch.finish()
