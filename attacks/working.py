"""The batch that a search works on: all that it knows of its samples, which leave once decided."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from attacks.objectives import decided
from attacks.problem import Problem, positions
from attacks.threat import per_sample

# How many times the gain of the last doubling of its steps each doubling to come may bring a walk.
TRUST = 2.0


@dataclass
class State:
    """What a search knows of each of its samples.

    A search derives a dataclass from it. All fields are tensors whose first dimension is the
    sample, so that samples are selected in all of them together.
    """

    def select(self, keep: Tensor) -> Self:
        """A copy for some samples: `keep` is bool (n,) or positions."""
        keep = positions(keep)
        return type(self)(*(getattr(self, field.name)[keep] for field in fields(self)))

    def put(self, rows: Tensor, other: Self) -> None:
        """Write the state of other samples into some rows: bool (n,) or positions. No two fields of
        this state may be one tensor."""
        rows = positions(rows)
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)


S = TypeVar("S", bound=State)


class Working(Generic[S]):
    """The samples that a search still works on, and where it left the others.

    problem  of the samples that are left.
    state    of the samples that are left. It is one object from first to last. The search may
             assign new tensors to its fields; it may change a tensor in place only if it created
             it.

    A search reads:

        batch = Working(problem, state)
        for step in range(steps):
            ...  # work on batch.problem and state
            if due(step) and not batch.retire(state.hit):
                break
        final = batch.finish()
    """

    def __init__(self, problem: Problem, state: S) -> None:
        self.problem, self.state = problem, state
        self._rows = torch.arange(len(problem), device=problem.x.device)
        self._final: S | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def retire(self, done: Tensor) -> bool:
        """Let some samples, bool (n,), leave with the state that they have. Whether any are left.

        This waits once for an accelerator; `due` says at which steps that is worth it.
        """
        count = int(done.sum())
        if count:
            # Sorted, so that no wait is needed to know who leaves: who stays comes first.
            keep, leave = done.byte().argsort(stable=True).split([len(self) - count, count])
            # A copy of everybody when the first leave, and of those who leave after that.
            if self._final is None:
                self._final = self.state.select(self._rows)
            else:
                self._final.put(self._rows[leave], self.state.select(leave))
            self._rows, self.problem = self._rows[keep], self.problem.select(keep)
            for field in fields(self.state):
                setattr(self.state, field.name, getattr(self.state, field.name)[keep])
        return len(self) > 0

    def finish(self) -> S:
        """The state of all samples, each as it left, in the order of the problem that was given."""
        if self._final is None:
            return self.state
        self._final.put(self._rows, self.state)
        return self._final


def due(step: int) -> bool:
    """Whether to look, at this step, for samples that can leave the working batch.

    Looking synchronises an accelerator, so it happens at every step at first and then less often,
    up to every 8th; a decided sample stays for at most a quarter of the steps that it has taken.
    """
    return step % min(8, 1 << max(0, step.bit_length() - 3)) == 0


@dataclass
class Reached(State):
    """Where a search is with each sample: points (n, *shape), misclassified where `hit` (n,)."""

    points: Tensor
    hit: Tensor


@dataclass
class Closest(State):
    """The closest misclassified points known (n, *shape), and their distances (n,), which are
    infinite where there is none."""

    points: Tensor
    length: Tensor

    def improve(self, other: "Closest") -> None:
        """Take the other points where they are closer."""
        closer = other.length < self.length
        self.length = torch.where(closer, other.length, self.length)
        self.points = torch.where(per_sample(closer, self.points), other.points, self.points)


def far(x: Tensor) -> Tensor:
    """An infinite distance (n,) for each of the images x (n, *shape)."""
    return x.new_full((len(x),), math.inf)


def hopeless(length: Tensor, past: Tensor, doublings: float | Tensor, budget: float) -> Tensor:
    """Which samples (n,) of a walk will not come within the budget: not even if each doubling of
    its steps to come brings twice what the last one did, which took distances (n,) from `past` to
    `length`. `doublings` is how many are to come, of all or of each sample (n,)."""
    gain = TRUST * doublings * (past / length).log()
    return length * torch.exp(-gain) > budget


@torch.no_grad()
def standing(problem: Problem) -> tuple[Tensor, Tensor]:
    """The positions (m,) of the samples that are not misclassified as they are, which alone need an
    attack, and the logits (n, classes) at all clean images. Costs a forward."""
    logits = problem.logits(problem.x)
    return (~decided(logits, problem.y)).nonzero().squeeze(1), logits


def in_restarts(
    problem: Problem, restarts: int, run: Callable[[Problem, int], tuple[Tensor, Tensor]]
) -> Tensor:
    """Points (n, *shape) of several runs, each on the samples that the runs before did not break.

    `run` takes a problem and the run's number, and gives points (n, *shape) and where they are
    misclassified, bool (n,).
    """
    reached = Reached(problem.x.clone(), torch.zeros_like(problem.y, dtype=torch.bool))
    batch = Working(problem, reached)
    for restart in range(restarts):
        if not len(batch):
            break
        reached.points, reached.hit = run(batch.problem, restart)
        batch.retire(reached.hit)
    return batch.finish().points
