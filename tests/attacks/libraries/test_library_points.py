"""The points of libraries' attacks: how close they come, and what the adapters mend."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import Problem, ThreatModel
from attacks.libraries import Foolbox, TorchAttacks
from attacks.libraries import foolbox as foolbox_adapter
from attacks.objectives import decided, margin
from tests.attacks.libraries.smooth import EPS, images, line, smooth_problem
from tests.attacks.linear import Linear, mid_grey


@pytest.mark.parametrize(
    ("attack", "norm"),
    [(Foolbox("LinfPGD", {"rel_stepsize": 0.1}), "linf"), (TorchAttacks("PGD"), "linf"),
     (Foolbox("L2PGD", {"rel_stepsize": 0.2}), "l2"), (TorchAttacks("PGDL2"), "l2"),
     (TorchAttacks("APGD", {"steps": 30}), "linf"), (TorchAttacks("APGD", {"steps": 30}), "l2"),
     (TorchAttacks("FAB", {"steps": 30}), "linf")],
    ids=lambda value: getattr(value, "_name", value),
)  # fmt: skip
def test_fixed_budgets_agree_with_the_closed_form_on_either_side(attack: Any, norm: str) -> None:
    model, x = Linear((1, 8, 8), 2), mid_grey((1, 8, 8), 12)
    y = model(x).argmax(1)
    optimum = model.optimum(x, y, norm)
    for factor, broken in ((1.05, True), (0.95, False)):
        for i in range(0, 12, 3):
            threat = ThreatModel(norm, factor * float(optimum[i]))
            one = Problem(model, x[i : i + 1], y[i : i + 1], threat)
            tuned = attack
            if attack.attack in ("PGD", "PGDL2"):
                tuned = TorchAttacks(attack.attack, {"alpha": threat.eps / 5, "steps": 30})
            points = threat.enforce(tuned(one), one.x)
            assert bool(decided(model(points), one.y)) is broken


@pytest.mark.parametrize(
    ("attack", "norm", "most"),
    [(Foolbox("L2DDNAttack", {"steps": 200}), "l2", 1.02),
     (Foolbox("L2DeepFoolAttack"), "l2", 1.03), (Foolbox("LinfDeepFoolAttack"), "linf", 1.1),
     (TorchAttacks("DeepFool"), "l2", 1.03)],
    ids=lambda value: getattr(value, "_name", None),
)  # fmt: skip
def test_minimal_norms_land_near_the_optimum(attack: Any, norm: str, most: float) -> None:
    model, x = Linear((1, 8, 8), 2), mid_grey((1, 8, 8), 24, 0.5)
    # The far half: some attacks add a constant to every step.
    optimum = model.optimum(x, model(x).argmax(1), norm)
    far = optimum > optimum.median()
    x, optimum = x[far], optimum[far]
    problem = Problem(model, x, model(x).argmax(1), ThreatModel(norm, 1.0))
    points = attack(problem)
    assert points.dtype is torch.float64
    ratio = problem.threat.distance(points, x) / optimum
    assert decided(model(points), problem.y).all()
    assert ratio.min() >= 1 - 1e-4
    assert ratio.max() <= most


@pytest.mark.parametrize(
    ("attack", "norm"),
    [(Foolbox("LinfPGD"), "linf"), (Foolbox("HopSkipJumpAttack", {"steps": 3}), "l2"),
     (TorchAttacks("PGD"), "linf"), (TorchAttacks("Square", {"n_queries": 20}), "l2")],
    ids=lambda value: getattr(value, "_name", value),
)  # fmt: skip
def test_the_box_does_not_matter(attack: Any, norm: str) -> None:
    """Images in [-2, 6] by a model that scales them back, eps in their units."""
    plain = smooth_problem((1, 8, 8), 3, 4, norm)
    x = plain.x * 8 - 2
    threat = ThreatModel(norm, 8 * EPS[norm], -2.0, 6.0)
    scaled = Problem(lambda points: plain.model((points + 2) / 8), x, plain.y, threat)
    assert torch.allclose((attack(scaled) + 2) / 8, attack(plain), atol=1e-4)


@pytest.mark.parametrize(
    "attack",
    [Foolbox("L2AdditiveGaussianNoiseAttack"), Foolbox("PointwiseAttack"), TorchAttacks("GN")],
    ids=lambda attack: attack._name,
)
def test_noise_comes_from_the_seed(attack: Any) -> None:
    one, two = (smooth_problem((1, 8, 8), 3, 4, "l2", seed=seed) for seed in (1, 2))
    assert not torch.equal(attack(one), attack(two))


def test_a_model_in_training_mode_is_left_in_it() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Dropout(0.1)).train()
    x = images((1, 8, 8), 3)
    problem = Problem(model, x, torch.zeros(3).long(), ThreatModel("linf", 0.1))
    for attack in (Foolbox("LinfPGD"), TorchAttacks("PGD"), TorchAttacks("Square")):
        attack(problem)
        assert model.training
        assert model[2].training


class Lead:
    """A view: two logits, of which the second leads by the margin."""

    def __init__(self, y: Tensor) -> None:
        self.y = y

    def select(self, keep: Tensor) -> "Lead":
        return Lead(self.y[keep])

    def __call__(self, outputs: Tensor) -> Tensor:
        lead = margin(outputs, self.y)
        return torch.stack([torch.zeros_like(lead), lead], 1)


def _bright(x: Tensor) -> Tensor:
    """Class 1 where the image is very bright, as noise never is."""
    value = 100 * (x.flatten(1).mean(1) - 0.8)
    return torch.stack([torch.full_like(value, 10), 10 + value], 1)


@pytest.mark.parametrize("name", ["BoundaryAttack", "HopSkipJumpAttack", "PointwiseAttack"])
def test_a_sample_without_a_start_does_not_lose_the_others(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.stack([torch.full((1, 8, 8), grey) for grey in (0.2, 0.9, 0.95)])
    problem = Problem(_bright, x, torch.tensor([0, 1, 1]), ThreatModel("l2", 1.0))
    attack = Foolbox(name, {} if name == "PointwiseAttack" else {"steps": 3})

    def reached(points: Tensor) -> list[bool]:
        return decided(_bright(points), problem.y).tolist()

    assert reached(attack(problem)) == [True, True, True]
    monkeypatch.setattr(foolbox_adapter, "_IMAGES", 0)
    points = attack(problem)
    assert torch.equal(points[0], x[0])
    assert reached(points) == [False, True, True]
    begun = Problem(_bright, x, problem.y, problem.threat, start=torch.full_like(x, 0.99))
    assert reached(attack(begun)) == [True, True, True]


def test_a_vanished_gradient_does_not_lose_the_batch() -> None:
    def model(x: Tensor) -> Tensor:
        slope = torch.where(x[:, 0] > 0.5, 0.0, 1e2)
        return torch.stack([torch.ones(len(x)), slope * (x[:, 1:].sum(1) - 2.05)], 1)

    x = torch.full((3, 5), 0.5)
    x[1, 0] = 0.6
    problem = Problem(model, x, torch.zeros(3).long(), ThreatModel("l2", 0.2))
    points = Foolbox("VirtualAdversarialAttack")(problem)
    assert torch.equal(points[1], x[1])
    assert (problem.threat.distance(points, x)[[0, 2]] > 0.1).all()


def test_cw_of_torchattacks_does_not_mind_a_constant_in_all_logits() -> None:
    plain = smooth_problem((1, 8, 8), 3, 4, "l2")
    attack = TorchAttacks("CW", {"c": 10})
    shifted = Problem(lambda x: plain.model(x) - 32, plain.x, plain.y, plain.threat)
    assert decided(plain.model(attack(plain)), plain.y).any()
    assert torch.allclose(attack(shifted), attack(plain), atol=0.02)


def test_views_are_seen_by_whole_batches_only() -> None:
    plain = smooth_problem((1, 8, 8), 5, 4, "linf")
    view: Any = Lead(plain.y)
    for attack in (Foolbox("LinfPGD"), TorchAttacks("PGD")):
        points = attack(plain.seen(view))
        assert (margin(plain.model(points), plain.y) > margin(plain.model(plain.x), plain.y)).all()
    with pytest.raises(ValueError, match="torchattacks:SPSA: it asks about parts") as error:
        TorchAttacks("SPSA")(plain.seen(view))
    line(error)
