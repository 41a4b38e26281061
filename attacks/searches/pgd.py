"""Projected gradient descent."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.objectives import OBJECTIVES, Objective, check_objective, decided
from attacks.problem import Facts, Problem, climb
from attacks.threat import NORMS, per_sample
from attacks.working import Reached, Working, due, in_restarts


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent (Madry et al. 2018; RoBin, section 2.2).

    steps         gradient steps of each restart.
    step_size     length of a step, in the units and the norm of eps; default 2.5 * eps / steps,
                  and at least eps / 4.
    restarts      runs from different random starts; each works on what the ones before left.
    random_start  begin uniformly in the ball; without it, at the clean image (then all restarts
                  would be the same, so `restarts` must be 1). A problem's own start comes first.
    objective     "cross-entropy", "margin", "probability-margin" (PMA, Xie et al. 2024) or "dlr".

    A sample counts as broken at any iterate, and stops there. Returns points (n, *shape) in the
    ball and the box. Raises ValueError for hyperparameters out of range.

    Differs from the source: a step is at least eps / 4 by default. Madry et al.'s 2.5 * eps / steps
    is too short where there are many: they cross the ball once and then can no longer turn.

    >>> from attacks.threat import ThreatModel
    >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)
    >>> x, y = torch.tensor([[0.6, 0.5], [0.9, 0.5]]), torch.tensor([0, 0])
    >>> points = PGD(steps=10)(Problem(model, x, y, ThreatModel("l2", 0.2)))
    >>> model(points).argmax(1)  # the first is 0.1 from the boundary, the second 0.4
    tensor([1, 0])
    """

    steps: int = 100
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    objective: str = "cross-entropy"

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ValueError("pgd: steps and restarts must be at least 1")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"pgd: step_size must be above 0, not {self.step_size}")
        check_objective("pgd", self.objective, OBJECTIVES)
        if self.restarts > 1 and not self.random_start:
            raise ValueError("pgd: restarts need random_start")

    @property
    def facts(self) -> Facts:
        """A fixed-budget attack under every norm."""
        passes = self.restarts * (self.steps + 1)
        return Facts("fixed-budget", NORMS, passes=passes)

    def __call__(self, problem: Problem) -> Tensor:
        return in_restarts(problem, self.restarts, self._restart)

    def maximise(
        self, problem: Problem, restart: int = 0, objective: Objective | None = None
    ) -> Tensor:
        """The last iterate of every sample, broken or not: what adversarial training learns from.

        `restart` names the random start, so that each training step draws its own. `objective` is
        climbed in place of the attack's own.
        """
        size = self._size(problem)
        points = self._start(problem, restart)
        for _ in range(self.steps):
            gradient, _, _ = climb(problem, points, objective or OBJECTIVES[self.objective])
            points = self._step(problem, points, gradient, size)
        return points

    def _restart(self, problem: Problem, restart: int) -> tuple[Tensor, Tensor]:
        """The points of one run (n, *shape), and where they are misclassified (n,)."""
        size = self._size(problem)
        points = self._start(problem, restart)
        hit = torch.zeros_like(problem.y, dtype=torch.bool)
        state = _State(points, hit, torch.zeros_like(points))
        batch = Working(problem, state)
        for step in range(self.steps):
            state.gradient, _, logits = climb(
                batch.problem, state.points, OBJECTIVES[self.objective]
            )
            state.hit |= decided(logits, batch.problem.y)
            if due(step) and not batch.retire(state.hit):
                break
            # A sample that is broken but still in the batch stays where it is.
            moving = per_sample((~state.hit).to(points.dtype), state.points)
            state.points = self._step(batch.problem, state.points, state.gradient, size * moving)
        if len(batch):
            with torch.no_grad():
                state.hit |= decided(batch.problem.logits(state.points), batch.problem.y)
        final = batch.finish()
        return final.points, final.hit

    def _size(self, problem: Problem) -> float:
        return self.step_size or max(2.5 / self.steps, 0.25) * problem.threat.eps

    def _start(self, problem: Problem, restart: int) -> Tensor:
        if problem.start is not None and restart == 0:
            return problem.threat.project(problem.start, problem.x)
        return problem.random_start(restart) if self.random_start else problem.x

    def _step(
        self, problem: Problem, points: Tensor, gradient: Tensor, size: Tensor | float
    ) -> Tensor:
        return problem.threat.advance(points, gradient, size, problem.x)


@dataclass
class _State(Reached):
    """What a run knows of each sample, and the gradient (n, *shape) at its point."""

    gradient: Tensor
