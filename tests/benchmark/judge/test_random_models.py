"""Randomised models: their figures are those of closed forms, and no randomness is overlooked."""

import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from attacks import Problem
from attacks.objectives import margin
from attacks.problem import climb
from benchmark import Report, evaluate
from benchmark.judge.examination import examine
from benchmark.judge.steadiness import UnsteadyError
from tests.benchmark.small import Returning

# The noise of the model, how margins are spread, and how far an attack moves them.
SIGMA, MEAN, SPREAD, EPS = 0.1, 0.1, 0.1, 0.05
PIXELS = 6

# How many draws judge where not the default.
DRAWS = 30


class Noisy(nn.Module):
    """A linear model that adds Gaussian noise to its images."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("w", torch.randn(PIXELS, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        rise = (x + SIGMA * torch.randn_like(x) - 0.5) @ self.w
        return torch.stack([-rise, rise], 1)


def _images(model: Noisy, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, and the L2 distances at which images are from the plane, on the right side;
    they are Gaussian."""
    generator = torch.Generator().manual_seed(seed)
    distance = MEAN + SPREAD * torch.randn(n, generator=generator)
    y = torch.arange(n) % 2
    x = 0.5 + ((2 * y - 1) * distance)[:, None] * model.w / model.w.norm()
    return x, y, distance.double()


def _radius(model: Noisy, norm: str) -> float:
    """The eps that moves margins by EPS."""
    return EPS if norm == "l2" else float(EPS * model.w.norm() / model.w.abs().sum())


def _right(distance: Tensor) -> Tensor:
    """The probability that images at some distances are classified correctly."""
    return torch.special.ndtr(distance / SIGMA)


# Natural accuracy.


@pytest.mark.parametrize(
    ("seeds", "least"), [(10, 9), pytest.param(100, 95, marks=pytest.mark.slow)]
)
def test_natural_accuracy_has_the_interval_that_it_states(seeds: int, least: int) -> None:
    model, n, draws = Noisy().eval(), 100, 20
    over_all = float(_right(torch.tensor(MEAN / math.hypot(1, SPREAD / SIGMA))))
    covers_all, covers_these, off = 0, 0, []
    for seed in range(seeds):
        x, y, distance = _images(model, n, seed)
        report = evaluate(model, x, y, eps=EPS, suite="none", seed=seed, draws=draws, expectation=2)
        low, high = report.accuracy("natural").interval
        right = _right(distance)
        covers_all += low <= over_all <= high
        covers_these += low <= right.mean() <= high
        deviation = (right * (1 - right)).sum().div(draws).sqrt() / n
        off.append(float((report.natural - right.mean()) / deviation))
    assert covers_all >= least
    assert covers_these >= least
    # There is no bias: these are of mean 0 and of standard deviation 1.
    assert abs(np.mean(off)) < 4 / math.sqrt(seeds)
    assert np.mean(np.square(off)) < 1 + 5 * math.sqrt(2 / seeds)


# Robust accuracy.


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("attack", ["pgd/steps=20", "apgd/steps=20"])
def test_robust_accuracy_is_that_of_the_closed_form(norm: Any, attack: str) -> None:
    model = Noisy().eval()
    x, y, distance = _images(model, 500)
    report = evaluate(model, x, y, norm=norm, eps=_radius(model, norm), attacks=[attack])
    assert abs(report.natural - float(_right(distance).mean())) < 0.01
    assert abs(report.best_attack - float(_right(distance - EPS).mean())) < 0.02
    assert list(report.flags) == ["non-deterministic"]


def _measured(report: Report) -> list[Any]:
    """All that a report says, but for times."""
    table = report.to_frame()
    parts: list[Any] = [table.drop(columns="seconds")]
    for label in report.measured:
        parts.append(report.frames[label])
        parts.append(report.adversarial[label].points.tobytes())
    return parts


def _equal(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        one.equals(other) if isinstance(one, pd.DataFrame) else one == other
        for one, other in zip(first, second, strict=True)
    )


ATTACKS = ["pgd/steps=5", "apgd/steps=5", "square/steps=10", "cw/steps=4/searches=2"]


def test_a_seed_gives_the_same_table_bit_for_bit_and_another_gives_another() -> None:
    model = Noisy().eval()
    x, y, _ = _images(model, 20)

    def measured(seed: int, of_caller: int) -> list[Any]:
        torch.manual_seed(of_caller)
        np.random.seed(of_caller)
        random.seed(of_caller)
        return _measured(
            evaluate(
                model, x, y, eps=EPS, attacks=ATTACKS, seed=seed, block=8, draws=10, expectation=4
            )
        )

    first = measured(0, 0)
    assert _equal(first, measured(0, 1))
    assert not _equal(first, measured(1, 0))


