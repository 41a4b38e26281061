"""What must hold of every attack class of foolbox and of torchattacks."""

import inspect
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks import Attack, Problem
from attacks.libraries import Foolbox, TorchAttacks
from attacks.libraries import foolbox as foolbox_adapter
from attacks.libraries import torchattacks as torchattacks_adapter
from attacks.problem import NotApplicableError
from tests.attacks.libraries.smooth import line, smooth_problem

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

# What cannot run on grey images of two classes, and the reason.
NOT_GREY = dict.fromkeys(("TIFGSM", "PIFGSM", "PIFGSMPP"), "3 channels, not 1")
NOT_BINARY = dict.fromkeys(("APGDT", "AutoAttack"), "at least 4 classes")


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


def _globals() -> tuple[bytes, str, Any]:
    return bytes(torch.get_rng_state()), str(np.random.get_state()), random.getstate()


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
    problem = smooth_problem((1, 8, 8), 2, 5, norm)
    problem.y[1] = 1 - problem.y[1]
    reason = (NOT_BINARY | NOT_GREY).get(attack.attack)
    if reason:
        with pytest.raises(ValueError, match=reason) as error:
            attack(problem)
        assert isinstance(error.value, NotApplicableError) or line(error).startswith(attack._name)
        return
    points = _check(attack, problem)
    assert torch.equal(points[1], problem.x[1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("attack", "norm"), _every())
def test_colour_images_that_are_not_square(attack: Any, norm: str) -> None:
    """A batch of one, and a batch of which nothing is left to attack."""
    _check(attack, smooth_problem((3, 6, 5), 5, 1, norm))
    lost = smooth_problem((3, 6, 5), 5, 3, norm)
    lost.y[:] = (lost.y + 1) % 5
    assert torch.equal(_check(attack, lost), lost.x)


def test_everything_is_either_usable_or_refused() -> None:
    for module, adapter in ((foolbox_adapter, Foolbox), (torchattacks_adapter, TorchAttacks)):
        usable = module.available()
        for name, cls in module._classes().items():
            if cls.__name__ in usable:
                assert f"{adapter(name).facts.family}, " in usable[cls.__name__]
            else:
                with pytest.raises(ValueError, match=f"{cls.__name__} (cannot|runs|needs)"):
                    adapter(name)
