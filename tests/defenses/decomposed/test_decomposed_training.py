"""Training a decomposition: each task by itself, side by side."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import ThreatModel
from defenses import (
    Batch,
    Checkpoint,
    Decomposed,
    Ensemble,
    Epoch,
    OneVsOne,
    Progress,
    RoBin,
    TwoStage,
    fingerprint,
    initialise,
    train,
)

SHAPE = (1, 8, 8)
LINF = ThreatModel("linf", 0.1)
TINY: dict[str, Any] = {"arch": "mlp", "widen": 0.05}
SHORT: dict[str, Any] = {
    "steps": 1, "step_size": 0.05, "epochs": 2, "batch": 7, "warm_up": False
}  # fmt: skip
KINDS: list[type[Decomposed]] = [RoBin, OneVsOne, TwoStage, Ensemble]


def data(counts: list[int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Mixed images of so many of each class."""
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    y = y[torch.randperm(len(y))]
    return torch.rand(len(y), *SHAPE, dtype=dtype), y


def batches(recipe: Decomposed, model: nn.Module, x: Tensor, y: Tensor) -> list[Batch]:
    """Those of the last of ten epochs, in which all of each is adversarial."""
    split = torch.arange(len(y)).tensor_split(math.ceil(len(y) / recipe.batch))
    return list(recipe.batches(model, x, y, Epoch(9, 10, split, LINF, 0)))


def numbers(batch: Batch, samples: int) -> Tensor:
    """The numbers of the samples (tasks, m) of each task in a batch."""
    return (batch.index % samples).unflatten(0, (-1, batch.networks)).T


def lessons(recipe: Decomposed, y: Tensor) -> list[Tensor]:
    """The numbers of the samples (tasks, m) of each step of an epoch."""
    model: Any = initialise(recipe, SHAPE, int(y.max()) + 1, 0)
    steps = [
        numbers(batch, len(y)) for batch in batches(recipe, model, torch.zeros(len(y), *SHAPE), y)
    ]
    assert len(steps) == math.ceil(len(y) / recipe.batch)
    sizes = {step.shape[1] for step in steps}
    assert max(sizes) - min(sizes) <= 1
    return steps


# What a task is shown.


