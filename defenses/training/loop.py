"""The one training loop: deterministic, and resumed where it was interrupted."""

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks import ThreatModel
from defenses.recipes.batches import Epoch
from defenses.recipes.recipe import Recipe
from defenses.training.checkpoints import Checkpoint
from defenses.training.epoch_log import Rows, worse, write_log
from defenses.training.randomness import derived, repeatable, seeded, shuffled
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
    log: Path | None = None,
    report: Callable[[Progress], None] | None = None,
) -> float:
    """Train an initialised model in place, and return the seconds that it took. The model ends on
    `device`, in eval mode.

    x, y        images (n, *shape) in [0, 1] and labels (n,), int64; moved to the device whole.
    threat      of the run, for recipes that train against it.
    checkpoint  a file to resume from, and the key of the training. The file stays, finished, for
                the caller to remove once the model is saved. One that is damaged, or of another
                training, only causes a warning.
    log         a CSV file with a row per epoch. validation_loss is on the withheld images: NaN
                where there are none.
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
    kept = len(x) - recipe.hold_out if recipe.epochs else len(x)
    rows: Rows = []
    with repeatable():
        if recipe.epochs:
            rows = _run_epochs(recipe, model, x, y, kept, threat, seed, checkpoint, log, report)
        # What the recipe makes of the trained model and of what it was trained on.
        with torch.no_grad(), seeded(derived(seed, "finish"), device):
            recipe.finish(model, x[:kept], y[:kept])
    return sum(row[-1] for row in rows)


def _run_epochs(
    recipe: Recipe,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    kept: int,
    threat: ThreatModel | None,
    seed: int,
    checkpoint: Checkpoint | None,
    log: Path | None,
    report: Callable[[Progress], None] | None,
) -> Rows:
    """The epochs of a training on the first `kept` images, or those that its checkpoint leaves;
    returns the log's rows of all. The other images are withheld. See `train`."""
    if not len(x):
        raise ValueError("there are no samples to train on")
    if kept < 1:
        raise ValueError(f"hold_out must be below {len(x)}, the number of training images")
    threat, optimizer = recipe.trains_against(threat), _optimizer(recipe, model)

    # Go on where the checkpoint is; without one, begin.
    written = time.monotonic()
    rows = Rows() if checkpoint is None else checkpoint.resume(model, optimizer)

    for number in range(len(rows), recipe.epochs):
        # Stop early where the last epoch was worse than the one before.
        if worse(rows):
            break
        began = time.monotonic()
        before = copy.deepcopy(model.state_dict()) if recipe.hold_out else {}

        # Train for one epoch.
        split = shuffled(kept, seed, number).to(x.device).tensor_split(-(-kept // recipe.batch))
        epoch = Epoch(number, recipe.epochs, split, threat, seed)
        done, rate = _run_epoch(recipe, model, x[:kept], y[:kept], epoch, optimizer, report)

        # Note how it went, and take back what was worse.
        validation = mean_loss(model, x[kept:], y[kept:]) if recipe.hold_out else math.nan
        seconds = time.monotonic() - began
        rows.append([number + 1, done.loss, done.accuracy, rate, validation, seconds])
        if worse(rows):
            model.load_state_dict(before)

        # Write the log and, if it is time or the training ends here, the checkpoint.
        if log is not None:
            write_log(log, rows)
        due = time.monotonic() - written >= CHECKPOINT_SECONDS
        if checkpoint is not None and (due or number + 1 == recipe.epochs or worse(rows)):
            checkpoint.write(model, optimizer, rows)
            written = time.monotonic()
    return rows


def _run_epoch(
    recipe: Recipe,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epoch: Epoch,
    optimizer: torch.optim.Optimizer,
    report: Callable[[Progress], None] | None,
) -> tuple[Progress, float]:
    """One pass over the training set: the progress at its end, and the last learning rate."""
    steps = len(epoch.split)
    tally, last, read = Tally(epoch.number, epoch.epochs, steps), LastLogits(), time.monotonic()

    # The recipe prepares the model, and chooses the samples of each step.
    with torch.no_grad(), seeded(derived(epoch.seed, "epoch", epoch.number), x.device):
        recipe.begin_epoch(model, x, y, epoch.number)
        batches = recipe.batches(model, x, y, epoch)

    model.train()
    with last.watching(model), seeded(derived(epoch.seed, "noise", epoch.number), x.device):
        for numbers, batch in zip(epoch.split, batches, strict=True):
            # Set the learning rate of this step.
            rate = recipe.rate(batch.step / (epoch.epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            # Forward, backward and update.
            loss = recipe.loss(model, batch)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            # Report, which is when losses are looked at.
            tally.add(len(numbers), loss, last.take(), batch.y)
            if tally.step == steps or time.monotonic() - read >= READ_SECONDS:
                done, read = tally.read(), time.monotonic()
                if report is not None:
                    report(done)
    model.eval()

    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise TrainingError(f"infinite weights in epoch {epoch.number + 1}: lower learning_rate")
    return done, rate


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer, of all weights that are trained; its rate is set at each step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, weight_decay=decay)
    return torch.optim.SGD(parameters, momentum=recipe.momentum, weight_decay=decay)
