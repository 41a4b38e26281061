"""The one training loop: deterministic, and resumed where it was interrupted."""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks import ThreatModel
from defenses.networks.architectures import Shape
from defenses.recipes.derived import Derived
from defenses.recipes.recipe import Batch, Recipe
from defenses.training import checkpoints
from defenses.training.checkpoints import Rows
from defenses.weights import write_atomically

# In the keys of all that is trained here. Raised when the same recipe, data and seed come to other
# weights; `tests/test_versions.py` notices where it was not.
VERSION = 1

# An interruption loses at most this much work, and an epoch.
CHECKPOINT_SECONDS = 10.0

# Losses are read from the device, which has to wait for that, this often.
READ_SECONDS = 0.5

# Images at once when the loss on those withheld is measured.
_AT_ONCE = 512

# Of the log.
_COLUMNS = ("epoch", "loss", "accuracy", "learning_rate", "validation_loss", "seconds")
_VALIDATION = _COLUMNS.index("validation_loss")


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


def initialise(
    recipe: Recipe,
    shape: Shape,
    classes: int,
    seed: int,
    parts: Mapping[str, nn.Module] | None = None,
) -> nn.Module:
    """A fresh model on the CPU, in eval mode, whose weights depend on the seed and on the `parts`
    that a Derived recipe is made of alone; they become its own."""
    with _seeded(_derived(seed, "weights"), torch.device("cpu")):
        if isinstance(recipe, Derived):
            return recipe.derive(shape, classes, **(parts or {})).eval()
        return recipe.build(shape, classes).eval()


def train(
    recipe: Recipe,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel | None,
    seed: int,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    key: str = "",
    log: Path | None = None,
    report: Callable[[Progress], None] | None = None,
) -> float:
    """Train an initialised model in place; it ends on `device`, in eval mode. The seconds it took.

    x, y        images (n, *shape) in [0, 1] and labels (n,), int64; moved to the device whole.
    threat      of the run, for recipes that train against it.
    checkpoint  a file to resume from. It stays, finished, for the caller to remove once the model
                is saved. One that is damaged, or of another training, only causes a warning.
    key         names the training in its checkpoint: another for other hyperparameters, data, seeds
                and all else that determines the weights.
    log         a CSV file with a row per epoch. validation_loss is on the withheld images: NaN
                where there are none.
    report      called twice a second and at the end of each epoch.

    The same seed gives the same weights on the same machine, interrupted or not, and global random
    state is left as it was. Accuracy is that of the logits that the model gave last, in train mode,
    at each step. Where the recipe withholds images, training stops after the first epoch in which
    the mean cross-entropy on them is not below that of the epoch before, whose weights are kept.
    Raises TrainingError where loss or weights are no longer finite, and ValueError for a training
    set that is empty, or withheld whole, or a recipe that lacks a threat.
    """
    device = torch.device(device)
    model.to(device).eval()
    if not recipe.epochs:
        _finish(recipe, model, x.to(device), y.to(device), seed)
        return 0.0
    if not len(x):
        raise ValueError("there are no samples to train on")
    kept = len(x) - recipe.hold_out
    if kept < 1:
        raise ValueError(f"hold_out must be below {len(x)}, the number of training images")
    threat = recipe.trains_against(threat)
    optimizer = _optimizer(recipe, model)
    rows = Rows()
    if checkpoint is not None:
        rows = checkpoints.resume(checkpoint, key, model, optimizer)
    x, y = x.to(device), y.to(device)
    (x, y), withheld = (x[:kept], y[:kept]), (x[kept:], y[kept:])
    steps = math.ceil(len(x) / recipe.batch)
    written = time.monotonic()
    with _repeatable(), _last_logits(model) as last:
        for epoch in range(len(rows), recipe.epochs):
            if _worse(rows):
                break
            before = copy.deepcopy(model.state_dict()) if recipe.hold_out else {}
            began = read = time.monotonic()
            tally = _Tally(epoch, recipe.epochs, steps)
            with torch.no_grad(), _seeded(_derived(seed, "epoch", epoch), device):
                recipe.begin_epoch(model, x, y, epoch)
            model.train()
            with _seeded(_derived(seed, "noise", epoch), device):
                # Parts of nearly one size: a last batch of one sample would break batch norm.
                for part in _order(len(x), seed, epoch).to(device).tensor_split(steps):
                    step = epoch * steps + tally.step
                    rate = recipe.rate(step / (recipe.epochs * steps))
                    progress = (epoch + 1) / recipe.epochs
                    batch = Batch(
                        recipe.augment(x[part]), y[part], part, threat, seed, step, progress
                    )
                    loss = recipe.loss(model, batch)
                    _descend(optimizer, loss, rate)
                    tally.add(loss, last, batch.y)
                    if tally.step == steps or time.monotonic() - read >= READ_SECONDS:
                        done, read = tally.read(), time.monotonic()
                        if report is not None:
                            report(done)
            model.eval()
            if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
                raise TrainingError(f"infinite weights in epoch {epoch + 1}: lower learning_rate")
            validation = _mean_loss(model, *withheld) if recipe.hold_out else math.nan
            seconds = time.monotonic() - began
            rows.append([epoch + 1, done.loss, done.accuracy, rate, validation, seconds])
            if _worse(rows):
                model.load_state_dict(before)
            if log is not None:
                _write_log(log, rows)
            late = time.monotonic() - written >= CHECKPOINT_SECONDS
            if checkpoint is not None and (late or epoch + 1 == recipe.epochs or _worse(rows)):
                states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                checkpoints.write(checkpoint, key, {"rows": rows, **states})
                written = time.monotonic()
        _finish(recipe, model, x, y, seed)
    return sum(row[-1] for row in rows)


