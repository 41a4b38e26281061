"""Every attack class of foolbox and of torchattacks, and what the adapters contain."""

import inspect
import random
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import Attack, Problem, ThreatModel
from attacks.libraries import foolbox as foolbox_adapter
from attacks.libraries import torchattacks as torchattacks_adapter
from attacks.libraries.foolbox import Foolbox
from attacks.libraries.torchattacks import TorchAttacks
from attacks.objectives import decided, margin
from tests.attacks.linear import Linear, mid_grey

# The least that shows how an attack behaves.
FAST: dict[str, Any] = {
    "steps": 4,
    "directions": 4,
    "n_queries": 12,
    "binary_search_steps": 2,
    "max_iterations": 20,
    "initial_gradient_eval_steps": 4,
    "repeats": 3,
    "nb_sample": 4,
    "max_batch_size": 2,
}

EPS = {"l2": 0.5, "linf": 0.1}

# What cannot run on grey images of two classes, and the reason.
NOT_GREY = dict.fromkeys(("TIFGSM", "PIFGSM", "PIFGSMPP"), "3 channels, not 1")
NOT_BINARY = dict.fromkeys(("APGDT", "AutoAttack"), "at least 4 classes")


class Smooth(nn.Module):
    """Two layers without kinks, which count the images that they see and refuse to train."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        size = torch.Size(shape).numel()
        self.first = nn.Parameter(torch.randn(size, 16, generator=generator) * 3 / size**0.5)
        self.second = nn.Parameter(torch.randn(16, classes, generator=generator))
        self.images = 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.images += len(x)
        return torch.tanh((x.flatten(1) - 0.5) @ self.first) @ self.second


def _every() -> list[Any]:
    cases = []
    for module, adapter in ((foolbox_adapter, Foolbox), (torchattacks_adapter, TorchAttacks)):
        for name in module.available():
            taken = inspect.signature(module._classes()[name]).parameters
            attack = adapter(name, {key: value for key, value in FAST.items() if key in taken})
            cases += [
                pytest.param(attack, norm, id=f"{attack._name}-{norm}")
                for norm in attack.facts.norms
            ]
    return cases


def _images(shape: tuple[int, ...], n: int) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(n))


def _problem(shape: tuple[int, ...], classes: int, n: int, norm: str, **more: Any) -> Problem:
    model, x = Smooth(shape, classes), _images(shape, n)
    return Problem(model, x, model(x).argmax(1), ThreatModel(norm, EPS[norm]), **more)


def _globals() -> tuple[bytes, str, Any]:
    return bytes(torch.get_rng_state()), str(np.random.get_state()), random.getstate()


def _line(error: pytest.ExceptionInfo[ValueError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def _check(attack: Attack, problem: Problem) -> Tensor:
    """Attacks twice; what must hold of every attack."""
    assert isinstance(attack, Attack)
    problem.model.images = 0
    before, clean = _globals(), problem.x.clone()
    calls = torch.zeros(len(problem))

    def meter(rows: Tensor, logits: Tensor) -> None:
        assert len(rows) == len(logits) <= len(problem)
        calls.index_add_(0, rows, torch.ones(len(rows)))

    points = attack(Problem(problem.model, clean, problem.y, problem.threat, meter=meter))
    assert calls.sum() == problem.model.images
    assert _globals() == before
    assert torch.equal(clean, problem.x)
    assert not problem.model.training
    assert torch.equal(attack(problem), points)
    assert points.shape == clean.shape
    assert points.dtype == clean.dtype
    assert not points.isnan().any()
    assert torch.equal(problem.threat.clamp(points), points)
    if attack.facts.family == "fixed-budget":
        assert problem.threat.distance(points, clean).max() <= problem.threat.eps * (1 + 1e-5)
    return points


@pytest.mark.parametrize(("attack", "norm"), _every())
def test_binary_grey_images(attack: Any, norm: str, capfd: pytest.CaptureFixture[str]) -> None:
    problem = _problem((1, 8, 8), 2, 5, norm)
    problem.y[1] = 1 - problem.y[1]
    reason = (NOT_BINARY | NOT_GREY).get(attack.attack)
    if reason:
        with pytest.raises(ValueError, match=reason) as error:
            attack(problem)
        assert _line(error).startswith(attack._name)
        return
    points = _check(attack, problem)
    assert torch.equal(points[1], problem.x[1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("attack", "norm"), _every())
def test_colour_images_that_are_not_square(attack: Any, norm: str) -> None:
    """A batch of one, and a batch of which nothing is left to attack."""
    _check(attack, _problem((3, 6, 5), 5, 1, norm))
    lost = _problem((3, 6, 5), 5, 3, norm)
    lost.y[:] = (lost.y + 1) % 5
    assert torch.equal(_check(attack, lost), lost.x)


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
    plain = _problem((1, 8, 8), 3, 4, norm)
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
    one, two = (_problem((1, 8, 8), 3, 4, "l2", seed=seed) for seed in (1, 2))
    assert not torch.equal(attack(one), attack(two))


def test_a_model_in_training_mode_is_left_in_it() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Dropout(0.1)).train()
    x = _images((1, 8, 8), 3)
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
    plain = _problem((1, 8, 8), 3, 4, "l2")
    attack = TorchAttacks("CW", {"c": 10})
    shifted = Problem(lambda x: plain.model(x) - 32, plain.x, plain.y, plain.threat)
    assert decided(plain.model(attack(plain)), plain.y).any()
    assert torch.allclose(attack(shifted), attack(plain), atol=0.02)


def test_views_are_seen_by_whole_batches_only() -> None:
    plain = _problem((1, 8, 8), 5, 4, "linf")
    view: Any = Lead(plain.y)
    for attack in (Foolbox("LinfPGD"), TorchAttacks("PGD")):
        points = attack(plain.seen(view))
        assert (margin(plain.model(points), plain.y) > margin(plain.model(plain.x), plain.y)).all()
    with pytest.raises(ValueError, match="torchattacks:SPSA: it asks about parts") as error:
        TorchAttacks("SPSA")(plain.seen(view))
    _line(error)


@pytest.mark.parametrize("name", ["APGD", "UPGD"])
def test_dlr_on_two_classes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"torchattacks:{name}: .* 3 classes: use loss=ce"):
        TorchAttacks(name, {"loss": "dlr"})(_problem((1, 8, 8), 2, 2, "linf"))


def test_options_are_read_and_shown() -> None:
    attack = Foolbox("L2DDNAttack", {"steps": "50", "gamma": "1e-1"})
    assert attack.options == {"steps": 50, "gamma": 0.1}
    assert repr(attack) == (
        "Foolbox(attack='L2DDNAttack', options={'gamma': 0.1, 'steps': 50}, "
        f"library_version='{version('foolbox')}')"
    )
    same = {"random_start": "true", "abs_stepsize": "None"}
    assert Foolbox("PGD", same) == Foolbox("PGD", {"abs_stepsize": None, "random_start": True})
    assert TorchAttacks("APGD", {"norm": "L2", "loss": "dlr"}).facts.norms == ("l2",)
    assert TorchAttacks("APGD").facts.norms == ("l2", "linf")
    assert Foolbox("HopSkipJumpAttack", {"constraint": "linf"}).facts.norms == ("linf",)
    assert version("torchattacks") in repr(TorchAttacks("PGD"))


@pytest.mark.parametrize(
    ("adapter", "name", "options", "said"),
    [
        (Foolbox, "L2DDNAtack", {}, "foolbox has no attack .* did you mean 'L2DDNAttack'"),
        (Foolbox, "DDNAttack", {"step": 1}, "no option 'step': did you mean 'steps'"),
        (Foolbox, "DDNAttack", {"steps": "many"}, "steps must be a number, not 'many'"),
        (Foolbox, "BoundaryAttack", {"tensorboard": "runs"}, "no option 'tensorboard'"),
        (Foolbox, "LinfAdditiveUniformNoiseAttack", {"x": 1}, "no option 'x': it has none"),
        (Foolbox, "HopSkipJumpAttack", {"constraint": "l1"}, "constraint must be l2 or linf"),
        (Foolbox, "EADAttack", {}, "runs under L1 only; bestattack measures l2 and linf"),
        (Foolbox, "L0FMNAttack", {}, "runs under L0 only"),
        (Foolbox, "GenAttack", {}, "is targeted only"),
        (Foolbox, "SpatialAttack", {}, "no norm ball"),
        (Foolbox, "BinarizationRefinementAttack", {}, "another attack has found"),
        (Foolbox, "L2BrendelBethgeAttack", {}, "needs numba: pip install numba"),
        (TorchAttacks, "pgd", {}, "torchattacks has no attack 'pgd': did you mean 'PGD'"),
        (TorchAttacks, "PGD", {"stepz": 1}, "did you mean 'steps'"),
        (TorchAttacks, "PGD", {"model": None}, "no option 'model'"),
        (TorchAttacks, "PGD", {"random_start": "yes"}, "must be true or false, not 'yes'"),
        (TorchAttacks, "FAB", {"norm": "L1"}, "norm must be L2 or Linf, not 'L1'"),
        (TorchAttacks, "AutoAttack", {"version": "new"}, "Not valid version"),
        (TorchAttacks, "LGV", {}, "trains models"),
        (TorchAttacks, "MultiAttack", {}, "combines attacks"),
        *[
            (TorchAttacks, name, {}, "only; bestattack measures l2 and linf")
            for name in ("SparseFool", "OnePixel", "Pixle", "JSMA", "EADL1")
        ],
    ],
)
def test_mistakes_are_named_in_one_line(
    adapter: Any, name: str, options: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foolbox_adapter, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=said) as error:
        adapter(name, options)
    _line(error)


def test_everything_is_either_usable_or_refused() -> None:
    for module, adapter in ((foolbox_adapter, Foolbox), (torchattacks_adapter, TorchAttacks)):
        usable = module.available()
        for name, cls in module._classes().items():
            if cls.__name__ in usable:
                assert f"{adapter(name).facts.family}, " in usable[cls.__name__]
            else:
                with pytest.raises(ValueError, match=f"{cls.__name__} (cannot|runs|needs)"):
                    adapter(name)


@pytest.mark.parametrize(("adapter", "name"), [(Foolbox, "PGD"), (TorchAttacks, "PGD")])
def test_failures_of_the_model_are_one_line(adapter: Any, name: str) -> None:
    def model(x: Tensor) -> Tensor:
        if x.requires_grad:
            raise RuntimeError("no\ngradients")
        return torch.eye(2)[torch.zeros(len(x)).long()]

    problem = Problem(model, _images((1, 4, 4), 2), torch.zeros(2).long(), ThreatModel("linf", 0.1))
    with pytest.raises(ValueError, match=f"{adapter(name)._name}: RuntimeError: no gradients"):
        adapter(name)(problem)


@pytest.mark.parametrize(
    ("adapter", "library"), [(Foolbox, "foolbox"), (TorchAttacks, "torchattacks")]
)
def test_a_missing_library_is_named(
    adapter: Any, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=f"{library} is not installed: pip install {library}"):
        adapter("PGD")


def test_libraries_load_when_used_without_git_or_torchvision() -> None:
    script = """
import os, sys
from attacks.libraries import foolbox as foolbox_adapter
from attacks.libraries import torchattacks as torchattacks_adapter
assert not {"foolbox", "torchattacks"} & set(sys.modules)
sys.modules["torchvision"] = None
foolbox_adapter.Foolbox("PGD"), torchattacks_adapter.TorchAttacks("PGD")
assert "GIT_PYTHON_REFRESH" not in os.environ
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={"PATH": ""})
