"""A step of adversarial training beside the bare forward and backward passes that it is made of,
and in bfloat16 beside float32.

Times are of the process's CPU, so that a shared machine's other work is not in them.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn
from torch.nn.functional import cross_entropy

from attacks import PGD, Problem, ThreatModel
from attacks.threat import Norm
from benchmark.data.sets import load_dataset
from defenses import Batch, initialise, train
from defenses.recipes.adversarial import TRAINED_BY
from defenses.recipes.recipe import ComputeName
from defenses.training.bfloat16 import is_fast

SHAPE, STEPS = (1, 28, 28), 10
ROOT = os.environ.get("BESTATTACK_DATA")


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("method", "training_passes"), [("pgd-at", 1), ("trades", 2), ("mart", 2)])
def test_a_step_costs_little_more_than_its_passes(
    method: str, training_passes: int, norm: Norm, benchmark: BenchmarkFixture
) -> None:
    recipe = TRAINED_BY[method](arch="cnn2", steps=STEPS)
    model = initialise(recipe, SHAPE, 10, seed=0).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    x, y, index = torch.rand(128, *SHAPE), torch.randint(10, (128,)), torch.arange(128)
    batch = Batch(x, y, index, ThreatModel(norm, 2.0 if norm == "l2" else 25 / 255), 0, 0, 1.0)

    def descend(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    def bare() -> None:
        for _ in range(STEPS):
            points = x.clone().requires_grad_()
            torch.autograd.grad(cross_entropy(model(points), y, reduction="sum"), points)
        descend(torch.stack([_loss(model, batch) for _ in range(training_passes)]).sum())

    def step() -> None:
        descend(recipe.loss(model, batch))

    mine, others = list[float](), list[float]()
    bare(), step()
    benchmark.pedantic(
        lambda: mine.append(_seconds(step)),
        setup=lambda: others.append(_seconds(bare)),
        rounds=15,
    )
    # Of pairs side by side, because a shared machine's speed drifts.
    ratio = statistics.median(a / b for a, b in zip(mine, others, strict=True))
    benchmark.extra_info["ratio"] = ratio
    print(f"\n{method}, {norm}: {ratio:.3f} x {STEPS + training_passes} bare passes")
    assert ratio <= 1.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "shape", "least"), [("cnn2", SHAPE, 1.25), ("myrtle", (3, 32, 32), 1.8)]
)
def test_a_step_in_bfloat16_is_faster_where_the_processor_has_it(
    arch: str, shape: tuple[int, int, int], least: float, benchmark: BenchmarkFixture
) -> None:
    if not is_fast(torch.device("cpu")):
        pytest.skip("this processor has no instructions for bfloat16")
    x, y, threat = torch.rand(256, *shape), torch.arange(256) % 10, ThreatModel("linf", 8 / 255)

    def training(compute: ComputeName) -> Callable[[], object]:
        recipe = TRAINED_BY["pgd-at"](arch=arch, steps=4, epochs=1, compute=compute)
        model = initialise(recipe, shape, 10, seed=0)
        return lambda: train(recipe, model, x, y, threat=threat, seed=0)

    lower, full = training("bfloat16"), training("float32")
    mine, others = list[float](), list[float]()
    lower(), full()
    benchmark.pedantic(
        lambda: mine.append(_seconds(lower)),
        setup=lambda: others.append(_seconds(full)),
        rounds=5,
    )
    ratio = statistics.median(b / a for a, b in zip(mine, others, strict=True))
    benchmark.extra_info["ratio"] = ratio
    print(f"\n{arch}: {ratio:.2f} x as fast in bfloat16")
    assert ratio >= least


@pytest.mark.slow
@pytest.mark.skipif(ROOT is None, reason="set BESTATTACK_DATA to the folder that holds mnist")
@pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")
def test_mnist_is_learnt_as_well_in_bfloat16() -> None:
    """Natural accuracy and that under PGD-20, of all test images. Where the processor has no
    bfloat16, it takes five minutes."""
    data, threat = load_dataset("mnist", ROOT), ThreatModel("linf", 0.1)
    x, y = data.test.x[:], data.test.y
    found = []
    for compute in get_args(ComputeName):
        recipe = TRAINED_BY["pgd-at"](arch="cnn2", epochs=4, steps=5, compute=compute)
        model = initialise(recipe, SHAPE, 10, seed=0)
        train(recipe, model, data.train.x[:12000], data.train.y[:12000], threat=threat, seed=0)
        hits = torch.zeros(2)
        for rows in torch.arange(len(y)).split(500):
            points = PGD(steps=20)(Problem(model, x[rows], y[rows], threat, index=rows))
            for column, images in enumerate((x[rows], points)):
                hits[column] += (model(images).argmax(1) == y[rows]).sum()
        found.append(100 * hits / len(y))
        print(f"\n{compute}: natural {found[-1][0]:.2f} %, PGD-20 {found[-1][1]:.2f} %")
    assert (found[0] - found[1]).abs().max() <= 1


def _loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    return cross_entropy(model(batch.x), batch.y)
