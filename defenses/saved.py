"""Trained models on disk: a folder with model.safetensors and a card.json that vouches for it."""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from attacks import ThreatModel
from defenses.architectures import Shape
from defenses.recipe import Recipe

WEIGHTS, CARD = "model.safetensors", "card.json"


class SavedModelError(RuntimeError):
    """A saved model that is missing, damaged, or another than expected; one line says which."""


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
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """How a model came to be, for its card; all but `seconds` is the same when it is made again.

    data is what names the training set (anything that JSON holds), natural_accuracy a fraction of
    the test set, seconds the wall-clock time of training, device where it ran.
    """
    device = torch.device(device)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("bestattack", "scikit-learn"):
        with suppress(metadata.PackageNotFoundError):  # a checkout, or not needed
            versions[package] = metadata.version(package)
    return {
        "defense": recipe_name,
        "recipe": f"{type(recipe).__module__}.{type(recipe).__qualname__}",
        "hyperparameters": asdict(recipe),
        "data": data,
        "shape": shape,
        "classes": classes,
        "threat": None if threat is None else asdict(threat),
        "seed": seed,
        "natural_accuracy": natural_accuracy,
        "seconds": seconds,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": versions,
    }


@torch.no_grad()
def round_to_half(model: nn.Module) -> None:
    """Round a model's weights and buffers, in place, to numbers that half precision holds. Raises
    ValueError where one is beyond its range."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            rounded = value.half().to(value.dtype)
            if bool((rounded.isinf() & value.isfinite()).any()):
                raise ValueError(f"{name} is beyond the range of half precision")
            value.copy_(rounded)


def save(folder: str | Path, model: nn.Module, card: Mapping[str, Any], half: bool = False) -> None:
    """Write the weights and then the card, each whole or not at all. The card gains "parameters"
    (their number), "fingerprint" and "sha256" (of the weights file).

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


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights and buffers, on any device.

    It tells weights apart, not code: what a network computes from them is not in it.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        feed(digest, name, value)
    return digest.hexdigest()


def feed(digest: "hashlib._Hash", name: str, value: Tensor) -> None:
    """Add a named tensor to a digest."""
    value = value.detach().cpu().contiguous()
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
    digest.update(value.reshape(-1).view(torch.uint8).numpy().data)


def misfit(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Why a state dict does not fit a model, in one line; empty where it does."""
    own = model.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": sorted(name for name in state if name not in own),
        "wrong shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
            for name, value in own.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in problems.items() if names
    )


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that, whatever happens, it is there as before or as meant."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
