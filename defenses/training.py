"""The one training loop: deterministic, and resumed where it was interrupted."""

import hashlib
import io
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks import ThreatModel
from defenses.architectures import Shape
from defenses.derived import Derived
from defenses.recipe import Batch, Recipe
from defenses.saved import feed, fingerprint, write_atomically

# An interruption loses at most this much work, and an epoch.
CHECKPOINT_SECONDS = 10.0

# Losses are read from the device, which has to wait for that, this often.
READ_SECONDS = 0.5

Rows = list[list[float]]


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
    log: Path | None = None,
    report: Callable[[Progress], None] | None = None,
) -> float:
    """Train an initialised model in place; it ends on `device`, in eval mode. The seconds it took.

    x, y        images (n, *shape) in [0, 1] and labels (n,), int64; moved to the device whole.
    threat      of the run, for recipes that train against it.
    checkpoint  a file to resume from. It stays, finished, for the caller to remove once the model
                is saved. One that is damaged, or of another training, only causes a warning.
    log         a CSV file with a row per epoch.
    report      called twice a second and at the end of each epoch.

    The same seed gives the same weights on the same machine, interrupted or not, and global random
    state is left as it was. Accuracy is that of the logits that the model gave last, in train mode,
    at each step. Raises TrainingError where loss or weights are no longer finite, and ValueError
    for an empty training set or a recipe that lacks a threat.
    """
    device = torch.device(device)
    model.to(device).eval()
    if not recipe.epochs:
        _finish(recipe, model, x.to(device), y.to(device), seed)
        return 0.0
    if not len(x):
        raise ValueError("there are no samples to train on")
    threat = recipe.trains_against(threat)
    optimizer = _optimizer(recipe, model)
    identity, rows = "", Rows()
    if checkpoint is not None:
        identity = _identity(recipe, model, x, y, threat, seed, device)
        rows = _resume(checkpoint, identity, model, optimizer)
    x, y = x.to(device), y.to(device)
    steps = math.ceil(len(x) / recipe.batch)
    written = time.monotonic()
    with _repeatable(), _last_logits(model) as last:
        for epoch in range(len(rows), recipe.epochs):
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
            rows.append([epoch + 1, done.loss, done.accuracy, rate, time.monotonic() - began])
            if log is not None:
                _write_log(log, rows)
            late = time.monotonic() - written >= CHECKPOINT_SECONDS
            if checkpoint is not None and (late or epoch + 1 == recipe.epochs):
                states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                _write_checkpoint(checkpoint, identity, {"rows": rows, **states})
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


def _identity(
    recipe: Recipe,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel | None,
    seed: int,
    device: torch.device,
) -> str:
    """A hash of all that determines the trained weights."""
    facts = [
        [type(recipe).__module__, type(recipe).__qualname__, asdict(recipe)],
        [threat and asdict(threat), seed, fingerprint(model), device.type, torch.__version__],
    ]
    digest = hashlib.sha256(json.dumps(facts, default=str).encode())
    feed(digest, "x", x)
    feed(digest, "y", y)
    return digest.hexdigest()


def _write_checkpoint(path: Path, identity: str, state: dict[str, Any]) -> None:
    """A line with the training's identity and the digest of the rest, then the state."""
    body = io.BytesIO()
    torch.save(state, body)
    head = f"{identity} {hashlib.sha256(body.getvalue()).hexdigest()}\n".encode()
    write_atomically(path, lambda file: file.write(head + body.getvalue()))


def _resume(path: Path, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Rows:
    """Restore model and optimizer, and give the log's rows of the epochs that are done."""
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
    warnings.warn(f"checkpoint {path} is {reason}: training starts over", stacklevel=3)
    return []


def _write_log(path: Path, rows: Rows) -> None:
    lines = ["epoch,loss,accuracy,learning_rate,seconds"]
    lines += [",".join(f"{value:.6g}" for value in row) for row in rows]
    write_atomically(path, lambda file: file.write("\n".join([*lines, ""]).encode()))