class Drawn(nn.Module):
    """It classifies each image by a direction that it draws anew, from some source."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.own = torch.Generator().manual_seed(1)
        self.own_of_numpy = np.random.default_rng(1)
        self.own_of_python = random.Random(1)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def _direction(self, x: Tensor) -> Tensor:
        if self.source == "torch":
            return torch.randn_like(x)
        if self.source == "numpy":
            return torch.from_numpy(np.random.randn(*x.shape)).to(x)
        if self.source == "own numpy":
            return torch.from_numpy(self.own_of_numpy.standard_normal(x.shape)).to(x)
        if self.source == "own torch":
            return torch.randn(x.shape, generator=self.own).to(x)
        seeds = {"python": random, "own python": self.own_of_python}
        if self.source in seeds:
            seed = seeds[self.source].randrange(2**40)
        else:
            self.count.add_(1)
            seed = int(self.count)
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)

    def forward(self, x: Tensor) -> Tensor:
        rise = ((x - 0.5) * self._direction(x)).sum(1)
        return torch.stack([-rise, rise], 1)


SOURCES = ["torch", "own torch", "count"]
MORE = [
    pytest.param(source, marks=pytest.mark.slow)
    for source in ("numpy", "own numpy", "python", "own python")
]


@pytest.mark.parametrize("source", SOURCES + MORE)
def test_points_are_judged_by_draws_that_no_attack_saw(source: str) -> None:
    n, draws = 60, 20
    x, y = 0.5 + 0.01 * torch.rand(n, 100), torch.arange(n) % 2
    misleads = []

    def fit(problem: Problem) -> Tensor:
        # What is against all draws that it saw is against no other.
        gradient, before, _ = climb(problem, problem.x, margin)
        points = problem.threat.project(problem.x + 0.4 * gradient.sign(), problem.x)
        misleads.append(((points - problem.x) * gradient).flatten(1).sum(1) > before.abs())
        return points

    report = evaluate(
        Drawn(source).eval(), x, y, norm="linf", eps=0.4, attacks=[Returning(fit)], draws=draws,
        expectation=4, block=35,
    )  # fmt: skip
    assert torch.cat(misleads).all()
    for label in ("natural", "Returning", "best-attack"):
        accuracy = report.accuracy(label)
        assert accuracy is not None
        assert abs(accuracy.value - 0.5) < 4 * 0.5 / math.sqrt(n * draws), label
    assert "non-deterministic" in report.flags


# Randomness that is seldom seen.


class Seldom(nn.Module):
    """It is as often right as wrong, but only where something holds of its images or the call."""

    def __init__(self, when: Callable[["Seldom", Tensor], Any]) -> None:
        super().__init__()
        self.when, self.calls = when, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        rise = x.mean(1) - 0.3
        generator = torch.Generator().manual_seed(self.calls)
        noise = torch.randn(len(x), generator=generator).to(x)
        now = torch.as_tensor(self.when(self, x))
        return torch.stack([0 * rise, torch.where(now, noise, rise)], 1)


def _dark(n: int, bright: int = 0) -> tuple[Tensor, Tensor]:
    """Dark images in two classes, of which the last few are bright."""
    y = torch.arange(n) % 2
    x = (0.3 + 0.05 * (2 * y - 1))[:, None].repeat(1, 20)
    x[n - bright :] = 0.9
    y[n - bright :] = 1
    return x, y


def _seldom(when: Callable[[Any, Tensor], Any], x: Tensor, y: Tensor, **options: Any) -> Report:
    chosen = {"eps": 0.01, "attacks": ["pgd/steps=3"], "draws": DRAWS, "expectation": 2} | options
    report = evaluate(Seldom(when).eval(), x, y, norm="linf", **chosen)
    assert "non-deterministic" in report.flags
    return report


def _is_bright(model: Any, x: Tensor) -> Tensor:
    return x.mean(1) > 0.8


@pytest.mark.parametrize("block", [256, 64, 21])
def test_randomness_in_large_batches_is_found(block: int) -> None:
    x, y = _dark(105)
    report = _seldom(lambda model, x: len(x) > 20, x, y, block=block)
    assert abs(report.natural - 0.5) < 4 * 0.5 / math.sqrt(105 * DRAWS)


@pytest.mark.parametrize(("n", "block"), [(40, 256), (40, 16), (120, 256), (120, 16), (6, 1)])
def test_randomness_at_a_few_bright_images_is_found(n: int, block: int) -> None:
    report = _seldom(_is_bright, *_dark(n, bright=4), block=block)
    assert abs(report.natural * n - (n - 2)) < 4 * 0.5 * math.sqrt(4 / DRAWS)


@pytest.mark.parametrize(("n", "block"), [(40, 256), (40, 16), (6, 1)])
def test_randomness_that_only_an_attack_reaches_is_found(n: int, block: int) -> None:
    brighten = Returning(lambda problem: problem.x + 0.6)
    report = _seldom(_is_bright, *_dark(n), eps=0.6, block=block, attacks=[brighten])
    assert report.natural == 1.0
    assert abs(report.best_attack - 0.5) < 4 * 0.5 / math.sqrt(n * DRAWS)


@pytest.mark.parametrize("source", ["torch", "numpy", "python", "calls"])
@pytest.mark.parametrize("seeds", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_randomness_in_one_call_of_ten_is_found(source: str, seeds: int) -> None:
    now = {
        "torch": lambda model, x: torch.rand(()) < 0.1,
        "numpy": lambda model, x: np.random.rand() < 0.1,
        "python": lambda model, x: random.random() < 0.1,
        "calls": lambda model, x: model.calls % 10 == 0,
    }[source]
    for seed in range(seeds):
        report = _seldom(now, *_dark(40), seed=seed)
        # In one call of ten, half of the images are wrong.
        deviation = math.sqrt((0.25 * 0.09 + 0.1 * 0.25 / 40) / DRAWS)
        assert abs(report.natural - 0.95) < 4 * deviation


class InTurn(nn.Module):
    """It answers bright images by two rules in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        bright = _is_bright(self, x)
        self.turn += int(bright.any())
        rise = torch.where(bright, (x.mean(1) - 0.3) * (-1) ** self.turn, x.mean(1) - 0.3)
        return torch.stack([-rise, rise], 1)