def _finish(recipe: Recipe, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> None:
    with torch.no_grad(), _seeded(_derived(seed, "finish"), x.device):
        recipe.finish(model, x, y)


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, weight_decay=decay)
    return torch.optim.SGD(parameters, momentum=recipe.momentum, weight_decay=decay)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()


class _Tally:
    """An epoch's losses and hits, left on the device until they are read."""

    def __init__(self, epoch: int, epochs: int, steps: int) -> None:
        self.epoch, self.epochs, self.steps, self.step = epoch, epochs, steps, 0
        self._unread: list[Tensor] = []
        self._loss, self._hits, self._samples = 0.0, 0.0, 0

    def add(self, loss: Tensor, last: list[Tensor], y: Tensor) -> None:
        """A step's scalar loss and labels (n,); takes its logits (n, classes), if there are any."""
        loss = loss.detach()
        logits = last.pop() if last else y
        known = logits.dim() == 2 and len(logits) == len(y)
        hits = (logits.argmax(1) == y).sum() if known else loss * math.nan
        self._unread.append(torch.stack([loss * len(y), hits.to(loss.dtype)]))
        self._samples += len(y)
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


@contextmanager
def _last_logits(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds what the model gave last in train mode (examples are crafted in eval)."""
    last: list[Tensor] = []

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        if module.training and isinstance(output, Tensor):
            last[:] = [output.detach()]

    handle = model.register_forward_hook(keep)
    try:
        yield last
    finally:
        handle.remove()


def _derived(*words: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:8], "big") >> 1


def _order(samples: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(_derived(seed, "order", epoch))
    return torch.randperm(samples, generator=generator)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Global randomness, of the CPU and the device, seeded inside and restored after."""
    # Not torch.manual_seed: it also seeds all other accelerators, which nobody would restore.
    cuda = device.type == "cuda"
    numbers = [torch.empty(0, device=device).device.index] if cuda else []
    with torch.random.fork_rng(numbers):
        torch.default_generator.manual_seed(seed)
        for number in numbers:
            torch.cuda.default_generators[number].manual_seed(seed)
        yield


@contextmanager
def _repeatable() -> Iterator[None]:
    """Convolutions on an accelerator by algorithms that give the same bits each time."""
    backend = torch.backends.cudnn
    before = backend.deterministic, backend.benchmark
    backend.deterministic, backend.benchmark = True, False
    try:
        yield
    finally:
        backend.deterministic, backend.benchmark = before


@torch.no_grad()
def _mean_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The mean cross-entropy over any number of images. Raises TrainingError where not finite."""
    parts = zip(x.split(_AT_ONCE), y.split(_AT_ONCE), strict=True)
    losses = [nn.functional.cross_entropy(model(a), b, reduction="none") for a, b in parts]
    mean = float(torch.cat(losses).double().mean())
    if not math.isfinite(mean):
        raise TrainingError(f"the loss on withheld images is {mean}: lower learning_rate")
    return mean


def _worse(rows: Rows) -> bool:
    """Whether the last epoch did not lower the loss on withheld images. By the log's rows, which a
    resumed training has too."""
    return len(rows) > 1 and rows[-1][_VALIDATION] >= rows[-2][_VALIDATION]


def _write_log(path: Path, rows: Rows) -> None:
    lines = [",".join(_COLUMNS)]
    lines += [",".join(f"{value:.6g}" for value in row) for row in rows]
    write_atomically(path, lambda file: file.write("\n".join([*lines, ""]).encode()))
