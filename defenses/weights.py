"""Weights: rounded, told apart by content, and compared with a model; and files written whole."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

# What `write_atomically` calls a file until it is whole: .NAME.PROCESS, as in .card.json.4711.
_HALF_WRITTEN = re.compile(r"\..+\.(csv|json|md|npz|png|pt|safetensors|yaml)\.\d+")


@torch.no_grad()
def round_to_half(model: nn.Module) -> None:
    """Round a model's weights and buffers, in place, to numbers that half precision can hold.
    Raises ValueError for a number beyond its range."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            rounded = value.half().to(value.dtype)
            if bool((rounded.isinf() & value.isfinite()).any()):
                raise ValueError(f"{name} is beyond the range of half precision")
            value.copy_(rounded)


def fingerprint(model: nn.Module) -> str:
    """The SHA-256 of the names, types, shapes and bytes of all weights and buffers. It is the same
    on any device.

    It tells weights apart, but not code: it does not depend on what a network computes from them.
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
    """Say in one line why a state dict does not fit a model; empty if it does."""
    wanted = model.state_dict()
    problems = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": sorted(name for name in state if name not in wanted),
        "wrong shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in problems.items() if names
    )


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that, whatever happens, it is either as it was before or complete."""
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


def half_written(folder: Path) -> list[Path]:
    """The files in a folder that `write_atomically` began and that a killed process left behind.

    Those that another process is writing now are among them.
    """
    return [path for path in folder.iterdir() if _HALF_WRITTEN.fullmatch(path.name)]
