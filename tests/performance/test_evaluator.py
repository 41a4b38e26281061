"""What the evaluator costs beyond the passes through the model that an attack needs."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from attacks import PGD, ThreatModel
from benchmark.judge.evaluator import Samples
from benchmark.judge.examination import examine
from benchmark.judge.records import FolderCell, MemoryCell
from benchmark.judge.steadiness import IMAGES
from defenses import LeNet5
from tests.benchmark.small import measure_attack

ROUNDS = 3


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# What the model was given: global, since what its hooks hold is copied with it.
BATCHES: list[Tensor] = []


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.02), ("linf", 0.001)])
def test_pgd_100_costs_little_beyond_its_passes(
    norm: str, eps: float, benchmark: BenchmarkFixture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """LeNet5 on MNIST's shape, one block of 256 under a budget that breaks next to nothing: at most
    1.10 x the same number of bare forward-backward passes on the same batches."""
    model = LeNet5((1, 28, 28), 10)
    x = torch.rand(256, 1, 28, 28)
    x[x < 0.8] = 0
    samples = Samples(x, model(x).argmax(1), np.arange(256))
    threat = ThreatModel(norm, eps)
    BATCHES.clear()

    def evaluate() -> None:
        cell = FolderCell(tmp_path_factory.mktemp("cell"))
        subject = examine(model, x, torch.device("cpu"))
        measure_attack(subject, samples, samples.number, threat, PGD(), 0, cell, 256)

    def bare() -> None:
        subject = examine(model, x, torch.device("cpu"))
        for batch in BATCHES:
            points = batch.clone().requires_grad_()
            torch.autograd.grad(subject.model(points).sum(), points)

    # The very batches, because a network's speed depends on what it is given: max-pooling is faster
    # on the black areas of an image that nobody attacked.
    handle = model.register_forward_hook(
        lambda _, inputs, logits: (
            BATCHES.append(inputs[0].detach().clone())
            if logits.requires_grad and len(logits) > IMAGES
            else None
        )
    )
    evaluate()
    handle.remove()
    assert len(BATCHES) == 100
    assert sum(map(len, BATCHES)) > 0.9 * 100 * 256
    ours, theirs = list[float](), list[float]()
    benchmark.pedantic(
        lambda: ours.append(_seconds(evaluate)),
        setup=lambda: theirs.append(_seconds(bare)),
        rounds=ROUNDS,
    )
    # Of pairs side by side, because a shared machine's speed drifts by more than what is measured.
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    benchmark.extra_info |= {"ratio": ratio, "norm": norm}
    rounds = ", ".join(f"{a:.1f}/{b:.1f}" for a, b in zip(ours, theirs, strict=True))
    print(f"\nPGD-100 {norm}: {ratio:.3f} x its bare passes (seconds: {rounds})")
    assert ratio <= 1.10


@pytest.mark.slow
def test_looks_copies_and_second_judgements_cost_little(benchmark: BenchmarkFixture) -> None:
    """On one block of 256, at most 2% of a PGD-100 run, in one process."""
    model = LeNet5((1, 28, 28), 10)
    x = torch.rand(256, 1, 28, 28)
    x[x < 0.8] = 0
    samples = Samples(x, model(x).argmax(1), np.arange(256))
    shares = list[float]()

    def share() -> None:
        looks = _seconds(lambda: examine(model, x, torch.device("cpu")))
        subject = examine(model, x, torch.device("cpu"))
        run = _seconds(
            lambda: measure_attack(
                subject, samples, samples.number, ThreatModel("l2", 0.02), PGD(), 0, MemoryCell(),
                256,
            )
        )  # fmt: skip
        copies = _seconds(lambda: [x.clone() for _ in range(101)])
        again = _seconds(lambda: subject._in_other_company(subject.model, x[:128]))
        shares.append((looks + copies + 2 * again) / (looks + run))

    benchmark.pedantic(share, rounds=ROUNDS)
    print(f"\nlooks, copies and second judgements: {statistics.median(shares):.2%} of PGD-100")
    assert statistics.median(shares) <= 0.02
