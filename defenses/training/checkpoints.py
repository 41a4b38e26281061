"""What an interrupted training goes on from."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from defenses.training.epoch_log import Rows
from defenses.weights import write_atomically


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds how far a training has come.

    path  of the file, which need not be there yet.
    key   names the training: another for other hyperparameters, data, seeds, and all else that
          determines its weights.
    """

    path: Path
    key: str

    def write(self, model: nn.Module, optimizer: torch.optim.Optimizer, rows: Rows) -> None:
        """Write the key and the digest of the rest in a line, then weights, optimizer and the rows
        of the log."""
        body = io.BytesIO()
        state = {"rows": rows, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, body)
        head = f"{self.key} {hashlib.sha256(body.getvalue()).hexdigest()}\n".encode()
        self.store(head + body.getvalue())

    def store(self, content: bytes) -> None:
        """Keep the content of the file."""
        write_atomically(self.path, lambda file: file.write(content))

    def stored(self) -> bytes | None:
        """The content of the file; None where there is none."""
        return self.path.read_bytes() if self.path.exists() else None

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Rows:
        """Restore model and optimizer, and return the log's rows of the epochs that are done. Where
        the file is damaged or of another training there are none, and whoever called `train` is
        warned."""
        content = self.stored()
        if content is None:
            return []
        head, _, body = content.partition(b"\n")
        # torch.load alone would not notice a flipped bit in a tensor.
        known, _, digest = head.decode(errors="replace").partition(" ")
        if hashlib.sha256(body).hexdigest() != digest:
            reason = "damaged"
        elif known != self.key:
            reason = "of another training (hyperparameters, data, seed, device or torch)"
        else:
            state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            rows: Rows = state["rows"]
            return rows
        warnings.warn(f"checkpoint {self.path} is {reason}: training starts over", stacklevel=4)
        return []
