"""What an interrupted training goes on from."""

import hashlib
import io
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks import ThreatModel
from defenses.recipes.recipe import Recipe
from defenses.training.epoch_log import Rows
from defenses.weights import feed, fingerprint, write_atomically

# Raised when a checkpoint holds something else; one of another layout is of another training.
_LAYOUT = 2


def identify(
    recipe: Recipe,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel | None,
    seed: int,
) -> str:
    """A hash of all that determines the trained weights: the images x and labels y are where the
    training runs."""
    facts = [
        [type(recipe).__module__, type(recipe).__qualname__, asdict(recipe)],
        [threat and asdict(threat), seed, fingerprint(model), x.device.type, torch.__version__],
        _LAYOUT,
    ]
    digest = hashlib.sha256(json.dumps(facts, default=str).encode())
    feed(digest, "x", x)
    feed(digest, "y", y)
    return digest.hexdigest()


def write(path: Path, identity: str, state: dict[str, Any]) -> None:
    """Write a line with the training's identity and the digest of the rest, then the state."""
    body = io.BytesIO()
    torch.save(state, body)
    head = f"{identity} {hashlib.sha256(body.getvalue()).hexdigest()}\n".encode()
    write_atomically(path, lambda file: file.write(head + body.getvalue()))


def resume(path: Path, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Rows:
    """Restore model and optimizer, and return the log's rows of the epochs that are done. Where the
    file is damaged or of another training there are none, and whoever called `train` is warned."""
    if not path.exists():
        return []
    head, _, body = path.read_bytes().partition(b"\n")
    # torch.load alone would not notice a flipped bit in a tensor.
    known, _, digest = head.decode(errors="replace").partition(" ")
    if hashlib.sha256(body).hexdigest() != digest:
        reason = "damaged"
    elif known != identity:
        reason = "of another training (hyperparameters, data, seed, device or torch)"
    else:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rows: Rows = state["rows"]
        return rows
    warnings.warn(f"checkpoint {path} is {reason}: training starts over", stacklevel=4)
    return []