@pytest.mark.slow
def test_a_model_that_answers_in_turn_comes_to_an_end_and_is_flagged() -> None:
    x, y = _dark(120, bright=1)
    begun, most = UnsteadyError.__init__, 5

    def counted(*args: Any) -> None:
        nonlocal most
        most -= 1
        if not most:
            pytest.fail("it is begun anew without end")
        begun(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnsteadyError, "__init__", counted)
        report = evaluate(InTurn().eval(), x, y, norm="linf", eps=0.01, attacks=["pgd/steps=3"])
    assert "non-deterministic" in report.flags


# Noise that depends on the batch.


class Seeded(nn.Module):
    """It seeds its noise in each call, so that an image has that of its place in the batch."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.alone = alone

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        noise = torch.randn_like(x[:1] if self.alone else x)
        rise = (x + 0.2 * noise - 0.5).sum(1)
        return torch.stack([-rise, rise], 1)


def test_noise_that_is_seeded_inside_is_that_of_an_image_alone() -> None:
    x, y = torch.rand(10, PIXELS), torch.arange(10) % 2

    def figures(alone: bool, block: int) -> Report:
        net, attacks = Seeded(alone).eval(), ["pgd/steps=5"]
        return evaluate(net, x, y, norm="linf", eps=0.05, attacks=attacks, block=block)

    twin = figures(True, 10)
    assert "batch-dependent" not in twin.flags
    assert 0 < twin.best_attack < twin.natural < 1
    before = torch.get_rng_state()
    for block in (10, 4):
        report = figures(False, block)
        assert "batch-dependent" in report.flags
        assert "non-deterministic" not in report.flags
        for label in ("natural", "best-attack"):
            assert np.array_equal(report.robust_to(label), twin.robust_to(label))
    assert torch.equal(torch.get_rng_state(), before)


class _Draws:
    """Draws in an object, as transforms do."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(1)

    def __call__(self, x: Tensor) -> Tensor:
        return x + 0.05 * torch.from_numpy(self.generator.standard_normal(x.shape)).to(x)


class _OfObjects(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        draws = _Draws()
        self.steps: Any = {
            "object": draws, "list": [draws], "mapping": {"x": (draws,)},
            "closure": lambda x: draws(x), "partial": partial(draws.__call__),
        }[kind]  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        step = self.steps
        while not callable(step):
            step = step["x"] if isinstance(step, dict) else step[0]
        logits: Tensor = self.linear(step(x))
        return logits


@pytest.mark.parametrize("kind", ["object", "list", "mapping", "closure", "partial"])
def test_generators_are_seeded_wherever_they_are(kind: str) -> None:
    torch.manual_seed(0)
    model, x = _OfObjects(kind), torch.rand(20, 4)
    subject = examine(model, x, torch.device("cpu"))
    assert subject.is_random
    first, second = (
        subject.judge(x, torch.zeros(20, dtype=torch.int64), torch.arange(20)) for _ in range(2)
    )
    assert torch.equal(first.rate, second.rate)