@pytest.mark.parametrize("kind", KINDS)
def test_each_task_has_its_own_samples_labels_and_adversarial_images(
    kind: type[Decomposed],
) -> None:
    x, y = data([9, 6, 8, 5])
    recipe = kind(**TINY, **SHORT)
    model: Any = initialise(recipe, SHAPE, 4, 0).double()
    shown: list[Tensor] = []
    given: list[Batch] = []

    def watch(networks: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if networks.training:
            shown.append(inputs[0].detach())

    @dataclass(frozen=True, kw_only=True)
    class Recording(kind):  # type: ignore[misc, valid-type]
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            given.append(batch)
            loss: Tensor = super().loss(model, batch)
            return loss

    model.networks.register_forward_hook(watch)
    train(Recording(**TINY, **SHORT), model, x, y, threat=LINF, seed=1)
    assert len(shown) == len(given) == 2 * 4
    targets = recipe.targets(4)
    drawn = {}
    for images, batch in zip(shown, given, strict=True):
        tasks, m = images.shape[:2]
        assert batch.networks == tasks == len(targets)
        for place in range(tasks * m):
            task = place % tasks
            number = int(batch.index[place]) - task * len(y)
            assert torch.equal(batch.x[place], x[number])
            assert batch.y[place] == targets[task, y[number]] >= 0
            moved = images[task, place // tasks] - x[number]
            assert 0 < moved.abs().max() <= LINF.eps + 1e-12
            drawn[task, number, batch.step] = moved.sum().item()
    # No two tasks, and no two steps, share a start.
    assert len(set(drawn.values())) == len(drawn)


@pytest.mark.parametrize("kind", [RoBin, Ensemble])
def test_in_an_epoch_a_network_of_all_classes_sees_each_sample_once(
    kind: type[Decomposed],
) -> None:
    _, y = data([9, 6, 8])
    options = {"balanced": False} if kind is RoBin else {}
    seen = torch.cat(lessons(kind(batch=7, **TINY, **options), y), dim=1)
    assert torch.equal(seen.sort(1).values, torch.arange(23).expand_as(seen))
    assert all(not torch.equal(one, other) for one, other in pairwise(seen))


def test_smaller_tasks_go_through_their_samples_again() -> None:
    """Pairs of 12, 9 and 7 samples, all for as many steps as the largest."""
    _, y = data([7, 5, 2])
    seen = torch.cat(lessons(OneVsOne(batch=4, **TINY), y), dim=1)
    assert seen.shape == (3, 12)
    for task, (pair, count) in enumerate((((0, 1), 12), ((0, 2), 9), ((1, 2), 7))):
        own = [number for number in range(14) if y[number] in pair]
        assert len(own) == count
        assert sorted(seen[task, :count].tolist()) == own
        assert len(set(seen[task, count:].tolist())) == 12 - count


@pytest.mark.parametrize("batch", [8, 16, 40])
@pytest.mark.parametrize("kind", [RoBin, OneVsOne])
def test_balanced_steps_have_as_many_of_either_label(kind: type[Decomposed], batch: int) -> None:
    """The first half of a step, which warm-up perturbs, too."""
    _, y = data([30, 6, 12, 16])
    targets = kind().targets(4)
    count = 0
    for rows in lessons(kind(balanced=True, batch=batch, **TINY), y):
        for part in (rows, rows[:, : rows.shape[1] // 4 * 2]):
            labels = targets[torch.arange(len(rows))[:, None], y[part]]
            assert (labels >= 0).all()
            off = 2 * labels.sum(1) - part.shape[1]
            assert (off.abs() <= part.shape[1] % 2).all()
        count += rows.shape[1]
    assert count == (64 if kind is RoBin else 46)


def test_balanced_sampling_takes_the_samples_of_a_label_in_turn() -> None:
    _, y = data([30, 6, 12, 16])
    seen = torch.cat(lessons(RoBin(batch=16, **TINY), y), dim=1)
    for arm, own in enumerate(seen):
        often = torch.bincount(own, minlength=64)
        for group in (often[y == arm], often[y != arm]):
            assert group.sum() == 32
            assert group.max() - group.min() <= 1


def test_balanced_groups_of_several_classes() -> None:
    _, y = data([20, 4, 9, 3, 6])
    recipe = TwoStage(groups="0+1+2-3+4", balanced=True, batch=12, **TINY)
    for rows in lessons(recipe, y):
        for task, labels in ((0, 2), (1, 3), (2, 2)):
            often = torch.bincount(recipe.targets(5)[task, y[rows[task]]], minlength=labels)
            assert len(often) == labels
            assert often.max() - often.min() <= 1


@pytest.mark.parametrize("balanced", [False, True])
def test_a_task_without_samples_is_refused(balanced: bool) -> None:
    y = torch.tensor([0, 0, 3, 3, 0])
    recipe = OneVsOne(balanced=balanced, **TINY)
    with pytest.raises(ValueError, match="no sample of one of the tasks"):
        lessons(recipe, y)


@pytest.mark.parametrize("progress", [0.1, 0.4, 0.5, 1.0])
def test_warm_up_takes_the_same_part_of_each_tasks_samples(progress: float) -> None:
    x, y = data([10, 8, 6])
    recipe = RoBin(batch=8, steps=1, **TINY)
    model: Any = initialise(recipe, SHAPE, 3, 0).double()
    shown: list[Tensor] = []
    model.networks.register_forward_hook(
        lambda networks, inputs, _: shown.append(inputs[0]) if networks.training else None
    )
    batch = replace(batches(recipe, model, x, y)[1], progress=progress)
    recipe.loss(model.train(), batch)
    moved = (shown[0] != x[numbers(batch, 24)]).flatten(2).any(2)
    count = round(8 * recipe.examples.proportion(progress))
    assert moved.tolist() == [[True] * count + [False] * (8 - count)] * 3


# Stopping, resuming, and what is left.


def _trained(recipe: Decomposed, checkpoint: Path | None = None, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    x, y = data([9, 6, 8], torch.float32)
    model = initialise(recipe, SHAPE, 3, 2)
    held = None if checkpoint is None else Checkpoint(checkpoint, "this")
    train(recipe, model, x, y, threat=LINF, seed=2, checkpoint=held, **options)
    return model


def _stop(progress: Progress) -> None:
    if (progress.epoch, progress.step) == (2, 2):
        raise KeyboardInterrupt


@pytest.mark.usefixtures("at_every_occasion")
@pytest.mark.parametrize(
    ("kind", "method"),
    [(RoBin, "pgd-at"), (RoBin, "mart"), (OneVsOne, "trades"), (TwoStage, "mart"),
     (Ensemble, "pgd-at")],
)  # fmt: skip
def test_interrupted_and_resumed_is_undisturbed(
    kind: type[Decomposed], method: Any, tmp_path: Path
) -> None:
    recipe = kind(epochs=3, batch=12, steps=1, method=method, crop=1, arch="myrtle", widen=0.03)
    checkpoint = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        _trained(recipe, checkpoint, report=_stop)
    seen: list[int] = []
    resumed = _trained(recipe, checkpoint, report=lambda progress: seen.append(progress.epoch))
    assert min(seen) == 2
    assert fingerprint(resumed) == fingerprint(_trained(recipe))


def test_images_are_cropped_for_each_task() -> None:
    x, y = data([10, 8, 6])
    recipe = RoBin(batch=8, crop=2, **TINY)
    model: Any = initialise(recipe, SHAPE, 3, 0).double()
    shown: list[Tensor] = []
    model.networks.register_forward_hook(lambda _, inputs, __: shown.append(inputs[0]))
    batch = replace(batches(recipe, model, x, y)[1], progress=0.0)
    recipe.loss(model.train(), batch)
    for row, drawn in zip(shown[0], numbers(batch, 24), strict=True):
        framed = torch.nn.functional.pad(x[drawn], [2] * 4)
        windows = framed.unfold(2, 8, 1).unfold(3, 8, 1).flatten(2, 3)
        assert (windows == row[:, :, None]).flatten(3).all(3).any(2).all()
        assert not torch.equal(row, x[drawn])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_training_set_stays(kind: type[Decomposed]) -> None:
    states = []

    @dataclass(frozen=True, kw_only=True)
    class Recording(kind):  # type: ignore[misc, valid-type]
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            states.append({name: value.shape for name, value in model.state_dict().items()})
            return super().loss(model, batch)

    recipe: Any = Recording(**TINY, **SHORT)
    model: Any = _trained(recipe)
    before = {name: value.shape for name, value in model.state_dict().items()}
    assert all(state == before for state in states)
    assert all(name.startswith("networks.network.") for name in before)
    assert not model.training


@pytest.mark.parametrize("method", ["pgd-at", "trades", "mart"])
def test_logits_of_labels_that_a_task_lacks_learn_nothing(method: Any) -> None:
    """Tasks of two groups, one class and three classes, of three logits each."""
    x, y = data([9, 6, 8, 5])
    recipe = TwoStage(groups="2-0+1+3", steps=1, method=method, **TINY)
    model: Any = initialise(recipe, SHAPE, 4, 0).double()
    batch = batches(recipe, model, x, y)[0]
    torch.autograd.backward(recipe.loss(model.train(), batch))
    slopes = model.networks.network.get_parameter("5.bias").grad
    assert (slopes != 0).tolist() == [[True, True, False], [False] * 3, [True] * 3]
