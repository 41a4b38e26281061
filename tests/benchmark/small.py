"""A linear model of four pixels, attacks that return what a test wants, and how tests call them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, Attack, Facts, Problem, ThreatModel
from attacks.problem import Family
from benchmark import Report, UserError, evaluate
from benchmark.executors import IN_PROCESS
from benchmark.judge.evaluator import Samples, attack_block
from benchmark.judge.records import Cell, IntArray
from benchmark.judge.subject import Subject
from benchmark.run.measuring import Advance, measured

N = 6


X, Y = torch.full((N, 4), 0.5), torch.zeros(N, dtype=torch.int64)


class Linear(nn.Module):
    """Class 0 where the first pixel is at most 0.6: the closest other point is 0.1 away."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, classes))
        self.bias = nn.Parameter(torch.full((classes,), -9.0))
        with torch.no_grad():
            self.weight[0, 0], self.bias[0], self.bias[1] = -1.0, 0.6, 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Wrapped(nn.Module):
    """A model whose logits are changed by a function."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.change = Linear(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.inner(x))


@dataclass(frozen=True)
class Returning:
    """An attack that returns what a function makes of its problem."""

    points: Callable[[Problem], Any]
    family: Family = "fixed-budget"

    @property
    def facts(self) -> Facts:
        return Facts(self.family, minimises=self.family == "minimal-norm")

    def __call__(self, problem: Problem) -> Any:
        return self.points(problem)


def evaluate_small(model: nn.Module | None = None, **options: Any) -> Report:
    chosen = {"x": X, "y": Y, "eps": 0.2, "attacks": [PGD(steps=5)]} | options
    return evaluate(model or Linear().eval(), **chosen)


def attacked(points: Callable[[Problem], Any], **options: Any) -> Report:
    return evaluate_small(attacks=[Returning(points)], **options)


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        evaluate_small(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


class Dropping(Linear):
    """In training mode, the bias goes and batch statistics move."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.norm = nn.Dropout(0.9), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(self.drop(x)))


class Noted(list[Any]):
    """A list in which an attack of a test notes something: copies of the attack note it here."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Noted":
        return self


def measure_attack(
    subject: Subject,
    samples: Samples,
    index: IntArray,
    threat: ThreatModel,
    attack: Attack,
    seed: int,
    cell: Cell,
    block: int,
    advance: Advance = lambda samples, broken, kept=False: None,
) -> None:
    """Attack samples, `block` at a time, in this process: see `measured`."""
    unit = partial(attack_block, IN_PROCESS.hold(subject), threat, attack, seed, {})
    IN_PROCESS.run(measured(unit, samples, index, cell, block, IN_PROCESS, advance))
