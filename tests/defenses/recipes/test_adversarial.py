from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, Problem, ThreatModel
from attacks.objectives import cross_entropy
from defenses import (
    MART,
    TRADES,
    AdversarialTraining,
    Batch,
    RoBin,
    Vanilla,
    fingerprint,
    initialise,
    train,
)
from defenses.networks.modes import evaluating
from defenses.recipes.adversarial import TRAINED_BY, trained_by
from defenses.recipes.methods import METHODS, Method, attacked, divergence, mart, trades

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
    assert recipe.examples.proportion(t / 10) == pytest.approx(part, abs=1e-12)
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


@pytest.mark.parametrize("kind", TRAINED_BY.values(), ids=TRAINED_BY)
def test_where_the_warm_up_asks_for_no_examples_none_are_crafted(
    kind: type[AdversarialTraining], digits: Digits
) -> None:
    model = Watched().train()
    kind().loss(model, batch_of(digits[0][:16], digits[1][:16], LINF, 0.05))
    assert model.crafting_passes == 0
    assert all(torch.equal(seen, digits[0][:16]) for seen in model.seen)


def test_without_warm_up_all_of_every_batch_is_adversarial() -> None:
    assert AdversarialTraining(warm_up=False).examples.proportion(0.0) == 1


def test_crafting_raises_the_loss_of_every_sample_of_a_linear_model(digits: Digits) -> None:
    torch.manual_seed(0)
    x, y = digits[0][:50], digits[1][:50]
    model = Watched()
    points = AdversarialTraining().examples.craft(model, batch_of(x, y, LINF, 1.0))
    model.eval()
    assert (cross_entropy(model(points), y) > cross_entropy(model(x), y)).all()


def test_noise_is_named_by_seed_index_and_step_not_by_place(digits: Digits) -> None:
    x, y = digits[0][:8].double(), digits[1][:8]
    model, recipe = Watched().double(), AdversarialTraining(steps=2)
    batch = batch_of(x, y, LINF, 1.0)
    points = recipe.examples.craft(model, batch)
    back = Batch(x.flip(0), y.flip(0), batch.index.flip(0), LINF, 3, 11, 1.0)
    torch.testing.assert_close(recipe.examples.craft(model, back).flip(0), points)
    later = Batch(x, y, batch.index, LINF, 3, 12, 1.0)
    assert not torch.equal(recipe.examples.craft(model, later), points)


def test_crafting_leaves_modes_and_running_statistics_alone(digits: Digits) -> None:
    x, y = digits[0][:16], digits[1][:16]
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 10))
    model.train()
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    AdversarialTraining().examples.craft(model, batch_of(x, y, LINF, 1.0))
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
    "options", [{"steps": 0}, {"norm": "l0"}, {"norm": ""}, {"eps": 0.0}, {"step_size": -1.0}]
)
def test_hyperparameters_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|unknown norm"):
        AdversarialTraining(**options)


@pytest.mark.parametrize("kind", TRAINED_BY.values(), ids=TRAINED_BY)
def test_it_defends_where_vanilla_does_not(kind: type[AdversarialTraining], digits: Digits) -> None:
    x, y, x_test, y_test = digits
    recipes = Vanilla(epochs=8, batch=64, learning_rate=3e-3), kind(epochs=8, batch=64, steps=5)
    robust = []
    for recipe in recipes:
        model = initialise(recipe, (1, 8, 8), 10, seed=0)
        train(recipe, model, x, y, threat=LINF, seed=0)
        points = PGD(steps=10)(Problem(model, x_test, y_test, LINF))
        robust.append((model(points).argmax(1) == y_test).float().mean().item())
    assert robust[1] > robust[0] + 0.15


# TRADES and MART.


