"""The specs that come with the project."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attacks import PGD, Problem
from attacks.wrappers.robin import RoBinEvaluation
from benchmark.spec.lineup import choose
from benchmark.spec.roster import recipe_of
from benchmark.spec.run_spec import make_spec, read_values
from defenses import initialise, train

SPECS = sorted(Path(__file__).parents[3].glob("[!.]*.yaml"))
CIFAR10 = next(path for path in SPECS if path.stem == "cifar10-robin")


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_is_valid(path: Path) -> None:
    spec = make_spec(read_values(path))
    assert choose(spec.suite, spec.attacks, spec.threat).notes == ()
    for component in spec.defenses:
        recipe_of(component)


@pytest.mark.parametrize("label", ["CNN multiclass", "CNN RoBin", "ResNet-18 RoBin"])
def test_cifar10_rows_train_and_are_attacked(label: str) -> None:
    """As they stand, but for widths, epochs and the size of a batch."""
    spec = make_spec(read_values(CIFAR10))
    (component,) = (one for one in spec.defenses if one.label == label)
    recipe = replace(recipe_of(component), widen=0.06, epochs=1, batch=10)
    model = initialise(recipe, (3, 32, 32), 10, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    x, y = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
    train(recipe, model, x, y, threat=spec.threat, seed=0)
    after = model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert all((after[name] != value).any() for name, value in before.items())
    attack = RoBinEvaluation(PGD(steps=2))
    points = attack(Problem(model, x, y, spec.threat))
    assert bool((spec.threat.distance(points, x) <= spec.eps * (1 + 1e-6)).all())
