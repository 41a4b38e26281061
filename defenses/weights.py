"""Weights: told apart by content, held against a model, rounded; and files written whole."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn


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
