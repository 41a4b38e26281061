"""Training that stops by the loss on withheld images."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from defenses import Progress, TrainingError, Vanilla, fingerprint
from tests.defenses.training.trainings import interrupt_at, trained

pytestmark = pytest.mark.usefixtures("at_every_occasion")

# Of scrambled labels: what is learnt by heart does not hold for others.
STOPPING = Vanilla(epochs=12, batch=64, learning_rate=3e-3, hold_out=57)


@pytest.fixture
def scrambled(few: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, y = few
    drawn = torch.randint(10, y.shape, generator=torch.Generator().manual_seed(7))
    return x, torch.where(torch.arange(len(y)) % 2 == 0, drawn, y)


def validation_losses(log: Path) -> list[float]:
    _, *rows = log.read_text().splitlines()
    return [float(row.split(",")[-2]) for row in rows]


def test_training_stops_where_the_withheld_images_say_and_keeps_the_epoch_before(
    scrambled: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    stopped = trained(STOPPING, scrambled, log=tmp_path / "log.csv")
    losses = validation_losses(tmp_path / "log.csv")
    assert 2 < len(losses) < STOPPING.epochs
    assert losses[:-1] == sorted(losses[:-1], reverse=True)
    assert losses[-1] >= losses[-2]
    # The same as if it had been told when to stop, without those images.
    x, y = scrambled
    best = replace(STOPPING, epochs=len(losses) - 1, hold_out=0)
    told = trained(best, (x[:-57], y[:-57]), log=tmp_path / "told.csv")
    assert fingerprint(stopped) == fingerprint(told)
    assert all(map(math.isnan, validation_losses(tmp_path / "told.csv")))
    found = nn.functional.cross_entropy(stopped(x[-57:]), y[-57:]).item()
    assert losses[-2] == pytest.approx(found, rel=1e-5)


def test_as_many_epochs_as_it_takes_to_stop_and_one_fewer_are_the_same(
    scrambled: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    trained(STOPPING, scrambled, log=tmp_path / "log.csv")
    epochs = len(validation_losses(tmp_path / "log.csv"))
    for count in (epochs - 1, epochs):
        recipe = replace(STOPPING, epochs=count)
        log = tmp_path / f"{count}.csv"
        assert fingerprint(trained(recipe, scrambled, log=log)) == fingerprint(
            trained(STOPPING, scrambled)
        )
        assert len(validation_losses(log)) == count


@pytest.mark.parametrize("left", [0, 1, 2])
def test_stopping_early_is_resumed_bit_for_bit(
    left: int, scrambled: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    checkpoint, log = tmp_path / "state.pt", tmp_path / "log.csv"
    seen: list[Progress] = []
    whole = fingerprint(trained(STOPPING, scrambled, log=log))
    epochs = len(validation_losses(log))
    interrupt = interrupt_at(epochs - left, 2)
    with pytest.raises(KeyboardInterrupt):
        trained(STOPPING, scrambled, checkpoint=checkpoint, report=interrupt)
    again = trained(STOPPING, scrambled, checkpoint=checkpoint, report=seen.append)
    assert fingerprint(again) == whole
    assert (seen[0].epoch, seen[-1].epoch) == (epochs - left, epochs)
    # Once it has stopped it stays so.
    seen.clear()
    again = trained(STOPPING, scrambled, checkpoint=checkpoint, report=seen.append)
    assert (fingerprint(again), seen) == (whole, [])


@pytest.mark.parametrize("hold_out", [257, 1000])
def test_withholding_all_images_is_refused(hold_out: int, few: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="hold_out must be below 257, the number of training"):
        trained(Vanilla(epochs=1, hold_out=hold_out), few)


def test_a_validation_loss_that_is_not_finite_is_refused(few: tuple[Tensor, Tensor]) -> None:
    x, y = few[0].clone(), few[1]
    x[-1] = math.nan
    with pytest.raises(TrainingError, match="withheld images is nan: lower learning_rate"):
        trained(Vanilla(epochs=1, hold_out=1), (x, y))
