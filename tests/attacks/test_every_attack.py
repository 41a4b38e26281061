"""What must hold of every registered attack, on any task and any model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import Attack, Problem, ThreatModel
from benchmark.spec.components import Component, configure
from benchmark.spec.registry import ATTACKS

# Each registered attack, as a user writes it: few steps, but every part of it is reached.
ROWS: dict[str, list[str]] = {
    "pgd": ["pgd/steps=5/restarts=2", "pgd/steps=4/random_start=false/objective=dlr"],
    "apgd": ["apgd/steps=6/restarts=2", "apgd/steps=5/objective=dlr"],
    "cw": ["cw/steps=8/searches=2", "cw/steps=8/searches=2/restarts=2/minimize"],
    "boundary": ["boundary/steps=24", "boundary/steps=24/minimize"],
    "ddn": ["ddn/steps=20", "ddn/steps=40/minimize"],
    "bpda": ["bpda:pgd/steps=4", "bpda:cw/steps=5/searches=2/minimize"],
    "smoothed": ["smoothed:pgd/steps=4", "smoothed:cw/steps=5/searches=2/minimize"],
    "rays": ["rays/steps=40", "rays/steps=40/minimize"],
    "square": ["square/steps=12/restarts=2"],
    "strong": ["strong/steps=3/queries=20"],
    "best-arm": ["best-arm:cw/steps=5/searches=2", "best-arm:foolbox:L2DDNAttack/steps=4"],
    "top-2": ["top-2:apgd/steps=3", "top-2:cw/steps=5/searches=2"],
    "softmax": ["softmax:pgd/steps=3", "softmax:square/steps=6"],
    "highest-arm": ["highest-arm:pgd/steps=3", "highest-arm:cw/steps=5/searches=2/minimize"],
    "average-gradient": ["average-gradient:pgd/steps=3"],
    "softmax-top-2": ["softmax-top-2:pgd/steps=3"],
    "robin": ["robin:pgd/steps=3", "robin:cw/steps=5/searches=2/minimize"],
    "hierarchical": ["hierarchical:pgd/steps=3", "hierarchical:cw/steps=5/searches=2/minimize"],
    "targeted": ["targeted:apgd/steps=3/objective=dlr", "targeted:boundary/steps=20/classes=2"],
    "transfer": ["transfer:pgd/steps=3/source=peer", "transfer:cw/steps=5/searches=2/targeted"],
    "seeded": ["seeded:cw/steps=5/searches=2", "seeded:square/steps=6/source=peer"],
    "foolbox": ["foolbox:PGD/steps=3", "foolbox:L2PGD/steps=3", "foolbox:L2DDNAttack/steps=4"],
    "torchattacks": [
        "torchattacks:APGD/steps=4",
        "torchattacks:CW/steps=4",
        "torchattacks:FAB/steps=3",
    ],
}

# Libraries work in float32, and draw random numbers for a block, not for a sample.
LIBRARIES = ("foolbox:", "torchattacks:")

# Far enough to break some samples, not all.
EPS = {"l2": 0.2, "linf": 0.04, "l1": 0.2}


def _configured(text: str) -> Any:
    return configure(ATTACKS, Component.model_validate(text))


def _foreign(text: str) -> bool:
    return any(library in text for library in LIBRARIES)


EVERY = [
    pytest.param(text, norm, id=f"{text}-{norm}")
    for texts in ROWS.values()
    for text in texts
    for norm in _configured(text).facts.norms
]
# By default one row of each attack, where many models are tried on it.
ONE_OF_EACH = [
    pytest.param(
        *case.values,
        id=case.id,
        marks=() if case.values[0] in [texts[0] for texts in ROWS.values()] else pytest.mark.slow,
    )
    for case in EVERY
]
OWN = [case for case in ONE_OF_EACH if not _foreign(str(case.values[0]))]


class Network(nn.Module):
    """A smooth network of a convolution, where there are images, and two layers. It offers arms and
    a surrogate."""

    def __init__(self, shape: tuple[int, ...], outputs: int, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weight(*sizes: int, gain: float) -> nn.Parameter:
            return nn.Parameter(gain * torch.randn(*sizes, generator=generator, dtype=dtype))

        self.kernel = None
        size = torch.Size(shape).numel()
        if len(shape) == 3:
            self.kernel = weight(4, shape[0], 3, 3, gain=0.5)
            size = 4 * size // shape[0]
        self.first = weight(size, 16, gain=6 / size**0.5)
        self.second = weight(16, outputs, gain=1)
        self.eval()

    def outputs(self, x: Tensor) -> Tensor:
        x = x - 0.5
        if self.kernel is not None:
            x = nn.functional.conv2d(x, self.kernel, padding=1).tanh()
        return (x.flatten(1) @ self.first).tanh() @ self.second

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(x)

    def arms(self, x: Tensor) -> Tensor:
        return self.outputs(x)

    def surrogate(self) -> Callable[[Tensor], Tensor]:
        return lambda x: 2 * self(x).tanh()


class Staged(Network):
    """A network that chooses one of two groups, then a class."""

    def __init__(self, shape: tuple[int, ...], classes: int, dtype: torch.dtype, seed: int) -> None:
        super().__init__(shape, classes + 2, dtype, seed)
        self.groups = 2 * torch.arange(classes) // classes

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.outputs(x)
        return outputs[:, :2], outputs[:, 2:]

    def forward(self, x: Tensor) -> Tensor:
        coarse, fine = self.stages(x)
        return fine.masked_fill(self.groups != coarse.argmax(1, keepdim=True), -100.0)


@dataclass(frozen=True)
class Task:
    shape: tuple[int, ...]
    classes: int
    batch: int
    dtype: torch.dtype
    wrong: tuple[int, ...] = ()  # the samples that are misclassified as they are

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.batch} of {shape} in {self.classes}, {len(self.wrong)} wrong"

    def problem(self, text: str, norm: str) -> Problem:
        kind = Staged if text.startswith("hierarchical") else Network
        model, peer = (kind(self.shape, self.classes, self.dtype, seed) for seed in (3, 4))
        generator = torch.Generator().manual_seed(self.batch)
        x = torch.rand(self.batch, *self.shape, generator=generator, dtype=self.dtype)
        if self.shape[0] == 3:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            logits = model(x)
        y = logits.argmax(1)
        for sample in self.wrong:
            y[sample] = logits[sample].argmin()
        return Problem(model, x, y, ThreatModel(norm, EPS[norm]), peers={"peer": peer})


TASKS = [
    Task((1, 8, 8), 2, 5, torch.float32, wrong=(1,)),
    Task((3, 6, 5), 10, 1, torch.float32),
    Task((3, 6, 5), 3, 5, torch.float64, wrong=(0, 4)),
    Task((12,), 10, 5, torch.float64),
    Task((12,), 2, 1, torch.float32),
    Task((1, 1, 1), 2, 5, torch.float64, wrong=(2,)),
    Task((1, 8, 8), 3, 5, torch.float32, wrong=(0, 1, 2, 3, 4)),
    Task((3, 6, 5), 2, 1, torch.float64, wrong=(0,)),
]


def _run(attack: Attack, problem: Problem) -> Tensor:
    """The points, after a look at all that an attack must leave alone."""
    x, y = problem.x.clone(), problem.y.clone()
    calls = torch.zeros(len(problem))
    one = lambda rows, _: calls.index_add_(0, rows, torch.ones(len(rows)))  # noqa: E731
    points = attack(replace(problem, meter=one))
    assert torch.equal(problem.x, x)
    assert torch.equal(problem.y, y)
    assert points is not problem.x
    assert calls.max() <= (attack.facts.passes or torch.inf)
    assert not points.requires_grad
    assert (points.shape, points.dtype) == (x.shape, x.dtype)
    assert points.isfinite().all()
    assert torch.equal(problem.threat.clamp(points), points)
    return points


def _wrong(problem: Problem, points: Tensor) -> Tensor:
    """Misclassified, or without logits to classify by."""
    with torch.no_grad():
        logits = problem.model(points)
    return (logits.argmax(1) != problem.y) | logits.isnan().any(1)


def _check(text: str, problem: Problem) -> Tensor:
    """What the family of an attack promises of its points."""
    attack = _configured(text)
    points = _run(attack, problem)
    threat, x = problem.threat, problem.x
    if attack.facts.family == "fixed-budget":
        precision = torch.float32 if _foreign(text) else x.dtype
        # Of all pixels together: their sum under L1, else the root of the sum of their squares.
        rounding = (
            2 * torch.finfo(precision).eps * x[0].numel() ** (1 if threat.norm == "l1" else 0.5)
        )
        assert (threat.distance(points, x) <= threat.eps * (1 + 1e-5) + rounding).all()
    else:
        assert (_wrong(problem, points) | (points == x).flatten(1).all(1)).all()
    return points


def test_every_registered_attack_has_a_row() -> None:
    missing = ATTACKS._builtin.keys() - ROWS.keys()
    assert not missing, f"add a row with small options to ROWS for: {', '.join(missing)}"
    for name, texts in ROWS.items():
        assert {Component.model_validate(text).name.partition(":")[0] for text in texts} == {name}


@pytest.mark.parametrize(
    "task",
    [
        *(pytest.param(task, marks=pytest.mark.slow) for task in TASKS[:6:2]),
        *TASKS[1:6:2],
        *TASKS[6:],
    ],
    ids=str,
)
@pytest.mark.parametrize(("text", "norm"), EVERY)
def test_points_keep_the_promises_of_their_family(text: str, norm: str, task: Task) -> None:
    problem = task.problem(text, norm)
    points = _check(text, problem)
    assert _wrong(problem, points)[list(task.wrong)].all()
    assert torch.equal(_run(_configured(text), problem), points)


@pytest.mark.parametrize(("task", "part"), [(TASKS[2], 0.25), (TASKS[3], 0.1)], ids=str)
@pytest.mark.parametrize(("text", "norm"), OWN)
def test_no_sample_minds_the_others(text: str, norm: str, task: Task, part: float) -> None:
    """Where some are broken, by themselves or by the attack, and several stay to the end."""
    attack, problem = _configured(text), task.problem(text, norm)
    problem = replace(problem, threat=ThreatModel(norm, part * EPS[norm]))
    points = attack(problem)
    for samples in ([2], [4, 3, 2, 1, 0], [1, 3]):
        some = attack(problem.select(torch.tensor(samples)))
        torch.testing.assert_close(some, points[samples], rtol=0, atol=1e-10)
    assert all(parameter.grad is None for parameter in problem.model.parameters())


@pytest.mark.parametrize("eps", [1e-6, 100.0])
@pytest.mark.parametrize(("text", "norm"), ONE_OF_EACH)
def test_any_budget_will_do(text: str, norm: str, eps: float) -> None:
    for task in (TASKS[0], TASKS[3]):
        problem = task.problem(text, norm)
        _check(text, replace(problem, threat=ThreatModel(norm, eps)))


class Odd(nn.Module):
    """A function to two logits, as arms and as stages of groups of one class too."""

    groups = torch.arange(2)

    def __init__(self, rise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rise = rise

    def forward(self, x: Tensor) -> Tensor:
        rise = self.rise(x.flatten(1))
        return torch.stack([torch.zeros_like(rise), rise], 1)

    arms = forward

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), self(x)

    def surrogate(self) -> nn.Module:
        return self


def _undefined(x: Tensor) -> Tensor:
    rise = 4 * x.mean(1) - 2.1
    return torch.where(rise > -0.05, torch.nan, rise)


def _isolated(x: Tensor) -> Tensor:
    return torch.where((x == 0.5).all(1), 0 * x.sum(1) - 1, torch.nan)


# All give label 0 at mid-grey.
ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "gradients that are one number, expanded": lambda x: x.sum(1) - 0.51 * x.shape[1],
    "a constant": lambda x: 0 * x.sum(1) - 1,
    "a tie": lambda x: 0 * x.sum(1),
    "stairs": lambda x: (40 * (x.mean(1) - 0.51)).floor(),
    "no logits beyond a line": _undefined,
    "no logits elsewhere": _isolated,
    "a slope of NaN": lambda x: (x - 0.5).square().sum(1).sqrt() - 0.1,
    "infinite logits": lambda x: 1 / (0.52 - x.mean(1)).clamp_min(0) - 60,
    "huge logits": lambda x: 1e30 * (x.mean(1) - 0.51),
    "tiny logits": lambda x: 1e-30 * (x.mean(1) - 0.51),
}


# Others by default say what these do.
SLOW = ("a constant", "a tie", "stairs", "no logits elsewhere")


@pytest.mark.parametrize(
    "rise",
    [
        pytest.param(rise, marks=pytest.mark.slow if name in SLOW else ())
        for name, rise in ODD.items()
    ],
    ids=ODD.keys(),
)
@pytest.mark.parametrize(("text", "norm"), ONE_OF_EACH)
def test_odd_models_neither_stop_nor_mislead_it(
    text: str, norm: str, rise: Callable[[Tensor], Tensor]
) -> None:
    x = torch.full((3, 1, 3, 4), 0.5)
    model = Odd(rise)
    threat = ThreatModel(norm, EPS[norm])
    _check(text, Problem(model, x, torch.zeros(3).long(), threat, peers={"peer": model}))
