import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks import Problem, ThreatModel
from attacks.strong import Strong
from defenses import Checkpoint, Progress, fingerprint, initialise, train
from defenses.nonexpansive.appendix import BoundedScale, Residual, ScaledSigmoid
from defenses.nonexpansive.l2nnn import L2NNN, gap_loss, l2nnn_loss
from defenses.nonexpansive.layers import penalties, weighted
from defenses.nonexpansive.nonexpansive_classifier import L2NonexpansiveClassifier, confidence_gap
from defenses.recipes.batches import Batch
from defenses.training import loop as training

Digits = tuple[Tensor, Tensor, Tensor, Tensor]

SHAPE = (1, 8, 8)
KINDS = [
    ("mlp", "cayley"),
    ("mlp", "almost-orthogonal"),
    ("mlp", "bound"),
    ("conv", "cayley"),
    ("paper", "cayley"),
    ("paper", "bound"),
    ("residual", "cayley"),
    ("residual", "bound"),
]


def network(
    arch: str, scaling: str, multi: bool, classes: int = 3, shape: tuple[int, int, int] = SHAPE
) -> L2NonexpansiveClassifier:
    """Random, in float64, with biases that make its classes about equally likely."""
    torch.manual_seed(0)
    model = L2NonexpansiveClassifier(
        arch, shape, classes, multi=multi, widen=0.25, scaling=scaling
    ).double()
    with torch.no_grad():
        for layer in weighted(model):
            layer.weight.normal_()
            layer.bias.normal_(std=0.1)
        last = weighted(model)[-1].bias
        last.sub_(model.eval()(points(500, shape)).mean(0).view_as(last))
    return model.eval().requires_grad_(False)


