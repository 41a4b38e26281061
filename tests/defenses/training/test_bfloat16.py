"""Trainings whose networks compute in bfloat16."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses import (
    GNB,
    L2NNN,
    NBR,
    TRADES,
    AdversarialTraining,
    BestFractal,
    External,
    Fractal,
    Hybrid,
    Recipe,
    RoBin,
    Vanilla,
    describe,
    fingerprint,
    initialise,
)
from defenses.training import loop
from defenses.training.bfloat16 import in_bfloat16
from tests.defenses.training.trainings import LINF, SHAPE, interrupt_at, trained

Digits = tuple[Tensor, Tensor, Tensor, Tensor]
Few = tuple[Tensor, Tensor]

# Whether this machine has bfloat16 or not, the same is asked of it.
pytestmark = [
    pytest.mark.usefixtures("at_every_occasion"),
    pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16"),
]

RECIPES: dict[str, Recipe] = {
    "adam": Vanilla(arch="cnn2", epochs=2, hold_out=20, compute="bfloat16"),
    "batch norm": AdversarialTraining(
        arch="myrtle", widen=0.1, epochs=2, steps=2, crop=1, compute="bfloat16"
    ),
    "two passes": TRADES(arch="cnn2", widen=0.5, epochs=2, steps=2, compute="bfloat16"),
    "one by one": RoBin(arch="cnn2", widen=0.5, epochs=2, steps=1, compute="bfloat16"),
    "all at once": RoBin(arch="mlp", widen=0.1, epochs=2, steps=1, batch=40, compute="bfloat16"),
    "foreign": External(
        layers="Conv2d(1, 8, 3), ReLU(), Flatten(), Linear(288, 10)", epochs=2, compute="bfloat16"
    ),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_interrupted_and_resumed_is_undisturbed_bit_for_bit(
    recipe: Recipe, few: Few, tmp_path: Path
) -> None:
    whole = fingerprint(trained(recipe, few))
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, few, checkpoint=tmp_path / "state.pt", report=interrupt_at(2, 2))
    epochs: list[int] = []
    resumed = trained(
        recipe, few, checkpoint=tmp_path / "state.pt", report=lambda p: epochs.append(p.epoch)
    )
    assert set(epochs) == {2}
    assert fingerprint(resumed) == whole


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_weights_are_in_float32_and_contiguous_and_others_than_those_of_float32(
    recipe: Recipe, few: Few
) -> None:
    model = trained(recipe, few)
    for value in model.state_dict().values():
        assert value.dtype in (torch.float32, torch.int64)
        assert value.is_contiguous()
    assert model(few[0]).dtype == torch.float32
    assert fingerprint(model) != fingerprint(trained(replace(recipe, compute="float32"), few))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_one_step_is_that_of_float32_up_to_the_rounding_of_bfloat16(
    recipe: Recipe, few: Few
) -> None:
    """The steps of plain descent are the gradients. bfloat16 has 8 bits."""
    descent: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "batch": 257, "crop": 0}
    if not isinstance(recipe, External):
        descent |= {"arch": "cnn2"}
    recipe = replace(recipe, epochs=1, learning_rate=1.0, weight_decay=0.0, **descent)
    start = nn.utils.parameters_to_vector(initialise(recipe, SHAPE, 10, 1).parameters())
    ours, exact = (
        nn.utils.parameters_to_vector(trained(replace(recipe, compute=compute), few).parameters())
        for compute in ("bfloat16", "float32")
    )
    assert (ours - exact).norm() <= 0.05 * (exact - start).norm()


def test_layers_compute_in_bfloat16_when_examples_are_crafted_too_and_losses_in_float32(
    few: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[str, bool, torch.dtype]] = set()

    def watch(module: nn.Module, _: Any, output: Tensor) -> None:
        if type(module) in (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Sequential):
            seen.add((type(module).__name__, module.training, output.dtype))

    build = AdversarialTraining.build

    def watched(*given: Any) -> nn.Module:
        model = nn.Sequential(*build(*given))  # named alike, whatever the architecture's class
        for module in model.modules():
            module.register_forward_hook(watch)
        return model

    monkeypatch.setattr(AdversarialTraining, "build", watched)
    trained(replace(RECIPES["batch norm"], epochs=1), few)
    layers = ("Conv2d", "BatchNorm2d", "Linear")
    expected = {(layer, mode, torch.bfloat16) for layer in layers for mode in (True, False)}
    assert seen == expected | {("Sequential", mode, torch.float32) for mode in (True, False)}


def test_weights_lie_channels_last_inside_and_are_as_before_after_it() -> None:
    recipe = RECIPES["batch norm"]
    model = initialise(recipe, SHAPE, 10, 0)
    convolution = model.get_submodule("3")
    before, forward = fingerprint(model), model.forward
    with in_bfloat16(model):
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
        assert not convolution.weight.is_contiguous()
        assert fingerprint(model) == before
        with pytest.raises(RuntimeError):
            model(torch.rand(2, 3, 8, 8))
    assert convolution.weight.is_contiguous()
    assert model.forward == forward


def test_what_is_learnt_is_as_good(digits: Digits) -> None:
    x, y, x_test, y_test = digits
    recipe = AdversarialTraining(arch="cnn2", epochs=6, steps=3, batch=32)
    accuracies = []
    for compute in ("float32", "bfloat16"):
        model = trained(replace(recipe, compute=compute), (x, y))
        accuracies.append((model(x_test).argmax(1) == y_test).float().mean().item())
    assert min(accuracies) > 0.9
    assert abs(accuracies[0] - accuracies[1]) <= 0.02


def test_an_option_that_nobody_gives_is_in_no_key_and_no_card() -> None:
    def card(recipe: Recipe) -> dict[str, Any]:
        found: dict[str, Any] = describe(
            "vanilla", recipe, data="digits", shape=SHAPE, classes=10, threat=LINF, seed=0,
            natural_accuracy=0.5, seconds=1.0,
        )["hyperparameters"]  # fmt: skip
        return found

    for recipe in (Vanilla(), External(layers="Flatten(), Linear(64, 10)", epochs=1)):
        lower = replace(recipe, compute="bfloat16")
        assert "compute" not in recipe.settings()
        assert "compute" not in card(recipe)
        assert lower.settings() == recipe.settings() | {"compute": "bfloat16"}
        assert card(lower) == card(recipe) | {"compute": "bfloat16"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (L2NNN, {}),
        (NBR, {}),
        (Fractal, {}),
        (BestFractal, {"offset": 0.1}),
        (GNB, {"source": "nbr"}),
        (Hybrid, {"of": "l2nnn", "otherwise": "vanilla"}),
    ],
)
def test_networks_that_promise_more_than_logits_are_refused(
    kind: type[Recipe], options: dict[str, Any]
) -> None:
    kind(**options, compute="float32")
    with pytest.raises(ValueError, match="are computed in float32: leave compute out"):
        kind(**options, compute="bfloat16")


def test_another_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown compute 'float16': use float32 or bfloat16"):
        Vanilla(**{"compute": "float16"})  # type: ignore[arg-type]


@pytest.mark.filterwarnings("default")
def test_a_processor_without_bfloat16_says_so_and_another_does_not(
    few: Few, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    recipe = Vanilla(arch="mlp", epochs=1, compute="bfloat16")
    monkeypatch.setattr(loop, "is_fast", lambda device: True)
    trained(recipe, few)
    assert not recwarn.list
    monkeypatch.setattr(loop, "is_fast", lambda device: False)
    trained(replace(recipe, compute="float32"), few)
    assert not recwarn.list
    trained(recipe, few)
    (warning,) = recwarn.list
    assert str(warning.message).startswith("this processor has no instructions for bfloat16: ")
