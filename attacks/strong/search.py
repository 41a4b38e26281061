"""What `strong` knows of each sample, and the moves by which it learns more."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from attacks.objectives import decided, margin
from attacks.problem import Attack, NoGradientError, Problem, differentiate, positions
from attacks.searches.ddn import DDN
from attacks.searches.square import Square
from attacks.smoothing import WARM, Cooling
from attacks.strong.ascent import Ascent, ascend
from attacks.targets import highest_others
from attacks.threat import per_sample
from attacks.working import TRUST
from attacks.wrappers.transfer import HasSurrogate

# Other classes that are surveyed, at most.
SURVEYED = 10

# Steps on the network itself after a smoothed ascent, and their first length in eps.
FINISH, _SHORT = 15, 0.25

# Second opinions that a sample may get, the queries and steps of each, by how much one must add to
# what was gained before for another to follow, and from how much on gradients are not believed.
OPINIONS, QUERIES, STEPS = 10, 100, 30
_WORTH, _DOUBTFUL = 0.02, 0.1

# How many of the nearest classes get an ascent from a surrogate, and one in which cuts are passed.
SEEDED = THROUGH = 2

# The part of the queries that comes first.
PART = 8

# How many times the lead that all attacks won back may be left where more queries can do.
_HOPE = 1.0

# The same where the other classes are tried, however large the gaps to them, and how many times as
# much must be lacking by the smallest gap.
_NEARLY, _FAR_MORE = 0.5, 4.0


class Way(NamedTuple):
    """How an ascent goes: temperatures, or the network's own gradients; from the image, from a
    random point at the end of the budget, or from the best point so far; the length of the first
    step, in eps."""

    cooling: tuple[float, float] | None
    start: Literal["image", "far", "best"]
    first: float


class Search:
    """What is known of each sample: points (n, *shape), where they are misclassified (n,), also by
    no more than rounding (n,), the margin at the clean image and the highest so far (n,); once
    surveyed, the classes by promise, and the smallest gap to each so far (n, k).

    runs    how many of the random starts and of the seeds have been used.
    smooth  whether anything in the model could be smoothed.
    stage   what `Problem.tell` is told that broke a sample.
    """

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
        self.tied = torch.zeros_like(self.broken)
        self.closest = problem.x.clone()
        self.runs = 0
        self.smooth = True
        self.stage = ""

    def survey(self) -> None:
        """One long step toward each of the other classes, by whose ends they are ranked."""
        rows = (~self.broken).nonzero().squeeze(1)
        unbroken = self.problem.select(rows)
        y = unbroken.y[:, None]
        cooling = Cooling(WARM[0], WARM[0], SURVEYED + 1)
        smoothed = replace(unbroken, cooling=cooling)

        # The gradients toward all classes, of one forward at the clean image.
        x = unbroken.x.detach().requires_grad_()
        logits = smoothed.logits(x)
        targets = highest_others(logits, unbroken.y, SURVEYED)
        self.targets = targets.new_zeros(len(self.broken), targets.shape[1])
        self.targets[rows] = targets
        leads = (logits.gather(1, targets) - logits.gather(1, y)).unbind(1)
        pushes = [differentiate(lead, x, retain=True) for lead in leads]

        # The ends of the steps, class by class, for whom is left.
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
        self.targets[rows] = targets.gather(1, order)
        self.gap = gap.new_full(self.targets.shape, math.inf)
        self.gap[rows] = gap.gather(1, order)
        self.smooth = cooling.softened > 0

    def nearest(self, place: int) -> Tensor:
        """The column (n,) of each sample's class that the survey put at this place."""
        return torch.full_like(self.problem.y, place)

    def promising(self, limit: float, way: Way) -> list[Tensor]:
        """The columns (n,) of each sample's classes of the two smallest gaps. Where the second is
        not below the limit, it is the first again if the way is a random one, which goes elsewhere
        each time."""
        gap, order = self.gap.sort(dim=1, stable=True)
        if order.shape[1] == 1:
            return [order[:, 0]] * (2 if way.start == "far" else 1)
        again = (gap[:, 1] >= limit) & (way.start == "far")
        return [order[:, 0], torch.where(again, order[:, 0], order[:, 1])]

    @property
    def hopeful(self) -> Tensor:
        """Samples (n,) that rose most of the way, and from whose gradients that cannot be seen: by
        them far more of eps is lacking. Those of saturated outputs rank no classes."""
        gained = self.best - self.clean
        lacking = -self.best / gained.clamp_min(torch.finfo(gained.dtype).tiny)
        return (lacking <= _NEARLY) & (self.gap.amin(1) > _FAR_MORE * lacking)

    def ascend(
        self,
        columns: Sequence[Tensor],
        steps: int,
        way: Way,
        limit: float,
        also: Tensor | None = None,
    ) -> None:
        """One run per unbroken sample and column (n,), all together, toward the target in it, where
        the gap to that is at most the limit, and of samples that are `also` worth it, bool (n,)."""
        parts = [self._begin(column, way, limit, also) for column in columns]
        rows, column, start = (torch.cat(of_each) for of_each in zip(*parts, strict=True))
        if not len(rows):
            return
        chosen, target = self.problem.select(rows), self.targets[rows, column]
        cooling = Cooling(*way.cooling, steps) if way.cooling and self.smooth else None
        run = ascend(replace(chosen, cooling=cooling), start, target, steps, way.first)
        runs = [(rows, run, column)]
        left = positions(~run.hit) if cooling is not None else rows[:0]
        if len(left):
            own = ascend(chosen.select(left), run.points[left], target[left], FINISH, _SHORT)
            runs.append((rows[left], own, column[left]))
        for of, reached, toward in runs:
            # A sample is in each part once.
            for part in _split(of):
                self._learn(of[part], reached.select(part), toward[part])

    def _begin(
        self, column: Tensor, way: Way, limit: float, also: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The rows (m,) of the unbroken samples whose gap in a column (n,) is at most the limit, or
        which are `also` worth it, their columns (m,), and where the way begins (m, *shape)."""
        self.runs += 1
        near = self.gap.gather(1, column[:, None]).squeeze(1) <= limit
        near = near if also is None else near | also
        rows = (~self.broken & near).nonzero().squeeze(1)
        if way.start == "best":
            return rows, column[rows], self.answer[rows]
        chosen = self.problem.select(rows)
        if way.start == "far":
            return rows, column[rows], _far(chosen, self.runs)
        # Where nothing can be smoothed, other starts are what makes runs differ.
        start = chosen.x if self.smooth else chosen.random_start(self.runs)
        return rows, column[rows], start

    def seed(self, steps: int) -> None:
        """Short ascents from where those on the model's own surrogate end, where it has one, toward
        the nearest classes (as seeded CW, fractal classifiers, section 4.1)."""
        model = self.problem.model
        if not isinstance(model, HasSurrogate):
            return
        surrogate = model.surrogate()
        for column in self.gap.argsort(dim=1, stable=True)[:, :SEEDED].unbind(1):
            rows = (~self.broken).nonzero().squeeze(1)
            if not len(rows):
                return
            chosen, target = self.problem.select(rows), self.targets[rows, column[rows]]
            crafting = replace(chosen, model=surrogate, cooling=Cooling(*WARM, steps))
            try:
                start = ascend(crafting, chosen.x, target, steps, 1.0).points
            except NoGradientError:  # which the model itself may have
                return
            self._learn(rows, ascend(chosen, start, target, FINISH, _SHORT), column[rows])

    def pass_through(self, which: Tensor, steps: int) -> None:
        """Ascents of the unbroken of some samples, bool (n,), for which what cuts the gradient
        counts as the identity, where anything cuts it."""
        for place in range(min(THROUGH, self.targets.shape[1])):
            rows = (which & ~self.broken).nonzero().squeeze(1)
            if not len(rows):
                return
            cooling = Cooling(*WARM, steps, through=True)
            chosen, target = self.problem.select(rows), self.targets[rows, place]
            if not place and not _is_cut(chosen):
                return
            try:
                run = ascend(replace(chosen, cooling=cooling), chosen.x, target, steps, 1.0)
            except NoGradientError:  # what comes back in another shape stays cut off
                return
            self._learn(rows, run)

    def turn(self, which: Tensor, steps: int) -> None:
        """An ascent against the gradient for the unbroken of some samples, bool (n,)."""
        rows = (which & ~self.broken).nonzero().squeeze(1)
        if len(rows):
            chosen = self.problem.select(rows)
            self._learn(rows, ascend(chosen, chosen.x, self.targets[rows, 0], steps, 1.0, -1))

    def _learn(self, rows: Tensor, run: Ascent, column: Tensor | None = None) -> None:
        """Take what a run reached for some samples, toward the targets in their columns.

        Where it broke nothing, where it ended still counts: see `_take`.
        """
        self._take(rows, run.points, run.hit, run.tied, run.lead)
        if column is not None:
            self.gap[rows, column] = self.gap[rows, column].minimum(run.gap)

    def _take(self, rows: Tensor, points: Tensor, hit: Tensor, tied: Tensor, lead: Tensor) -> None:
        """Take points of some samples where they are misclassified.

        Where nothing is, the best ones are kept: those that are misclassified by no more than
        rounding, which may count, and then those of the highest lead (m,) on the way to them, where
        some draws of a randomised model may be wrong.
        """
        rises, known = lead > self.best[rows], self.tied[rows]
        better = (tied & ~known) | (rises & (tied | ~known))
        better = hit | (~self.broken[rows] & better)
        self.answer[rows] = torch.where(per_sample(better, points), points, self.answer[rows])
        self.tied[rows] |= tied
        self.broken[rows] |= hit
        self.best[rows] = self.best[rows].maximum(lead)
        if self.problem.tell is not None:
            self.problem.tell(self.problem.rows[rows[hit]], self.stage)

    def hear_others(self) -> Tensor:
        """Second opinions; where they or their absence cast doubt on the gradients: bool (n,)."""
        going, doubtful = ~self.broken, torch.zeros_like(self.broken)
        for _ in range(OPINIONS):
            rows = (going & ~self.broken).nonzero().squeeze(1)
            if not len(rows):
                break
            chosen = self._fresh(rows)
            points = Square(steps=QUERIES)(chosen)
            with torch.no_grad():
                logits = chosen.logits(points)
            target = highest_others(logits, chosen.y, 1)[:, 0]
            run = ascend(chosen, points, target, STEPS, 1.0)
            reached = margin(logits, chosen.y).maximum(run.lead)
            added, gained = reached - self.best[rows], self.best[rows] - self.clean[rows]
            going[rows] = added > _WORTH * gained
            doubtful[rows] |= added >= _DOUBTFUL * gained
            self._learn(rows, run)
            self.best[rows] = self.best[rows].maximum(reached)
        gained = self.best - self.clean
        return doubtful & ((gained <= 0) | (-self.best <= _HOPE * gained))

    def _fresh(self, rows: Tensor) -> Problem:
        """Some samples with another seed, since these attacks draw the same each time."""
        self.runs += 1
        return replace(self.problem.select(rows), seed=self.problem.seed ^ (self.runs << 32))

    def try_queries(self, queries: int, which: Tensor) -> tuple[Tensor, Tensor]:
        """Give the unbroken of some samples, bool (n,), to Square with so many queries, and say of
        which of them `PART` times as many may do, and of which logits show nothing."""
        before = self.best.clone()
        self.ask(Square(steps=max(1, queries)), which)
        gained = self.best - before
        promising = -self.best <= TRUST * math.log2(PART) * gained
        return which & promising, which & (self.best <= self.clean)

    def approach(self, which: Tensor, steps: int) -> Tensor:
        """The closest misclassified points by DDN, which follows decisions, for the unbroken of
        some samples, bool (n,), of which logits show nothing. They are where walks begin. Which
        samples these were (n,): none where there are no gradients."""
        blind = which & ~self.broken & (self.best <= self.clean)
        rows = blind.nonzero().squeeze(1)
        if not len(rows):
            return blind
        chosen = self.problem.select(rows)
        try:
            points = DDN(steps=steps)(chosen)
        except NoGradientError:  # which the model itself may have
            return torch.zeros_like(blind)
        self.closest[rows] = points
        self._judge(rows, chosen.threat.project(points, chosen.x))
        return blind

    def ask(self, attack: Attack, which: Tensor, starts: Tensor | None = None) -> None:
        """Give the unbroken of some samples, and where to start (n, *shape), to another attack."""
        rows = (which & ~self.broken).nonzero().squeeze(1)
        if not len(rows):
            return
        chosen = self._fresh(rows)
        if starts is not None:
            chosen = replace(chosen, start=starts[rows])
        self._judge(rows, chosen.threat.project(attack(chosen), chosen.x))

    def _judge(self, rows: Tensor, points: Tensor) -> None:
        """Take points of some samples that an attack gave, where they are misclassified."""
        chosen = self.problem.select(rows)
        with torch.no_grad():
            logits = chosen.logits(points)
        tied = logits.argmax(1) != chosen.y
        self._take(rows, points, decided(logits, chosen.y), tied, margin(logits, chosen.y))


def _split(rows: Tensor) -> list[Tensor]:
    """The positions of rows that come in rising runs, run by run."""
    ends = (rows.diff() <= 0).nonzero().squeeze(1) + 1
    return list(torch.arange(len(rows), device=rows.device).tensor_split(ends.cpu()))


def _is_cut(problem: Problem) -> bool:
    """Whether anything in the model cuts the gradient, by a forward of one sample."""
    cooling = Cooling(*WARM, 1, through=True)
    one = replace(problem.select(torch.zeros_like(problem.y[:1])), cooling=cooling)
    one.logits(one.x.detach().requires_grad_())
    return cooling.cuts > 0


def _end(problem: Problem, gradient: Tensor) -> Tensor:
    """The points where a budget ends that climbs a gradient (n, *shape)."""
    threat = problem.threat
    return threat.advance(problem.x, gradient, 2 * threat.eps, problem.x)


def _far(problem: Problem, stream: int) -> Tensor:
    """Random points at the end of the budget: corners of the L-infinity ball and of L1's, points of
    the L2 sphere. Ascents from there reach basins that those from inside hardly ever do."""
    return _end(problem, problem.normal(stream))
