"""Every recipe trains on the simulated accelerator to the weights that it has on the CPU."""

import pytest
import torch
from torch import Tensor

from benchmark.spec.registry import DEFENSES
from tests.accelerator.simulated import DEVICE, OnDevice, accelerator, to_host
from tests.guarded import trained

# What is quick enough to be run each time, one recipe of each kind.
QUICK = ("vanilla", "pgd-at", "trades", "mart", "robin", "l2nnn", "external", "hierarchical")

# Further ways of training, by their options.
WAYS = {
    "crops": ("vanilla", {"crop": 1, "arch": "resnet18", "widen": 0.05}),
    "momentum": ("vanilla", {"optimizer": "sgd", "weight_decay": 0.01, "schedule": "one-cycle"}),
    "withheld": ("vanilla", {"hold_out": 6, "dropout": 0.2}),
    "bounds": ("pgd-at", {"norm": "l1", "eps": 0.5}),
}


def _weights(name: str, device: torch.device, **options: object) -> dict[str, Tensor]:
    model = trained(name, device, **options)
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        assert isinstance(value, OnDevice) == (device == DEVICE), key
    return {key: to_host(value) for key, value in model.state_dict().items()}


def _check(name: str, **options: object) -> None:
    expected = _weights(name, torch.device("cpu"), **options)
    with accelerator():
        found = _weights(name, DEVICE, **options)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
     for name in sorted(DEFENSES._builtin)],
)  # fmt: skip
def test_a_recipe_comes_to_the_same_weights(name: str) -> None:
    _check(name)


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_training_come_to_the_same_weights(way: str) -> None:
    name, options = WAYS[way]
    _check(name, **options)
