"""What is known of a training while it goes on: its losses and its accuracy."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Images at once when the loss on those withheld is measured.
_AT_ONCE = 512


class TrainingError(RuntimeError):
    """Training cannot go on; one line says where, and what to do."""


@dataclass(frozen=True)
class Progress:
    """Where training stands: epoch of epochs and step of steps in it, counting from 1; the mean
    loss and the accuracy (a fraction; NaN where unknown) of this epoch so far, as trained."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float


class Tally:
    """An epoch's losses and hits, left on the device until they are read."""

    def __init__(self, epoch: int, epochs: int, steps: int) -> None:
        self.epoch, self.epochs, self.steps, self.step = epoch, epochs, steps, 0
        self._unread: list[Tensor] = []
        self._loss, self._hits, self._samples = 0.0, 0.0, 0

    def add(self, samples: int, loss: Tensor, logits: Tensor | None, y: Tensor) -> None:
        """A step on so many samples of the training set: its scalar loss and, where they are known,
        its logits (n, classes) for the labels y (n,)."""
        loss = loss.detach()
        known = logits is not None and logits.dim() == 2 and len(logits) == len(y)
        hits = (logits.argmax(1) == y).sum() if logits is not None and known else loss * math.nan
        self._unread.append(torch.stack([loss * samples, hits.to(loss.dtype)]))
        self._samples += samples
        self.step += 1

    def read(self) -> Progress:
        """Raises TrainingError at the first loss that is not finite."""
        first = self.step - len(self._unread) + 1
        for step, (loss, hits) in enumerate(torch.stack(self._unread).tolist(), first):
            if not math.isfinite(loss):
                where = f"epoch {self.epoch + 1}, step {step}"
                raise TrainingError(f"the loss is {loss} in {where}: lower learning_rate")
            self._loss += loss
            self._hits += hits
        self._unread.clear()
        loss, accuracy = self._loss / self._samples, self._hits / self._samples
        return Progress(self.epoch + 1, self.epochs, self.step, self.steps, loss, accuracy)


class LastLogits:
    """Keeps what the model gave last in train mode, until it is taken. Adversarial examples are
    crafted in eval mode, so it is what the step learnt from."""

    def __init__(self) -> None:
        self._logits: Tensor | None = None

    def take(self) -> Tensor | None:
        """The logits of the step; None where the model itself was not run."""
        logits, self._logits = self._logits, None
        return logits

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """What the model gives inside is kept."""

        def keep(module: nn.Module, _: Any, output: Any) -> None:
            if module.training and isinstance(output, Tensor):
                self._logits = output.detach()

        handle = model.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()


@torch.no_grad()
def mean_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The mean cross-entropy over any number of images. Raises TrainingError where not finite."""
    parts = zip(x.split(_AT_ONCE), y.split(_AT_ONCE), strict=True)
    losses = [
        nn.functional.cross_entropy(model(images), labels, reduction="none")
        for images, labels in parts
    ]
    mean = float(torch.cat(losses).double().mean())
    if not math.isfinite(mean):
        raise TrainingError(f"the loss on withheld images is {mean}: lower learning_rate")
    return mean
