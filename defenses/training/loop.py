"""The one training loop: deterministic, and resumed where it was interrupted."""

import copy
import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks import ThreatModel
from defenses.recipes.batches import Batch, Epoch
from defenses.recipes.recipe import Recipe
from defenses.training.bfloat16 import in_bfloat16, is_fast
from defenses.training.checkpoints import Checkpoint
from defenses.training.epoch_log import Rows, worse, write_log
from defenses.training.randomness import repeatable, seed_for, seeded, shuffled
from defenses.training.tally import LastLogits, Progress, Tally, TrainingError, mean_loss

# In the keys of all that is trained here. Raised when the same recipe, data and seed come to other
# weights; `tests/test_versions.py` notices where it was not.
VERSION = 1

# An interruption loses at most this much work, and an epoch.
CHECKPOINT_SECONDS = 10.0

# Losses are read from the device, which has to wait for that, this often.
READ_SECONDS = 0.5


def train(
    recipe: Recipe,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel | None,
    seed: int,
    device: str | torch.device = "cpu",
    checkpoint: Checkpoint | None = None,
    log: Path | Callable[[Rows], None] | None = None,
    report: Callable[[Progress], None] | None = None,
) -> float:
    """Train an initialised model in place, and return the seconds that it took. The model ends on
    `device`, in eval mode.

    x, y        images (n, *shape) in [0, 1] and labels (n,), int64; moved to the device whole.
    threat      of the run, for recipes that train against it.
    checkpoint  a file to resume from, and the key of the training. The file stays, finished, for
                the caller to remove once the model is saved. One that is damaged, or of another
                training, only causes a warning.
    log         a CSV file with a row per epoch, or what is called with all rows after each.
                validation_loss is on the withheld images: NaN where there are none.
    report      called twice a second and at the end of each epoch.

    The same seed gives the same weights on the same machine, interrupted or not, and global random
    state is left as it was. Accuracy is that of the logits that the model gave last, in train mode,
    at each step. Where the recipe withholds images, training stops after the first epoch in which
    the mean cross-entropy on them is not below that of the epoch before, whose weights are kept.
    Raises TrainingError where loss or weights are no longer finite, and ValueError for a training
    set that is empty, or withheld whole, or a recipe that lacks a threat.

    >>> from defenses.recipes.recipe import Vanilla
    >>> from defenses.training.initialisation import initialise
    >>> recipe = Vanilla(arch="mlp", widen=0.1, batch=8, learning_rate=0.01)
    >>> x = torch.cat([torch.zeros(8, 1, 4, 4), torch.ones(8, 1, 4, 4)])
    >>> y = torch.arange(16) // 8
    >>> model = initialise(recipe, (1, 4, 4), classes=2, seed=0)
    >>> _ = train(recipe, model, x, y, threat=None, seed=0, device=torch.device("cpu"))
    >>> bool((model(x).argmax(1) == y).all())
    True
    """
    device = torch.device(device)
    model.to(device).eval()
    x, y = x.to(device), y.to(device)
    rows: Rows = []
    with repeatable():
        if recipe.epochs:
            run = _begin(recipe, model, x, y, threat, seed, report)
            rows = run.epochs(checkpoint, partial(write_log, log) if isinstance(log, Path) else log)
        # What the recipe makes of the trained model and of what it was trained on.
        kept = len(x) - recipe.hold_out if recipe.epochs else len(x)
        with torch.no_grad(), seeded(seed_for(seed, "finish"), device):
            recipe.finish(model, x[:kept], y[:kept])
    return sum(row[-1] for row in rows)


