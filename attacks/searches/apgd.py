"""Auto-PGD: projected gradient ascent that sets its own step sizes."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.objectives import OBJECTIVES, Objective, check_objective, decided
from attacks.problem import Facts, Problem, climb
from attacks.threat import NORMS, per_sample
from attacks.working import State, Working, due, in_restarts

# Croce and Hein (2020), section 3: the weight of the new step against the momentum, the length of
# the first stretch between checkpoints and by how much the next are shorter, the shortest, in
# percent of the steps, and the share of steps that must have risen for a step size to be kept.
_MOMENTUM = 0.75
_FIRST, _SHORTER, _SHORTEST = 22, 3, 6
_RISEN = 0.75

# Croce and Hein (2021), section 4: under L1, budgets that come before the threat's, as multiples of
# it, and the share of the steps that each has.
_WIDER = ((3, 0.3), (2, 0.3))
_LEAST = 4  # steps, for each share to be one at least


@dataclass(frozen=True)
class APGD:
    """Auto-PGD (Croce and Hein 2020, algorithm 1).

    steps      gradient steps of each restart.
    restarts   runs from different random starts; each works on what the ones before left.
    objective  "cross-entropy", "margin", "probability-margin" or "dlr". `targeted:apgd` pushes to
               one class at a time.

    Under L1 the first steps have three and two times the budget (Croce and Hein 2021, section 4).

    The step size starts at 2 eps. At each checkpoint a sample whose value rose in less than 3 of 4
    steps, or that has found no better point since the last checkpoint with the same step size, goes
    back to its best point and halves its step size.

    A sample counts as broken at any iterate, and stops there. Returns points (n, *shape) in the
    ball and the box. Raises ValueError for hyperparameters out of range.

    Differs from the source: starts are uniform in the ball; a broken sample stops at once. Under L1
    a step goes along the steepest pixels, each to its bound, not along a share of them that adapts.

    >>> from attacks.threat import ThreatModel
    >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)
    >>> x, y = torch.tensor([[0.6, 0.5], [0.9, 0.5]]), torch.tensor([0, 0])
    >>> points = APGD(steps=10)(Problem(model, x, y, ThreatModel("linf", 0.2)))
    >>> model(points).argmax(1)  # the first is 0.1 from the boundary, the second 0.4
    tensor([1, 0])
    """

    steps: int = 100
    restarts: int = 1
    objective: str = "cross-entropy"

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ValueError("apgd: steps and restarts must be at least 1")
        check_objective("apgd", self.objective, OBJECTIVES)

    @property
    def facts(self) -> Facts:
        """A fixed-budget attack under every norm."""
        passes = self.restarts * (self.steps + 1)
        return Facts("fixed-budget", NORMS, passes=passes)

    def __call__(self, problem: Problem) -> Tensor:
        return in_restarts(problem, self.restarts, self._restart)

    def maximise(self, problem: Problem, restart: int = 0) -> Tensor:
        """The point of the highest value of every sample, broken or not."""
        return self._restart(problem, restart, stop=False)[0]

    def _restart(self, problem: Problem, restart: int, stop: bool = True) -> tuple[Tensor, Tensor]:
        """The best points (n, *shape), misclassified ones where found, and where that is (n,)."""
        points = self._start(problem, restart)
        if problem.threat.norm != "l1" or self.steps < _LEAST:
            return self._run(problem, points, self.steps, stop)

        # What is misclassified at the start needs no wider budget.
        points, hit = self._run(problem, points, 0, stop)
        rows = (~hit if stop else torch.ones_like(hit)).nonzero().squeeze(1)
        if len(rows):
            chosen, ahead, left = problem.select(rows), points[rows], self.steps - 1
            for times, share in _WIDER:
                threat, passes = chosen.threat, int(share * self.steps)
                wide = replace(chosen, threat=replace(threat, eps=times * threat.eps))
                ahead, _ = self._run(wide, ahead, passes - 1, stop=False)
                left -= passes
            ahead = chosen.threat.project(ahead, chosen.x)
            points, hit = points.clone(), hit.clone()
            points[rows], hit[rows] = self._run(chosen, ahead, left, stop)
        return points, hit

    def _run(
        self, problem: Problem, points: Tensor, steps: int, stop: bool
    ) -> tuple[Tensor, Tensor]:
        """What `_restart` gives, of one run from some points (n, *shape)."""
        objective = OBJECTIVES[self.objective]
        state = _State.begin(problem, points, objective)
        batch = Working(problem, state)
        checkpoints = _checkpoints(steps)
        window = 0
        for step in range(steps):
            if stop and due(step) and not batch.retire(state.hit):
                break
            state.step(batch.problem, objective, 1.0 if step == 0 else _MOMENTUM, stop)
            window += 1
            if step + 1 in checkpoints:
                state.check(window)
                window = 0
        final = batch.finish()
        return final.best, final.hit

    def _start(self, problem: Problem, restart: int) -> Tensor:
        if problem.start is not None and restart == 0:
            return problem.threat.project(problem.start, problem.x)
        return problem.random_start(restart)


@dataclass
class _State(State):
    """What a run knows of each sample: points and gradients (n, *shape), values (n,)."""

    points: Tensor
    previous: Tensor
    gradient: Tensor
    value: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    checked: Tensor  # the best value at the last checkpoint
    size: Tensor
    kept: Tensor  # whether the last checkpoint kept the step size
    rises: Tensor  # since the last checkpoint
    hit: Tensor

    @classmethod
    def begin(cls, problem: Problem, points: Tensor, objective: Objective) -> "_State":
        gradient, value, logits = climb(problem, points, objective)
        size = torch.full_like(value, 2 * problem.threat.eps)
        hit = decided(logits, problem.y)
        return cls(
            points, points, gradient, value, points, gradient, value, value, size,
            torch.ones_like(hit), torch.zeros_like(value), hit,
        )  # fmt: skip

    def step(self, problem: Problem, objective: Objective, weight: float, stop: bool) -> None:
        """One step with momentum; `stop`: what is broken keeps its first misclassified point."""
        threat = problem.threat
        size = per_sample(self.size, self.points)
        moved = threat.advance(self.points, self.gradient, size, problem.x) - self.points
        moved = weight * moved + (1 - weight) * (self.points - self.previous)
        self.previous, self.points = self.points, threat.project(self.points + moved, problem.x)
        before = self.value
        self.gradient, self.value, logits = climb(problem, self.points, objective)
        self.rises += self.value > before
        better = self.value > self.best_value
        if stop:
            new = decided(logits, problem.y)
            better = (better | new) & ~self.hit
            self.hit = self.hit | new
        self.best_value = torch.where(better, self.value, self.best_value)
        wide = per_sample(better, self.points)
        self.best = torch.where(wide, self.points, self.best)
        self.best_gradient = torch.where(wide, self.gradient, self.best_gradient)

    def check(self, window: int) -> None:
        """Condition 1 or 2 of the source's section 3: halve the step, go back to the best point."""
        halve = self.rises < _RISEN * window
        halve |= self.kept & (self.best_value <= self.checked)
        self.size = torch.where(halve, self.size / 2, self.size)
        wide = per_sample(halve, self.points)
        self.points = torch.where(wide, self.best, self.points)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)
        self.value = torch.where(halve, self.best_value, self.value)
        self.kept, self.checked = ~halve, self.best_value
        self.rises = torch.zeros_like(self.rises)


def _checkpoints(steps: int) -> set[int]:
    """The steps after which step sizes are reconsidered (the source's section 3)."""
    at, stretch, checkpoints = 0, _FIRST, set()
    while at + stretch < 100:
        at += stretch
        checkpoints.add(-(-at * steps // 100))  # rounded up
        stretch = max(stretch - _SHORTER, _SHORTEST)
    return checkpoints