def points(count: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """Far beyond images, so that all classes are met."""
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
    return 3 * noise.double()


def log_softmax(values: list[float], label: int) -> float:
    return values[label] - math.log(sum(math.exp(value) for value in values))


def test_the_loss_is_equations_3_to_6() -> None:
    rows, labels = [[1.0, -0.5, 0.25], [0.5, 2.0, -1.0]], [0, 2]
    u, v, z, gamma, omega = [1.0, 2.0, 0.5], 3.0, 2.0, 0.7, 0.3
    a = b = c = 0.0
    for row, label in zip(rows, labels, strict=True):
        a -= log_softmax([s * value for s, value in zip(u, row, strict=True)], label) / 2
        b -= log_softmax([v * value for value in row], label) / 2
        c += math.log(1 - math.exp(log_softmax([z * value for value in row], label))) / z / 2
    logits, y = torch.tensor(rows, dtype=torch.float64), torch.tensor(labels)
    options: dict[str, Any] = {"v": v, "z": z, "gamma": gamma, "omega": omega}
    scales = torch.tensor(u, dtype=torch.float64)
    loss = l2nnn_loss(logits, y, u=scales, **options)
    assert loss.item() == pytest.approx(a + gamma * b + omega * c, rel=1e-13)
    assert gap_loss(logits, y, z).item() == pytest.approx(c, rel=1e-13)
    distorted = logits.flip(1)
    moved = l2nnn_loss(logits, y, u=scales, distorted=distorted, **options) - loss
    expected = cross_entropy(scales * distorted, y) - cross_entropy(scales * logits, y)
    torch.testing.assert_close(moved, expected)


def test_the_gap_loss_of_two_labels_is_a_softplus() -> None:
    logits = torch.tensor([[2.0, 0.5], [0.0, 3.0]], dtype=torch.float64)
    # log(1 - sigmoid(z d)) / z with d = 1.5 and -3.
    expected = -(math.log1p(math.exp(6)) + math.log1p(math.exp(-12))) / 4 / 2
    assert gap_loss(logits, torch.tensor([0, 0]), 4.0).item() == pytest.approx(expected, rel=1e-13)


def test_the_gap_loss_is_the_gap_and_has_a_gradient_where_softmax_saturates() -> None:
    logits = torch.tensor([[900.0, 0.0, -5.0], [0.0, 1.0, 500.0]], requires_grad=True)
    loss = gap_loss(logits, torch.tensor([0, 1]), 10.0)
    # 900 for the correct one, 0 for the other.
    assert loss.item() == pytest.approx(-450)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("multi", [True, False])
@pytest.mark.parametrize(("arch", "scaling"), KINDS)
def test_no_logit_or_no_vector_of_logits_moves_farther_than_the_image(
    arch: str, scaling: str, multi: bool
) -> None:
    model, x = network(arch, scaling, multi), points(60)
    near = x + 1e-3 * points(60).flip(0)
    for others in (x.flip(0), near):
        moved, distance = model(x) - model(others), (x - others).flatten(1).norm(dim=1)
        grown = moved.abs().amax(1) if multi else moved.norm(dim=1)
        assert (grown <= distance * (1 + 1e-9)).all()
    for image in x[:5]:
        jacobian = torch.autograd.functional.jacobian(lambda one: model(one[None])[0], image)
        slopes = torch.linalg.matrix_norm(jacobian.flatten(1), 2)
        if multi:
            slopes = jacobian.flatten(1).norm(dim=1).amax()
        assert slopes <= 1 + 1e-9


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("multi", [True, False])
def test_lemmas_1_2_and_6_on_random_networks(multi: bool, classes: int) -> None:
    model, x = network("mlp", "cayley", multi, classes), points(200)
    logits, radius = model(x), model.certified_radius(x)
    answer, gap = logits.argmax(1), confidence_gap(logits)
    assert len(answer.unique()) == classes
    torch.testing.assert_close(radius, gap / (2 if multi else math.sqrt(2)))
    first, second = torch.nonzero(answer[:, None] != answer).T
    # Lemma 2, with the answers as the labels.
    apart = (logits[first] - logits[second]).norm(dim=1)
    assert (gap[first] + gap[second] <= math.sqrt(2) * apart * (1 + 1e-9)).all()
    # Lemmas 1 and 6: the first change of the answer on the way to others, or down the gap.
    x.requires_grad_()
    (slope,) = torch.autograd.grad(confidence_gap(model(x)).sum(), x)
    steepest = x.detach() - 20 * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    ratio = []
    for other in (steepest, *(x.detach().roll(shift, 0) for shift in (1, 2, 3))):
        way = (other - x).detach()
        for part in torch.linspace(0, 1, 101)[1:].tolist():
            changed = model(x + part * way).argmax(1) != answer
            distance = (part * way).flatten(1).norm(dim=1)
            assert (radius <= distance)[changed].all()
            ratio.append((radius / distance)[changed])
    assert 0.05 < torch.cat(ratio).max() <= 1


def test_a_network_of_one_linear_layer_has_the_exact_radius() -> None:
    model = L2NonexpansiveClassifier("mlp", (1, 1, 2), 2, multi=False).double()
    model.networks = nn.Sequential(model.networks[0], model.networks[-1])
    model.networks[1] = type(model.networks[1])(1, 2, 2).double()
    model.eval()
    weight = weighted(model)[0].effective()[0]
    x = torch.tensor([[[[0.3, 0.8]]]]).double()
    # The plane where two orthonormal logits are equal is at their difference over sqrt(2).
    step = (weight[0] - weight[1]) / math.sqrt(2)
    away = -step if model(x).argmax() == 0 else step
    radius = model.certified_radius(x)
    for factor, same in ((0.999, True), (1.001, False)):
        moved = model(x + factor * radius * away)
        assert (moved.argmax() == model(x).argmax()) == same


@pytest.mark.parametrize("multi", [True, False])
def test_u_and_v_are_trained_and_change_no_logit(multi: bool, digits: Digits) -> None:
    recipe = L2NNN(multi=multi, epochs=1)
    model = initialise(recipe, SHAPE, 10, seed=0)
    assert isinstance(model, L2NonexpansiveClassifier)
    before = model(digits[2])
    train(recipe, model, *digits[:2], threat=None, seed=0)
    assert (model.u != 1).all()
    assert model.v != 1
    after = model(digits[2])
    assert not torch.equal(before, after)
    with torch.no_grad():
        model.u.mul_(-3)
        model.v.mul_(7)
    assert torch.equal(model(digits[2]), after)


def test_a_given_v_stays(digits: Digits) -> None:
    recipe = L2NNN(v=5.0, epochs=1)
    model = initialise(recipe, SHAPE, 10, seed=0)
    train(recipe, model, *digits[:2], threat=None, seed=0)
    assert model.v == 5


@pytest.mark.parametrize("multi", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_strong_attack_contradicts_the_certificate(multi: bool, digits: Digits) -> None:
    x, y, x_test, y_test = digits
    recipe = L2NNN(multi=multi, widen=1.0, epochs=8, batch=32, learning_rate=1e-2)
    model = initialise(recipe, SHAPE, 10, seed=0)
    train(recipe, model, x, y, threat=None, seed=0)
    model.requires_grad_(False)
    assert isinstance(model, L2NonexpansiveClassifier)
    assert (model(x_test).argmax(1) == y_test).float().mean() > 0.93
    x_test = x_test[:30]
    answer, radius = model(x_test).argmax(1), model.certified_radius(x_test)
    attack, threat = Strong(classes=1, queries=50), ThreatModel("l2", 0.4)
    found = attack(Problem(model, x_test, answer, threat))
    broken, certified = model(found).argmax(1) != answer, radius >= threat.eps
    assert not (broken & certified).any()
    assert broken.any()
    assert certified.any()


def test_the_components_of_the_appendix_are_trained_and_certified(digits: Digits) -> None:
    x, y, x_test, y_test = digits
    recipe = L2NNN(arch="residual", widen=0.25, epochs=5, batch=32, learning_rate=3e-2)
    model = initialise(recipe, SHAPE, 10, seed=0)
    assert isinstance(model, L2NonexpansiveClassifier)
    kinds = (BoundedScale, Residual, ScaledSigmoid)
    components = [module for module in model.modules() if isinstance(module, kinds)]
    assert {type(component) for component in components} == set(kinds)
    before = [fingerprint(component) for component in components]
    train(recipe, model, x, y, threat=None, seed=0)
    assert all(a != fingerprint(b) for a, b in zip(before, components, strict=True))
    model.requires_grad_(False)
    assert (model(x_test).argmax(1) == y_test).float().mean() > 0.6

    x_test = x_test[:20]
    answer, radius = model(x_test).argmax(1), model.certified_radius(x_test)
    threat = ThreatModel("l2", float(radius.median()))
    found = Strong(classes=1, queries=20)(Problem(model, x_test, answer, threat))
    assert not ((model(found).argmax(1) != answer) & (radius >= threat.eps)).any()


def test_penalty_first_then_strict_to_the_end(digits: Digits) -> None:
    x, y = digits[0][:300], digits[1][:300]
    recipe = L2NNN(scaling="bound", epochs=4, penalised=0.5, penalty=0.3)
    model = initialise(recipe, SHAPE, 10, seed=0)
    strict = []
    for epoch in range(4):
        recipe.begin_epoch(model, x, y, epoch)
        strict.append(all(layer.strict for layer in weighted(model)))
    assert strict == [False, False, True, True]

    batch = Batch(x, y, torch.arange(300), None, 0, 0, 0.25)
    model.train()
    recipe.begin_epoch(model, x, y, 0)
    free = L2NNN(scaling="bound", penalty=0.0)
    added = recipe.loss(model, batch) - free.loss(model, batch)
    torch.testing.assert_close(added, 0.3 * penalties(model), rtol=1e-4, atol=1e-4)
    recipe.begin_epoch(model, x, y, 3)
    torch.testing.assert_close(recipe.loss(model, batch), free.loss(model, batch))

    whole = L2NNN(scaling="bound", epochs=1, penalised=1.0)
    model = initialise(whole, SHAPE, 10, seed=0)
    train(whole, model, x, y, threat=None, seed=0)
    assert all(layer.strict for layer in weighted(model))


def test_only_the_papers_scaling_begins_with_the_penalty() -> None:
    for scaling, strict in (("bound", False), ("almost-orthogonal", True), ("cayley", True)):
        recipe = L2NNN(scaling=scaling)
        model = recipe.build(SHAPE, 10)
        recipe.begin_epoch(model, torch.rand(1, *SHAPE), torch.zeros(1), 0)
        assert all(layer.strict == strict for layer in weighted(model))


@pytest.mark.parametrize("last", [1, 3])
def test_a_resumed_training_is_in_the_mode_of_its_epoch(
    last: int, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    x, y = digits[0][:300], digits[1][:300]
    recipe = L2NNN(scaling="bound", epochs=4, penalised=0.5)

    def trained(**options: Any) -> nn.Module:
        model = initialise(recipe, SHAPE, 10, seed=0)
        train(recipe, model, x, y, threat=None, seed=0, **options)
        return model

    def interrupt(progress: Progress) -> None:
        if progress.epoch == last + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint=Checkpoint(tmp_path / "state", "this"), report=interrupt)
    resumed = trained(checkpoint=Checkpoint(tmp_path / "state", "this"))
    assert fingerprint(resumed) == fingerprint(trained())


def test_model_4_distorts_the_inputs_of_the_first_term_alone(digits: Digits) -> None:
    x, y = digits[0][:40], digits[1][:40]
    recipe = L2NNN(adversarial=True, warm_up=False, steps=3)
    model = initialise(recipe, SHAPE, 10, seed=0).train()
    assert isinstance(model, L2NonexpansiveClassifier)
    batch = Batch(x, y, torch.arange(40), ThreatModel("l2", 0.5), 0, 0, 1.0)
    distorted = recipe.examples.craft(model, batch)
    assert model.training
    expected = cross_entropy(model.u * model(distorted), y) - cross_entropy(model.u * model(x), y)
    assert expected > 0
    added = recipe.loss(model, batch) - L2NNN().loss(model, batch)
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-5)


def test_only_model_4_needs_a_threat() -> None:
    assert L2NNN().trains_against(ThreatModel("l2", 1.0)) is None
    assert L2NNN(adversarial=True).trains_against(ThreatModel("l2", 1.0)) is not None
    with pytest.raises(ValueError, match="give norm and eps"):
        L2NNN(adversarial=True).trains_against(None)


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": -1.0},
        {"omega": -1.0},
        {"penalty": -1.0},
        {"z": 0.0},
        {"v": 0.0},
        {"penalised": 1.5, "scaling": "bound"},
        {"penalised": 0.5},
    ],
)
def test_hyperparameters_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|is for scaling bound"):
        L2NNN(**options)


@pytest.mark.parametrize(
    "options", [{"arch": "lenet5"}, {"scaling": "none"}, {"widen": 0.0, "arch": "paper"}]
)
def test_unknown_networks_are_refused_when_built(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown|must be"):
        L2NNN(**options).build(SHAPE, 10)


def test_any_size_of_image_and_two_labels() -> None:
    shapes = {"mlp": (3, 2, 3), "conv": (2, 5, 7), "paper": (1, 7, 9), "residual": (3, 6, 5)}
    for arch, shape in shapes.items():
        for multi in (True, False):
            model = network(arch, "cayley", multi, 2, shape)
            x = points(4, shape)
            assert model(x).shape == (4, 2)
            assert (model.certified_radius(x) >= 0).all()


def test_the_schedule_is_its_own_and_not_that_of_adversarial_training() -> None:
    recipe = L2NNN()
    schedule = (recipe.optimizer, recipe.learning_rate, recipe.weight_decay, recipe.schedule)
    assert schedule == ("adam", 6e-3, 0.0, "one-cycle")
    with pytest.raises(TypeError, match="method"):
        L2NNN(method="trades")  # type: ignore[call-arg]