@dataclass(frozen=True)
class _Run:
    """A training under way, of `model` by `optimizer` as the recipe says. See `train`.

    x, y      images (n, *shape) and labels (n,): what is trained on.
    withheld  the images (m, *shape) and labels (m,) that it stops by, of which there may be none.
    threat    that the recipe trains against.
    report    is told of the progress.
    """

    recipe: Recipe
    model: nn.Module
    optimizer: torch.optim.Optimizer
    x: Tensor
    y: Tensor
    withheld: tuple[Tensor, Tensor]
    threat: ThreatModel | None
    seed: int
    report: Callable[[Progress], None] | None

    def epochs(self, checkpoint: Checkpoint | None, log: Callable[[Rows], None] | None) -> Rows:
        """All epochs, or those that the checkpoint leaves; returns the log's rows of all."""
        # Go on where the checkpoint is; without one, begin.
        written = time.monotonic()
        rows = Rows() if checkpoint is None else checkpoint.resume(self.model, self.optimizer)

        for number in range(len(rows), self.recipe.epochs):
            # Stop early where the last epoch was worse than the one before.
            if worse(rows):
                break
            began = time.monotonic()
            before = copy.deepcopy(self.model.state_dict()) if self.recipe.hold_out else {}

            # Train for one epoch.
            done, rate = self.epoch(number)

            # Note how it went, and take back what was worse.
            validation = mean_loss(self.model, *self.withheld) if self.recipe.hold_out else math.nan
            seconds = time.monotonic() - began
            rows.append([number + 1, done.loss, done.accuracy, rate, validation, seconds])
            if worse(rows):
                self.model.load_state_dict(before)

            # Write the log and, if it is time or the training ends here, the checkpoint.
            if log is not None:
                log(rows)
            due = time.monotonic() - written >= CHECKPOINT_SECONDS
            if checkpoint is not None and (due or number + 1 == self.recipe.epochs or worse(rows)):
                checkpoint.write(self.model, self.optimizer, rows)
                written = time.monotonic()
        return rows

    def epoch(self, number: int) -> tuple[Progress, float]:
        """One pass over what is trained on: the progress at its end, and the last learning rate."""
        # Shuffle and split; the recipe prepares the model, and chooses the samples of each step.
        order = shuffled(len(self.x), self.seed, number).to(self.x.device)
        split = order.tensor_split(-(-len(self.x) // self.recipe.batch))
        epoch = Epoch(number, self.recipe.epochs, split, self.threat, self.seed)
        with torch.no_grad(), seeded(seed_for(self.seed, "epoch", number), self.x.device):
            self.recipe.begin_epoch(self.model, self.x, self.y, number)
            batches = self.recipe.batches(self.model, self.x, self.y, epoch)

        steps = len(split)
        tally, last, read = Tally(number, epoch.epochs, steps), LastLogits(), time.monotonic()
        self.model.train()
        noise = seeded(seed_for(self.seed, "noise", number), self.x.device)
        part = self.recipe.computing(self.model)
        computing = in_bfloat16(part) if self.recipe.compute == "bfloat16" else nullcontext()
        with last.watching(self.model), noise, computing:
            for numbers, batch in zip(split, batches, strict=True):
                rate = self.recipe.rate(batch.step / (epoch.epochs * steps))
                loss = self.step(batch, rate)
                # Report, which is when losses are looked at.
                tally.add(len(numbers), loss, last.take(), batch.y)
                if tally.step == steps or time.monotonic() - read >= READ_SECONDS:
                    done, read = tally.read(), time.monotonic()
                    if self.report is not None:
                        self.report(done)
        self.model.eval()

        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise TrainingError(f"infinite weights in epoch {number + 1}: lower learning_rate")
        return done, rate

    def step(self, batch: Batch, rate: float) -> Tensor:
        """Forward, backward and update at a learning rate; returns the loss, a scalar."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.recipe.loss(self.model, batch)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss


def _begin(
    recipe: Recipe,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel | None,
    seed: int,
    report: Callable[[Progress], None] | None,
) -> _Run:
    """A training before its first epoch. See `train`."""
    if not len(x):
        raise ValueError("there are no samples to train on")
    kept = len(x) - recipe.hold_out
    if kept < 1:
        raise ValueError(f"hold_out must be below {len(x)}, the number of training images")
    if recipe.compute == "bfloat16" and not is_fast(x.device):
        what = "this processor" if x.device.type == "cpu" else f"this {x.device.type} device"
        warnings.warn(
            f"{what} has no instructions for bfloat16: leave compute out, float32 is faster here",
            stacklevel=3,
        )
    against, optimizer = recipe.trains_against(threat), _optimizer(recipe, model)
    withheld = x[kept:], y[kept:]
    return _Run(recipe, model, optimizer, x[:kept], y[:kept], withheld, against, seed, report)


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer, of all weights that are trained; its rate is set at each step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = recipe.weight_decay
    # Fused steps round otherwise, and what was trained in float32 must come out again.
    fused = True if recipe.compute == "bfloat16" else None
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, weight_decay=decay, fused=fused)
    return torch.optim.SGD(parameters, momentum=recipe.momentum, weight_decay=decay, fused=fused)
