"""How libraries' attacks are named and configured, and how mistakes read."""

import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks import Problem, ThreatModel
from attacks.libraries import Foolbox, TorchAttacks
from attacks.libraries import foolbox as foolbox_adapter
from tests.attacks.libraries.smooth import images, line, smooth_problem


def test_configuring_an_attack_draws_nothing_of_the_users() -> None:
    before = torch.random.get_rng_state()
    TorchAttacks("PGD")
    assert torch.equal(torch.random.get_rng_state(), before)


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


@pytest.mark.parametrize("name", ["APGD", "UPGD"])
def test_dlr_on_two_classes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="its DLR loss needs at least 3 classes: use loss=ce"):
        TorchAttacks(name, {"loss": "dlr"})(smooth_problem((1, 8, 8), 2, 2, "linf"))


@pytest.mark.parametrize(
    ("adapter", "name", "options", "said"),
    [
        (Foolbox, "L2DDNAtack", {}, "foolbox has no attack .* did you mean 'L2DDNAttack'"),
        (Foolbox, "DDNAttack", {"step": 1}, "no option 'step': did you mean 'steps'"),
        (Foolbox, "DDNAttack", {"steps": "many"}, "steps must be a number, not 'many'"),
        (Foolbox, "BoundaryAttack", {"tensorboard": "runs"}, "no option 'tensorboard'"),
        (Foolbox, "LinfAdditiveUniformNoiseAttack", {"x": 1}, "no option 'x': it has none"),
        (Foolbox, "HopSkipJumpAttack", {"constraint": "l1"}, "constraint must be l2 or linf"),
        (Foolbox, "L0FMNAttack", {}, "runs under L0 only; bestattack measures l2, linf, l1"),
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
            (TorchAttacks, name, {}, "only; bestattack measures l2, linf, l1")
            for name in ("SparseFool", "OnePixel", "Pixle", "JSMA")
        ],
    ],
)
def test_mistakes_are_named_in_one_line(
    adapter: Any, name: str, options: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foolbox_adapter, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=said) as error:
        adapter(name, options)
    line(error)


@pytest.mark.parametrize(("adapter", "name"), [(Foolbox, "PGD"), (TorchAttacks, "PGD")])
def test_failures_of_the_model_are_one_line(adapter: Any, name: str) -> None:
    def model(x: Tensor) -> Tensor:
        if x.requires_grad:
            raise RuntimeError("no\ngradients")
        return torch.eye(2)[torch.zeros(len(x)).long()]

    problem = Problem(model, images((1, 4, 4), 2), torch.zeros(2).long(), ThreatModel("linf", 0.1))
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
