"""What an interrupted training goes on from."""

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from defenses.weights import write_atomically

# Of the log, one for each epoch that is done.
Rows = list[list[float]]


def write(path: Path, key: str, state: dict[str, Any]) -> None:
    """A line with the training's key and the digest of the rest, then the state."""
    body = io.BytesIO()
    torch.save(state, body)
    head = f"{key} {hashlib.sha256(body.getvalue()).hexdigest()}\n".encode()
    write_atomically(path, lambda file: file.write(head + body.getvalue()))


def resume(path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Rows:
    """Restore model and optimizer, and give the log's rows of the epochs that are done: none, with
    a warning for the caller's caller, where the file is damaged or of another training."""
    if not path.exists():
        return []
    head, _, body = path.read_bytes().partition(b"\n")
    # torch.load alone would not notice a flipped bit in a tensor.
    known, _, digest = head.decode(errors="replace").partition(" ")
    if hashlib.sha256(body).hexdigest() != digest:
        reason = "damaged"
    elif known != key:
        reason = "of another training (hyperparameters, data, seed, device or torch)"
    else:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rows: Rows = state["rows"]
        return rows
    warnings.warn(f"checkpoint {path} is {reason}: training starts over", stacklevel=3)
    return []
