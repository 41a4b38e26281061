from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import ThreatModel
from attacks.objectives import cross_entropy
from defenses import AdversarialTraining, Batch, Vanilla, initialise, train
from defenses.adversarial import evaluating

Digits = tuple[Tensor, Tensor, Tensor, Tensor]

LINF = ThreatModel("linf", 0.1)


def batch_of(x: Tensor, y: Tensor, threat: ThreatModel | None, progress: float) -> Batch:
    return Batch(x, y, torch.arange(len(x)) + 5, threat, 3, 11, progress)


class Watched(nn.Module):
    """A linear model that keeps each input of its train-mode forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.seen: list[Tensor] = []
        self.crafting_passes = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.detach().clone())
        else:
            self.crafting_passes += len(x)
        logits: Tensor = self.net(x)
        return logits


@pytest.mark.parametrize("t", [0, 5, 10])
@pytest.mark.parametrize("threat", [LINF, ThreatModel("l2", 0.7)])
def test_warm_up_perturbs_the_papers_part_of_a_batch_and_no_more(
    digits: Digits, t: int, threat: ThreatModel
) -> None:
    x, y = digits[0][:21], digits[1][:21]
    recipe = AdversarialTraining(steps=4)
    # 1 - (1 + cos(pi t / T)) / 2 at t = 0, T/2 and T, of 21 samples, 10.5 rounded to even.
    part, count = {0: (0.0, 0), 5: (0.5, 10), 10: (1.0, 21)}[t]
    assert recipe.proportion(t / 10) == pytest.approx(part, abs=1e-12)
    model = Watched().train()
    recipe.loss(model, batch_of(x, y, threat, t / 10))
    (mixed,) = model.seen
    moved = (mixed != x).flatten(1).any(1)
    assert moved.tolist() == [True] * count + [False] * (21 - count)
    assert model.crafting_passes == 4 * count
    assert (threat.distance(mixed, x) <= threat.eps * (1 + 1e-5)).all()
    assert mixed.min() >= 0
    assert mixed.max() <= 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_warm_up_all_of_every_batch_is_adversarial() -> None:
    assert AdversarialTraining(warm_up=False).proportion(0.0) == 1


def test_crafting_raises_the_loss_of_every_sample_of_a_linear_model(digits: Digits) -> None:
    torch.manual_seed(0)
    x, y = digits[0][:50], digits[1][:50]
    model = Watched()
    points = AdversarialTraining().craft(model, batch_of(x, y, LINF, 1.0))
    model.eval()
    assert (cross_entropy(model(points), y) > cross_entropy(model(x), y)).all()


def test_noise_is_named_by_seed_index_and_step_not_by_place(digits: Digits) -> None:
    x, y = digits[0][:8].double(), digits[1][:8]
    model, recipe = Watched().double(), AdversarialTraining(steps=2)
    batch = batch_of(x, y, LINF, 1.0)
    points = recipe.craft(model, batch)
    back = Batch(x.flip(0), y.flip(0), batch.index.flip(0), LINF, 3, 11, 1.0)
    torch.testing.assert_close(recipe.craft(model, back).flip(0), points)
    later = Batch(x, y, batch.index, LINF, 3, 12, 1.0)
    assert not torch.equal(recipe.craft(model, later), points)


def test_crafting_leaves_modes_and_running_statistics_alone(digits: Digits) -> None:
    x, y = digits[0][:16], digits[1][:16]
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 10))
    model.train()
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    AdversarialTraining().craft(model, batch_of(x, y, LINF, 1.0))
    assert [module.training for module in model] == [False, True, True, True]
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_come_back_after_a_failure() -> None:
    model = nn.Dropout().train()
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert model.training


def test_the_threat_is_the_recipes_own_or_that_of_the_run() -> None:
    def against(threat: ThreatModel | None, **options: Any) -> ThreatModel:
        return AdversarialTraining(**options).trains_against(threat)

    wide = ThreatModel("linf", 0.1, lower=-1.0)
    assert against(wide) is wide or against(wide) == wide
    assert against(wide, eps=0.3) == ThreatModel("linf", 0.3, lower=-1.0)
    assert against(wide, norm="l2", eps=2.0) == ThreatModel("l2", 2.0, lower=-1.0)
    assert against(None, norm="l2", eps=2.0) == ThreatModel("l2", 2.0)
    assert against(against(wide, eps=0.3), eps=0.3) == against(wide, eps=0.3)


@pytest.mark.parametrize(
    ("options", "threat"), [({}, None), ({"eps": 1.0}, None), ({"norm": "l2"}, LINF)]
)
def test_a_missing_threat_is_refused_before_any_work(
    options: dict[str, Any], threat: ThreatModel | None
) -> None:
    recipe, model = AdversarialTraining(**options), Watched()
    with pytest.raises(ValueError, match="give norm and eps"):
        train(recipe, model, torch.rand(4, 1, 8, 8), torch.arange(4), threat=threat, seed=0)
    assert not model.seen


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"norm": "l1"}, {"norm": ""}, {"eps": 0.0}, {"step_size": -1.0}]
)
def test_hyperparameters_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|unknown norm"):
        AdversarialTraining(**options)


def test_it_defends_where_vanilla_does_not(digits: Digits) -> None:
    from attacks import PGD, Problem

    x, y, x_test, y_test = digits
    robust = []
    for kind in (Vanilla, AdversarialTraining):
        recipe = kind(epochs=12, batch=64, learning_rate=3e-3)
        model = initialise(recipe, (1, 8, 8), 10, seed=0)
        train(recipe, model, x, y, threat=LINF, seed=0)
        points = PGD(steps=10)(Problem(model, x_test, y_test, LINF))
        robust.append((model(points).argmax(1) == y_test).float().mean().item())
    assert robust[1] > robust[0] + 0.1
