"""What is seen of a model before it is attacked is what a run would find."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.data.sets import load_dataset
from benchmark.direct import Inspection, inspect
from benchmark.direct.evaluate import evaluate
from benchmark.errors import UserError
from defenses.nonexpansive.l2nnn import L2NNN

N = 24
X = load_dataset("digits").first("test", N).x[:]


def _network(*further: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))
    return nn.Sequential(*layers, *further).eval()


def _labels(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X).argmax(1)


def _seen(model: nn.Module, y: Any = None, **options: Any) -> Inspection:
    given: dict[str, Any] = {"norm": "linf", "eps": 0.05, "attacks": ["pgd/steps=3"]} | options
    return inspect(model, X, _labels(_network()) if y is None else y, **given)


def test_a_plain_model() -> None:
    seen = _seen(_network())
    assert (seen.kind, seen.classes, seen.shape) == ("Sequential", 10, (1, 8, 8))
    assert seen.parameters == sum(p.numel() for p in _network().parameters())
    assert seen.size == 4 * seen.parameters
    assert (seen.precision, seen.in_float64, seen.at_once) == ("float32", True, None)
    assert not seen.is_random
    assert not seen.is_stateful
    assert seen.smoothed == {"relu": 1, "max_pool2d": 1}
    assert seen.correct == seen.looked_at == N
    assert not seen.flags
    # A trial is what `evaluate` finds on the same images.
    trial = seen.trials["pgd/steps=3"]
    y = _labels(_network())
    first = slice(trial.tried)
    report = evaluate(
        _network(), X[first], y[first], norm="linf", eps=0.05, attacks=["pgd/steps=3"]
    )
    assert trial.broken == round((1 - report.best_attack) * trial.tried)
    assert trial.forwards == report.frames["pgd/steps=3"]["forwards"].mean()


def test_what_a_pass_keeps_is_counted() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)).eval()
    # The gradient of the images needs the outputs of the ReLU, and no image.
    assert _seen(flat).footprint.of_image - 16 * 4 * 64 in (4 * 100, 4 * (100 + 64))
    assert _seen(flat).cost.backward is not None


def test_more_samples_take_longer() -> None:
    few, many = (_seen(_network(), samples=samples) for samples in (1000, 1_000_000))
    assert many.samples == 1_000_000
    assert 200 * few.seconds < many.seconds < 5000 * few.seconds


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn_like(x)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy().copy())


def test_what_is_odd_is_seen() -> None:
    assert _seen(_network(Drawing())).is_random
    assert "batch-dependent" in _seen(_network(Centred())).flags
    assert _seen(_network(Counting())).is_stateful
    detached = _seen(_network(Detached()))
    assert detached.cost.backward is None
    assert "no gradients" in str(detached)
    assert "fails: " in str(detached)
    assert "probabilities" in _seen(_network(nn.Softmax(1))).flags
    assert _seen(_network().half()).precision == "float16"
    assert "certificate" in _seen(L2NNN().build((1, 8, 8), 10)).offers


def test_attacks_that_do_not_apply_or_fail_say_so() -> None:
    seen = _seen(_network(), attacks=["best-arm:pgd", "pgd/steps=3"])
    assert "does not apply" in seen.trials["best-arm:pgd"].line
    assert math.isfinite(seen.seconds)
    assert "does not apply" in str(seen)


def test_wrong_labels_are_noticed() -> None:
    seen = _seen(_network(), (_labels(_network()) + 1) % 10)
    assert seen.correct == 0
    assert not seen.trials
    assert "chance" in seen.flags
    assert "Are mean, std and range those that the model expects?" in " ".join(str(seen).split())


def test_nothing_is_changed() -> None:
    model = _network(nn.BatchNorm1d(10), nn.Dropout()).train()
    before, images, y = copy.deepcopy(model.state_dict()), X.clone(), _labels(_network())
    torch.manual_seed(5)
    random = torch.get_rng_state()
    _seen(model, y)
    assert torch.get_rng_state().equal(random)
    assert model.training
    assert all(before[name].equal(value) for name, value in model.state_dict().items())
    assert images.equal(X)


def test_mistakes_are_those_of_evaluate() -> None:
    with pytest.raises(UserError, match="unknown attack"):
        _seen(_network(), attacks=["pdg"])
    with pytest.raises(UserError, match="labels go up to 10"):
        _seen(_network(), np.full(N, 10))


def test_what_a_source_says_and_what_must_not_change_is_noted() -> None:
    model = _network()
    model.note = "it takes 1 image at once, as it was exported"  # type: ignore[assignment]
    y = _labels(_network())
    model.reject = next(label for label in range(10) if not (y == label).any())  # type: ignore[assignment]
    eps = torch.full((1, 8, 8), 0.05)
    eps[0, 0, :2] = 0
    seen = inspect(model, X, y, norm="linf", eps=eps, attacks=["pgd/steps=3"])
    assert seen.notes[0] == "it takes 1 image at once, as it was exported"
    assert "2 of 64 features must not change" in seen.notes[1]
    assert f"class {model.reject} rejects an image" in str(seen)