@pytest.mark.parametrize(
    ("method", "crafting", "training"),
    [("pgd-at", 10, [16]), ("trades", 11, [16, 16]), ("mart", 10, [16, 16])],
)
def test_a_step_takes_so_many_passes(
    method: Any, crafting: int, training: list[int], digits: Digits
) -> None:
    """TRADES needs to know what the model says of the clean images before it crafts."""
    model, recipe = Watched().train(), AdversarialTraining(method=method, warm_up=False)
    recipe.loss(model, batch_of(digits[0][:16], digits[1][:16], LINF, 1.0))
    assert model.crafting_passes == 16 * crafting
    assert [len(seen) for seen in model.seen] == training


@pytest.mark.parametrize(("kind", "loss"), [(TRADES, trades), (MART, mart)])
@pytest.mark.parametrize("t", [0, 5, 10])
def test_the_loss_is_of_all_clean_images_and_of_the_crafted_ones(
    kind: type[AdversarialTraining], loss: Any, t: int, digits: Digits
) -> None:
    model, recipe = Watched().train(), kind(steps=3, weight=2.5)
    batch = batch_of(digits[0][:16], digits[1][:16], LINF, t / 10)
    found = recipe.loss(model, batch)
    count = {0: 0, 5: 8, 10: 16}[t]
    crafted = recipe.examples.craft(model, batch.first(count))
    clean, mixed = model.seen
    assert torch.equal(clean, batch.x)
    assert torch.equal(mixed, torch.cat([crafted, batch.x[count:]]))
    torch.testing.assert_close(found, loss(model(batch.x), model(crafted), batch.y, 2.5))


@pytest.mark.parametrize("kind", TRAINED_BY.values(), ids=TRAINED_BY)
def test_a_single_adversarial_image_does_not_stop_batch_normalisation(
    kind: type[AdversarialTraining], digits: Digits
) -> None:
    recipe = kind(arch="resnet18", widen=0.05, steps=1)
    model = initialise(recipe, (1, 8, 8), 10, seed=0).train()
    batch = batch_of(digits[0][:20], digits[1][:20], LINF, 0.15)
    assert recipe.examples.count(batch) == 1
    assert recipe.loss(model, batch).isfinite()


@pytest.mark.parametrize("threat", [LINF, ThreatModel("l2", 0.7)])
def test_trades_crafts_away_from_what_the_model_says_not_from_the_label(
    threat: ThreatModel, digits: Digits
) -> None:
    """Of a linear model the divergence is convex, so that it rises from the start."""
    x, y = digits[0][:40].double(), digits[1][:40]
    model = Watched().double().eval()
    batch = batch_of(x, y, threat, 1.0)
    points = TRADES().examples.craft(model, batch)
    start = threat.random_start(x, batch.seed, batch.index, batch.step)
    clean = model(x)
    assert (divergence(clean, model(points)) > divergence(clean, model(start))).all()
    assert (divergence(clean, model(start)) > 0).all()
    other = batch_of(x, y.flip(0), threat, 1.0)
    assert torch.equal(TRADES().examples.craft(model, other), points)
    torch.testing.assert_close(
        MART().examples.craft(model, other),
        AdversarialTraining().examples.craft(model, other),
        rtol=0,
        atol=0,
    )
    assert not torch.allclose(MART().examples.craft(model, other), points)


def test_trades_climbs_the_divergence_from_the_clean_image_not_to_it(digits: Digits) -> None:
    """Its slope in the logits is the attacked probabilities less the clean ones."""
    x, y = digits[0][:20].double(), digits[1][:20]
    threat, model = ThreatModel("l2", 0.7, lower=-9, upper=9), Watched().double().eval()
    batch = batch_of(x, y, threat, 1.0)
    start = threat.random_start(x, batch.seed, batch.index, batch.step)
    slope = (model(start).softmax(1) - model(x).softmax(1)) @ model.net[1].weight
    way = slope / slope.norm(dim=1, keepdim=True)
    points = TRADES(steps=1, step_size=0.01).examples.craft(model, batch)
    torch.testing.assert_close(points, threat.project(start + 0.01 * way.view_as(x), x))


