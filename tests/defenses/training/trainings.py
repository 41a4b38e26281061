"""Trainings of small models on images of 8 x 8, as tests of the loop need them."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from torch import Tensor, nn

from attacks import ThreatModel
from defenses import Checkpoint, Progress, Recipe, initialise, train

LINF = ThreatModel("linf", 0.1)
SHAPE = (1, 8, 8)


def trained(
    recipe: Recipe,
    data: tuple[Tensor, Tensor],
    seed: int = 1,
    *,
    checkpoint: Path | None = None,
    log: Path | None = None,
    report: Callable[[Progress], None] | None = None,
) -> nn.Module:
    model = initialise(recipe, SHAPE, 10, seed)
    held = None
    if checkpoint is not None:
        content = [sha256(tensor.numpy().tobytes()).hexdigest() for tensor in data]
        facts = repr((recipe, seed, content))
        held = Checkpoint(checkpoint, sha256(facts.encode()).hexdigest())
    train(recipe, model, *data, threat=LINF, seed=seed, checkpoint=held, log=log, report=report)
    return model


def interrupt_at(epoch: int, step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (epoch, step):
            raise KeyboardInterrupt

    return report
