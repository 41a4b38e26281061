import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from defenses import (
    TRADES,
    AdversarialTraining,
    Batch,
    Progress,
    Recipe,
    TrainingError,
    Vanilla,
    fingerprint,
    initialise,
    train,
)
from defenses.training import loop as training
from tests.defenses.training.trainings import SHAPE, interrupt_at, trained

Digits = tuple[Tensor, Tensor, Tensor, Tensor]

pytestmark = pytest.mark.usefixtures("at_every_occasion")


@dataclass(frozen=True, kw_only=True)
class Noisy(Vanilla):
    """Draws global randomness in training (dropout) and has state beside its weights."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 10)
        )


RECIPES = [
    Noisy(epochs=3, schedule="one-cycle"),
    Vanilla(epochs=3, batch=80, dropout=0.5, hold_out=20),
    Vanilla(epochs=3, optimizer="sgd", learning_rate=0.1, weight_decay=5e-4, schedule="step"),
    AdversarialTraining(epochs=3, steps=2),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_seed_names_the_weights(recipe: Recipe, few: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(5)
    first = fingerprint(trained(recipe, few))
    torch.manual_seed(6)
    assert fingerprint(trained(recipe, few)) == first
    assert fingerprint(trained(recipe, few, seed=2)) != first


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("where", [(1, 2), (2, 1), (3, 3)])
def test_interrupted_and_resumed_is_undisturbed_bit_for_bit(
    recipe: Recipe, where: tuple[int, int], few: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    checkpoint, log = tmp_path / "new" / "state.pt", tmp_path / "log.csv"
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, few, checkpoint=checkpoint, log=log, report=interrupt_at(*where))
    seen: list[int] = []
    resumed = trained(
        recipe, few, checkpoint=checkpoint, log=log, report=lambda p: seen.append(p.epoch)
    )
    assert min(seen) == where[0]
    assert fingerprint(resumed) == fingerprint(trained(recipe, few, log=tmp_path / "whole.csv"))
    cut, whole = (
        [line.split(",")[:-1] for line in path.read_text().splitlines()]
        for path in (log, tmp_path / "whole.csv")
    )
    assert cut == whole
    assert [row[0] for row in cut] == ["epoch", "1", "2", "3"]
    assert [path.name for path in checkpoint.parent.iterdir()] == ["state.pt"]


def test_a_finished_checkpoint_is_the_model(few: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    def refuse(progress: Progress) -> None:
        raise AssertionError

    recipe, checkpoint = RECIPES[0], tmp_path / "state.pt"
    first = trained(recipe, few, checkpoint=checkpoint)
    again = trained(recipe, few, checkpoint=checkpoint, report=refuse)
    assert fingerprint(again) == fingerprint(first)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "foreign bytes"])
def test_a_damaged_checkpoint_starts_over_with_a_warning(
    damage: str, few: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "state.pt"
    expected = fingerprint(trained(RECIPES[1], few, checkpoint=checkpoint))
    good = checkpoint.read_bytes()
    middle = len(good) // 2
    bad = {
        "cut": good[:middle],
        "empty": b"",
        "flipped": good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :],
        "foreign bytes": b"no checkpoint at all",
    }
    checkpoint.write_bytes(bad[damage])
    with pytest.warns(UserWarning, match="damaged: training starts over"):
        assert fingerprint(trained(RECIPES[1], few, checkpoint=checkpoint)) == expected


def test_a_checkpoint_of_another_training_is_not_resumed(
    few: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    x, y = few
    recipe = Vanilla(epochs=1)
    checkpoint = tmp_path / "state.pt"
    others: list[tuple[Recipe, tuple[Tensor, Tensor], int]] = [
        (replace(recipe, learning_rate=0.002), few, 1),
        (Noisy(epochs=1), few, 1),
        (AdversarialTraining(epochs=1), few, 1),
        (recipe, (x, y.flip(0)), 1),
        (recipe, few, 2),
    ]
    for other in others:
        trained(recipe, few, checkpoint=checkpoint)
        with pytest.warns(UserWarning, match="of another training"):
            found = trained(*other, checkpoint=checkpoint)
        assert fingerprint(found) == fingerprint(trained(*other))
        checkpoint.unlink()


@pytest.mark.parametrize("recipe", RECIPES)
def test_global_state_is_untouched(recipe: Recipe, few: tuple[Tensor, Tensor]) -> None:
    before = torch.get_rng_state(), random.getstate(), torch.backends.cudnn.deterministic
    trained(recipe, few)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), torch.backends.cudnn.deterministic) == before[1:]


def test_each_epoch_visits_each_sample_once_in_an_order_and_noise_of_its_own(
    few: tuple[Tensor, Tensor],
) -> None:
    seen: list[Batch] = []
    draws: list[float] = []

    @dataclass(frozen=True, kw_only=True)
    class Recording(Vanilla):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            seen.append(batch)
            draws.append(torch.rand(()).item())
            return super().loss(model, batch)

    trained(Recording(epochs=2), few)
    assert [len(batch.x) for batch in seen] == [86, 86, 85] * 2
    assert [batch.step for batch in seen] == list(range(6))
    assert [batch.progress for batch in seen] == [0.5] * 3 + [1.0] * 3
    orders = [torch.cat([batch.index for batch in seen[k : k + 3]]) for k in (0, 3)]
    assert all(torch.equal(order.sort().values, torch.arange(257)) for order in orders)
    assert not torch.equal(*orders)
    assert len(set(draws)) == 6
    assert all(torch.equal(few[0][batch.index], batch.x) for batch in seen)


def test_the_log_and_the_reports_tell_what_was_trained(
    few: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """At a learning rate too small to matter, they are those of the initial model."""
    recipe = Vanilla(epochs=1, learning_rate=1e-12)
    reports: list[Progress] = []
    trained(recipe, few, log=tmp_path / "log.csv", report=reports.append)
    x, y = few
    logits = initialise(recipe, SHAPE, 10, 1)(x)
    loss = nn.functional.cross_entropy(logits, y).item()
    accuracy = (logits.argmax(1) == y).float().mean().item()
    assert [(p.epoch, p.epochs, p.step, p.steps) for p in reports] == [
        (1, 1, step, 3) for step in (1, 2, 3)
    ]
    assert (reports[-1].loss, reports[-1].accuracy) == pytest.approx((loss, accuracy), rel=1e-5)
    header, row = (tmp_path / "log.csv").read_text().splitlines()
    assert header == "epoch,loss,accuracy,learning_rate,validation_loss,seconds"
    values = [float(value) for value in row.split(",")]
    assert values[:4] == pytest.approx([1, loss, accuracy, 1e-12], rel=1e-4)


def test_the_accuracy_of_trades_is_known(few: tuple[Tensor, Tensor]) -> None:
    reports: list[Progress] = []
    trained(TRADES(epochs=2, steps=1), few, report=reports.append)
    assert all(0 <= done.accuracy <= 1 for done in reports)


@pytest.mark.parametrize("every", [0.0, 1e9])
def test_a_loss_that_is_not_finite_says_where(
    every: float, few: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "READ_SECONDS", every)

    @dataclass(frozen=True, kw_only=True)
    class Breaking(Vanilla):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            return super().loss(model, batch) * (float("nan") if batch.step == 4 else 1.0)

    with pytest.raises(TrainingError, match="nan in epoch 2, step 2: lower learning_rate"):
        trained(Breaking(epochs=3), few)


def test_weights_that_break_in_the_last_step_are_refused(few: tuple[Tensor, Tensor]) -> None:
    recipe = Vanilla(epochs=1, batch=1000, optimizer="sgd", learning_rate=1e38, weight_decay=1e38)
    with pytest.raises(TrainingError, match="epoch 1"):
        trained(recipe, few)


def test_no_epochs_need_no_data_and_change_nothing() -> None:
    recipe = AdversarialTraining(epochs=0)
    model = initialise(recipe, SHAPE, 10, 1)
    before = fingerprint(model)
    train(recipe, model.train(), torch.empty(0, *SHAPE), torch.empty(0), threat=None, seed=0)
    assert fingerprint(model) == before
    assert not model.training


def test_an_empty_training_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        trained(Vanilla(), (torch.empty(0, *SHAPE), torch.empty(0)))


def test_a_vanilla_mlp_learns_digits(digits: Digits) -> None:
    x, y, x_test, y_test = digits
    model = trained(Vanilla(epochs=15, learning_rate=3e-3, schedule="one-cycle"), (x, y))
    assert not model.training
    assert (model(x_test).argmax(1) == y_test).float().mean() > 0.95