def test_trades_takes_what_the_model_says_in_eval_mode(digits: Digits) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    batch = batch_of(digits[0][:16], digits[1][:16], LINF, 1.0)
    crafted = [TRADES(steps=2).examples.craft(model.train(mode), batch) for mode in (True, False)]
    assert torch.equal(*crafted)


def test_without_a_second_term_trades_is_training_on_clean_images(digits: Digits) -> None:
    x, y = digits[0][:200].double(), digits[1][:200]
    descent: dict[str, Any] = {"epochs": 2, "optimizer": "sgd", "learning_rate": 0.1}
    plain = Vanilla(weight_decay=5e-4, schedule="step", **descent)
    models = []
    for recipe in (plain, TRADES(weight=0.0, steps=1, **descent)):
        models.append(initialise(recipe, (1, 8, 8), 10, 0).double())
        train(recipe, models[-1], x, y, threat=LINF, seed=0)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", METHODS)
def test_names_of_methods_are_options_of_one(name: str, digits: Digits) -> None:
    x, y = digits[0][:100], digits[1][:100]
    options: dict[str, Any] = {"epochs": 1, "steps": 1}
    options |= {"weight": 2.0} if METHODS[name].takes_weight else {}
    states = []
    for recipe in (TRAINED_BY[name](**options), AdversarialTraining(method=name, **options)):
        assert recipe.method == name
        model = initialise(recipe, (1, 8, 8), 10, 0)
        train(recipe, model, x, y, threat=LINF, seed=0)
        states.append(fingerprint(model))
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"method": "TRADES"}, "unknown method 'TRADES': use one of pgd-at, trades, mart"),
        ({"method": "mart", "weight": -0.5}, "weight must be at least 0, not -0.5"),
        ({"method": "mart", "weight": float("nan")}, "weight must be at least 0"),
        ({"weight": 6.0}, "weight is of trades and mart: name one of them"),
    ],
)
def test_methods_and_weights_out_of_range_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        AdversarialTraining(**options)


def test_a_new_method_is_one_entry(monkeypatch: pytest.MonkeyPatch, digits: Digits) -> None:
    """The mean of squared logits at the attacked images, as a loss that no method has."""

    def small(clean: Tensor, adversarial: Tensor, y: Tensor, weight: float) -> Tensor:
        return weight * attacked(clean, adversarial).square().mean()

    monkeypatch.setitem(METHODS, "small", Method(about="Small logits.", loss=small))
    kind = trained_by("small")
    assert (kind.__doc__, kind.version) == ("Small logits.", AdversarialTraining.version)
    batch = batch_of(digits[0][:12], digits[1][:12], LINF, 1.0)
    for recipe in (kind(weight=2.0), AdversarialTraining(method="small", weight=2.0)):
        points = recipe.examples.craft(model := Watched(), batch)
        torch.testing.assert_close(recipe.loss(model, batch), 2 * model(points).square().mean())
    arms = RoBin(method="small", epochs=1, steps=1, widen=0.1)
    model = initialise(arms, (1, 8, 8), 10, 0)
    train(arms, model, digits[0][:50], digits[1][:50], threat=LINF, seed=0)


def test_the_recipe_of_a_method_has_no_other() -> None:
    with pytest.raises(TypeError, match="method"):
        TRADES(method="mart")


@pytest.mark.parametrize(("epochs", "share"), [(2, "75%"), (4, "62%"), (5, "60%")])
def test_a_warm_up_that_takes_much_of_a_few_epochs_is_told(epochs: int, share: str) -> None:
    assert (
        f"makes {share} of {epochs} epochs adversarial" in AdversarialTraining(epochs=epochs).hint
    )
    assert AdversarialTraining(epochs=epochs, warm_up=False).hint == ""


@pytest.mark.parametrize("epochs", [0, 1, 20])
def test_there_is_no_hint_where_a_warm_up_is_as_it_is_meant(epochs: int) -> None:
    assert AdversarialTraining(epochs=epochs).hint == ""
