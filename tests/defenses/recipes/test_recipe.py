import doctest
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import ThreatModel
from defenses import (
    L2NNN,
    AdversarialTraining,
    Batch,
    Ensemble,
    External,
    Hybrid,
    Recipe,
    Vanilla,
    build_architecture,
    initialise,
    train,
)
from defenses.recipes import schedules
from defenses.recipes.recipe import random_crop


def rates(recipe: Recipe, parts: int = 1000) -> list[float]:
    return [recipe.rate(k / parts) for k in range(parts)]


def test_examples_of_the_schedules() -> None:
    assert doctest.testmod(schedules) == (0, len(schedules.SCHEDULES))


def test_rates_of_the_schedules() -> None:
    peak = 0.2
    assert set(rates(Vanilla(learning_rate=peak))) == {peak}
    step = rates(Vanilla(learning_rate=peak, schedule="step"))
    assert set(step[:500]) == {peak}
    assert step[500:] == pytest.approx([peak / 10] * 500)
    thirds = [Vanilla(learning_rate=peak, schedule="two-steps").rate(k / 6) for k in range(6)]
    assert thirds == pytest.approx([peak, peak, peak / 10, peak / 10, peak / 100, peak / 100])
    cosine = Vanilla(learning_rate=peak, schedule="cosine")
    assert [cosine.rate(done) for done in (0.0, 0.5)] == pytest.approx([peak, peak / 2])
    cycle = rates(Vanilla(learning_rate=peak, schedule="one-cycle"))
    assert cycle[0] == pytest.approx(peak / 25)
    assert max(cycle) == pytest.approx(peak) == pytest.approx(cycle[300])
    for fall in (rates(cosine), cycle[300:]):
        assert fall == sorted(fall, reverse=True)
        assert 0 < fall[-1] < peak / 1e4


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": -1},
        {"batch": 0},
        {"learning_rate": 0.0},
        {"weight_decay": -1.0},
        {"momentum": float("nan")},
        {"crop": -1},
        {"optimizer": "adamw"},
        {"schedule": "stepwise"},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"dropout": float("nan")},
        {"hold_out": -1},
    ],
)
def test_hyperparameters_out_of_range_are_refused_in_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))) as refusal:
        Vanilla(**options)
    assert "\n" not in str(refusal.value)


def test_vanilla_depends_on_no_threat() -> None:
    assert Vanilla().trains_against(ThreatModel("l2", 1.0)) is None


# Dropout.


@pytest.mark.parametrize("arch", ["mlp", "lenet5", "myrtle", "resnet18", "wideresnet28"])
def test_dropout_zeroes_inputs_of_the_last_layer_in_training_alone(arch: str) -> None:
    plain, dropping = (
        initialise(Vanilla(arch=arch, widen=0.25, dropout=p), (1, 16, 16), 3, 0) for p in (0.0, 0.5)
    )
    # The same weights, in the same order, of which no more is drawn.
    assert all(map(torch.equal, plain.state_dict().values(), dropping.state_dict().values()))
    x = torch.rand(40, 1, 16, 16)
    assert torch.equal(plain(x), dropping(x))
    (drop,) = (module for module in dropping.modules() if isinstance(module, nn.Dropout))
    seen: list[Tensor] = []
    last = [module for module in dropping.modules() if isinstance(module, nn.Linear)][-1]
    last.register_forward_hook(lambda *arguments: seen.append(arguments[1][0]))
    dropping(x)
    drop.train()
    before = torch.get_rng_state()
    first, second = dropping(x), dropping(x)
    assert not torch.equal(first, second)
    clean, dropped, _ = seen
    zeroed = (dropped == 0) & (clean != 0)
    assert torch.equal(dropped, torch.where(zeroed, 0, 2 * clean))
    assert zeroed.sum().item() == pytest.approx((clean != 0).sum().item() / 2, rel=0.2)
    torch.set_rng_state(before)
    assert torch.equal(dropping(x), first)


def test_dropout_changes_what_is_learnt_and_none_is_as_before() -> None:
    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 3
    found = []
    for options in ({}, {"dropout": 0.0}, {"dropout": 0.5}):
        recipe = Vanilla(epochs=1, **options)
        model = initialise(recipe, (1, 8, 8), 3, 0)
        train(recipe, model, x, y, threat=None, seed=0)
        found.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    # Without it, tensors are named as the architecture names them.
    own = build_architecture("default", (1, 8, 8), 3).state_dict().keys()
    assert initialise(Vanilla(), (1, 8, 8), 3, 0).state_dict().keys() == own


@pytest.mark.parametrize("option", ["dropout", "hold_out"])
def test_only_vanilla_has_the_means_of_ordinary_networks(option: str) -> None:
    others = (External, AdversarialTraining, L2NNN, Ensemble, Hybrid)
    for recipe in others:
        assert option not in {field.name for field in fields(recipe)}
    assert all(recipe.hold_out == 0 for recipe in (External(), AdversarialTraining(), L2NNN()))


# Random cropping.


def windows(image: Tensor, padding: int) -> dict[tuple[int, int], Tensor]:
    """Each window of an image (channels, height, width) in a frame of zeros, by where it is."""
    channels, height, width = image.shape
    framed = torch.zeros(channels, height + 2 * padding, width + 2 * padding)
    framed[:, padding : padding + height, padding : padding + width] = image
    return {
        (top, left): framed[:, top : top + height, left : left + width]
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    }


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (2, 7, 4)])
@pytest.mark.parametrize("padding", [1, 2, 6])
def test_a_crop_is_a_window_of_the_image_in_zeros(
    shape: tuple[int, int, int], padding: int
) -> None:
    x = 0.1 + 0.9 * torch.rand(60, *shape)
    before = x.clone()
    cropped = random_crop(x, padding)
    assert torch.equal(x, before)
    assert (cropped.shape, cropped.dtype) == (x.shape, x.dtype)
    assert cropped.is_contiguous()  # foreign networks call view
    for image, crop in zip(x, cropped, strict=True):
        assert any(torch.equal(crop, window) for window in windows(image, padding).values())


def test_crops_are_at_all_places_alike_and_each_images_own() -> None:
    image = 0.1 + 0.9 * torch.rand(2, 4, 5)
    places = windows(image, 2)
    found = dict.fromkeys(places, 0)
    for crop in random_crop(image.expand(5000, -1, -1, -1), 2):
        (place,) = (place for place, window in places.items() if torch.equal(crop, window))
        found[place] += 1
    # 200 on average, by 14.
    assert 130 < min(found.values()) < max(found.values()) < 270


def test_no_padding_changes_nothing() -> None:
    x = torch.rand(6, 3, 4, 5)
    assert torch.equal(random_crop(x, 0), x)
    state = torch.get_rng_state()
    assert Vanilla().augment(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_training_crops_by_its_seed() -> None:
    x, y = torch.rand(20, 1, 8, 8), torch.arange(20) % 3
    seen: list[Tensor] = []

    @dataclass(frozen=True, kw_only=True)
    class Recording(Vanilla):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            assert not torch.equal(batch.x, x[batch.index])
            seen.append(batch.x)
            return super().loss(model, batch)

    recipe = Recording(epochs=2, batch=10, crop=3)
    for seed, again in ((1, 6), (1, 7), (2, 6)):
        torch.manual_seed(again)
        train(recipe, initialise(recipe, (1, 8, 8), 3, 0), x, y, threat=None, seed=seed)
    assert len(seen) == 12
    assert all(map(torch.equal, seen[:4], seen[4:8]))
    assert not any(map(torch.equal, seen[:4], seen[8:]))
