"""Trained models on disk: a folder with model.safetensors, and a card.json that describes it."""

import hashlib
import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacks import ThreatModel
from defenses.networks.architectures import Shape
from defenses.recipes.recipe import Recipe
from defenses.weights import fingerprint, misfit, write_atomically

WEIGHTS, CARD = "model.safetensors", "card.json"


class SavedModelError(RuntimeError):
    """A saved model that is missing, damaged, or another than expected; one line says which."""


def hardware_of(device: torch.device) -> str:
    """What the card of a model calls the device that it was trained on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def describe(
    recipe_name: str,
    recipe: Recipe,
    *,
    data: Any,
    shape: Shape,
    classes: int,
    threat: ThreatModel | None,
    seed: int,
    natural_accuracy: float,
    seconds: float,
    hardware: str = "cpu",
) -> dict[str, Any]:
    """Describe how a model came to be, for its card. All but `seconds` is the same when the model
    is made again.

    data              what names the training set: anything that JSON holds.
    natural_accuracy  a fraction of the test set.
    seconds           the wall-clock time of training, on `hardware`.
    """
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("bestattack", "scikit-learn"):
        with suppress(metadata.PackageNotFoundError):  # a checkout, or not needed
            versions[package] = metadata.version(package)
    return {
        "defense": recipe_name,
        "hyperparameters": recipe.hyperparameters(),
        "data": data,
        "shape": shape,
        "classes": classes,
        "threat": None if threat is None else asdict(threat),
        "seed": seed,
        "natural_accuracy": natural_accuracy,
        "seconds": seconds,
        "device": hardware,
        "versions": versions,
    }


def save(folder: str | Path, model: nn.Module, card: Mapping[str, Any], half: bool = False) -> None:
    """Write the weights and then the card, each whole or not at all. The card gains "parameters"
    (their number), "fingerprint" (of the weights) and "sha256" (of the weights file).

    half stores weights in half precision, which loses nothing after `round_to_half`.
    """
    from safetensors.torch import save as to_bytes

    folder = Path(folder)
    # Copies, because safetensors refuses tensors that share their memory, as tied weights do.
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    if half:
        state = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    weights = to_bytes({name: value.contiguous() for name, value in state.items()})
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "fingerprint": fingerprint(model),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    text = json.dumps({**card, **facts}, indent=1, default=str) + "\n"
    write_atomically(folder / WEIGHTS, lambda file: file.write(weights))
    write_atomically(folder / CARD, lambda file: file.write(text.encode()))


def load(folder: str | Path, model: nn.Module) -> None:
    """Load saved weights into a built model, on its device, and leave it in eval mode.

    Raises SavedModelError, in one line, for a missing or damaged file, or weights of another model.
    """
    from safetensors.torch import load as from_bytes

    expected, path = read_card(folder)["sha256"], Path(folder) / WEIGHTS
    weights = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(weights).hexdigest() != expected:
        raise SavedModelError(f"{path} is missing or damaged: train the model again")
    state = from_bytes(weights)
    if problem := misfit(model, state):
        raise SavedModelError(f"{path} is of another model ({problem}): build that one")
    model.load_state_dict(state)
    model.eval()


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card of a saved model. Raises SavedModelError, in one line, if missing or damaged."""
    path = Path(folder) / CARD
    if not path.exists():
        raise SavedModelError(f"no saved model in {folder}: train it first")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        card = None
    if not isinstance(card, dict) or "sha256" not in card:
        raise SavedModelError(f"{path} is damaged: train the model again")
    return card
