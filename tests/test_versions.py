"""A guard: what behaves otherwise than before must say so by a new version.

Results are kept under keys that hold the declared versions of attacks, recipes, the judge and the
training loop (`benchmark/keys.py`). A change of behaviour without a new version would serve old
results for new ones. So the outcomes of each on small fixed inputs are stored in versions.json,
made in float64 and compared far above rounding. Where a test here fails and the change is meant:
raise `version` (or VERSION) where the line says, and store the outcomes anew with

    python -m tests.test_versions
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import defenses
from attacks import Attack, Problem, ThreatModel
from attacks.threat import Norm
from benchmark.judge import evaluator
from benchmark.judge.evaluator import Samples, measure_attack, measure_natural
from benchmark.judge.records import MemoryCell
from benchmark.judge.subject import examine
from benchmark.spec.components import Component, configure
from benchmark.spec.registry import ATTACKS, DEFENSES
from defenses.training import loop
from tests.benchmark.small import Returning

STORE = Path(__file__).with_name("versions.json")
SHAPE, CLASSES = (1, 4, 4), 3

# How each is run here: cheaply, and so that all of its parts are.
ATTACK_OPTIONS = {
    "pgd": "pgd/steps=12/restarts=2",
    "apgd": "apgd/steps=12/restarts=2",
    "cw": "cw/steps=20/searches=3/minimize",
    "boundary": "boundary/steps=80/minimize",
    "square": "square/steps=60/restarts=2",
    "strong": "strong/steps=8/queries=40",
    "foolbox": "foolbox:L2DDNAttack/steps=10",
    "torchattacks": "torchattacks:FAB/steps=5",
    "seeded": "seeded:cw/steps=15/searches=2/source=other",
    "transfer": "transfer:pgd/steps=6/source=other",
}
SMALL = {"epochs": 2, "batch": 16, "widen": 0.1}
FRACTAL = {"epochs": 5, "batch": 16, "offset": 0.2, "levels": "2+2", "frames": "0-1,1-2,0-2"}
RECIPE_OPTIONS: dict[str, dict[str, Any]] = {
    "nbr": SMALL | {"offset": 0.2, "memorise": 1},
    "fractal": FRACTAL,
    "best-fractal": FRACTAL | {"levels": "2+2+2", "frames": "0+1-2,0-1"},
    "l2nnn": SMALL | {"adversarial": True, "steps": 2},
    "external": {"layers": "Flatten(), Linear(16, 3)", "epochs": 2, "batch": 16},
    "mrf": {"offset": 0.1},
    "belief": {"offset": 0.1, "slope": 3.0},
    "gnb": {},
    "hybrid": {"threshold": 0.2},
    "ensemble": SMALL | {"members": 2, "steps": 2},
    "vanilla": SMALL | {"dropout": 0.2, "hold_out": 6},
}
ADVERSARIAL = SMALL | {"steps": 2}


def _wave(*shape: int, phase: float = 0.0) -> Tensor:
    """Numbers in [-1, 1] without any generator of random numbers."""
    count = int(np.prod(shape))
    steps = torch.arange(count, dtype=torch.float64)
    return (1.7 * steps + 0.013 * steps.square() + phase).sin().view(shape)


class _Network(nn.Module):
    """A network of 16 pixels and 3 classes that also offers arms, stages and a surrogate."""

    def __init__(self, phase: float = 0.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 12), nn.Linear(12, CLASSES)
        self.groups = torch.tensor([0, 0, 1])
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(_wave(*parameter.shape, phase=phase + number))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.flatten(1)).relu())


class _Armed(_Network):
    def arms(self, x: Tensor) -> Tensor:
        return self(x)


class _Staged(_Network):
    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = super().forward(x)
        return torch.stack([fine[:, :2].mean(1), fine[:, 2]], 1), fine

    def forward(self, x: Tensor) -> Tensor:
        coarse, fine = self.stages(x)
        best = torch.stack([fine[:, :2].amax(1), fine[:, 2]], 1)
        return (coarse - best)[:, self.groups] + fine


def _network_for(name: str) -> nn.Module:
    on_arms = ("robin", "best-arm", "top-2", "softmax", "highest-arm", "average-gradient")
    if name in (*on_arms, "softmax-top-2"):
        return _Armed()
    return _Staged() if name == "hierarchical" else _Network()


def attack_of(name: str) -> Attack:
    """The attack of that name, around pgd where it wraps another."""
    text = ATTACK_OPTIONS.get(name)
    if text is None:
        text = f"{name}:pgd/steps=6"
    attack: Attack = configure(ATTACKS, Component.model_validate(text))
    return attack


def _attacked(attack: Attack, model: nn.Module, norm: Norm) -> dict[str, list[float]]:
    x = (_wave(24, *SHAPE, phase=0.4) + 1) / 2
    y = model(x).argmax(1)
    threat = ThreatModel(norm, 0.25 if norm == "l2" else 0.08)
    forwards = torch.zeros(len(x), dtype=torch.int64)

    def meter(rows: Tensor, logits: Tensor) -> None:
        forwards.index_add_(0, rows, torch.ones_like(rows))

    peers = {"other": _Network(0.05)}
    points = attack(Problem(model, x, y, threat, seed=3, meter=meter, peers=peers))
    distance = threat.distance(points, x)
    return {
        "broken": (model(points).argmax(1) != y).tolist(),
        "forwards": forwards.tolist(),
        "distance": [round(value, 6) for value in distance.tolist()],
    }


def attack_outcome(name: str) -> dict[str, Any]:
    """What the attack of a registered name makes of a small network, under each of its norms."""
    attack, model = attack_of(name), _network_for(name)
    return {norm: _attacked(attack, model, norm) for norm in attack.facts.norms}


def _training_set() -> tuple[Tensor, Tensor]:
    y = torch.arange(48) % CLASSES
    x = 0.3 + 0.2 * _wave(48, *SHAPE, phase=0.9)
    x[torch.arange(48), 0, y] += 0.3
    return x, y


def trained(name: str, **options: Any) -> nn.Module:
    """The model that the recipe of a registered name makes, trained in float64."""
    values = RECIPE_OPTIONS.get(name, ADVERSARIAL) | options
    parts: dict[str, nn.Module] = {}
    if name in ("gnb", "mrf", "belief"):
        values, parts = values | {"source": "fractal"}, {"source": trained("fractal")}
    if name == "hybrid":
        values = values | {"of": "l2nnn", "otherwise": "vanilla"}
        parts = {"of": trained("l2nnn"), "otherwise": trained("vanilla")}
    recipe = configure(DEFENSES, Component(name=name, options=values))
    for part in parts.values():
        part.float()
    model = defenses.initialise(recipe, SHAPE, CLASSES, 5, parts).double()
    defenses.train(recipe, model, *_training_set(), threat=ThreatModel("l2", 0.2), seed=5)
    return model


def recipe_outcome(name: str, **options: Any) -> dict[str, Any]:
    """The logits of a trained model at a few images."""
    model = trained(name, **options)
    with torch.no_grad():
        logits = model((_wave(5, *SHAPE, phase=0.2) + 1) / 2)
    return {"logits": [[round(value, 6) for value in row] for row in logits.tolist()]}


def judged_outcome() -> dict[str, Any]:
    """What the judge records of points in the ball, outside of it, outside of the box, and NaN."""
    model = _Network()
    x = (_wave(12, *SHAPE, phase=0.4) + 1) / 2
    samples = Samples(x, model(x).argmax(1), np.arange(12))
    subject = examine(model, torch.device("cpu"), torch.float32)
    push = _wave(12, *SHAPE, phase=2.0) * torch.linspace(0, 0.6, 12)[:, None, None, None]
    push[5] = torch.nan
    outcome = {}
    for family in ("fixed-budget", "minimal-norm"):
        attack, cell = (
            Returning(lambda problem: problem.x + push[problem.index].to(problem.x), family),
            MemoryCell(),
        )
        threat = ThreatModel("linf", 0.3)
        measure_attack(subject, samples, np.arange(12), threat, attack, 0, cell, 5)
        outcome[family] = _recorded(cell)
    natural = MemoryCell()
    measure_natural(subject, samples, natural, 5)
    return outcome | {"natural": _recorded(natural)}


def _recorded(cell: MemoryCell) -> dict[str, list[Any]]:
    blocks = list(cell.blocks())
    names = ("predicted", "broken", "distance", "outside")
    values = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in names}
    values["distance"] = np.nan_to_num(values["distance"], nan=-1.0).round(5)
    return {name: value.tolist() for name, value in values.items()}


def loop_outcome() -> dict[str, Any]:
    """What the training loop makes of a plain recipe with momentum, decay and a schedule."""
    return recipe_outcome(
        "vanilla", optimizer="sgd", learning_rate=0.1, weight_decay=0.01, schedule="one-cycle"
    )


def _version(name: str, kind: str) -> int:
    cls = (ATTACKS if kind == "attack" else DEFENSES).get(name)
    version: int = cls.version
    return version


NAMES = {
    **{f"attack {name}": name for name in sorted(ATTACKS._builtin)},
    **{f"defense {name}": name for name in sorted(DEFENSES._builtin)},
    "judge": "",
    "training loop": "",
}


def current(entry: str) -> dict[str, Any]:
    """The declared version and the outcome, as they are now, of an entry of NAMES."""
    kind, name = entry.split(" ")[0], NAMES[entry]
    if entry == "judge":
        return {"version": evaluator.VERSION, "outcome": judged_outcome()}
    if entry == "training loop":
        return {"version": loop.VERSION, "outcome": loop_outcome()}
    outcome = attack_outcome(name) if kind == "attack" else recipe_outcome(name)
    return {"version": _version(name, kind), "outcome": outcome}


def _same(found: Any, stored: Any) -> bool:
    if isinstance(stored, dict):
        return found.keys() == stored.keys() and all(_same(found[k], stored[k]) for k in stored)
    return np.shape(found) == np.shape(stored) and np.allclose(
        np.asarray(found, float), np.asarray(stored, float), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("entry", NAMES)
def test_what_behaves_otherwise_has_another_version(entry: str) -> None:
    stored = json.loads(STORE.read_text()).get(entry)
    assert stored, f"{entry} has no stored outcome: run python -m tests.test_versions"
    found = current(entry)
    assert found["version"] == stored["version"], (
        f"the version of {entry} is new: store its outcomes with python -m tests.test_versions"
    )
    assert _same(found["outcome"], stored["outcome"]), (
        f"{entry} behaves otherwise than version {stored['version']} did: if that is meant, raise "
        "its version, and store its outcomes with python -m tests.test_versions"
    )


def test_a_change_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = json.loads(STORE.read_text())["attack pgd"]["outcome"]
    monkeypatch.setitem(ATTACK_OPTIONS, "pgd", "pgd/steps=12/restarts=2/step_size=0.06")
    assert not _same(attack_outcome("pgd"), stored)


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = {entry: current(entry) for entry in sys.argv[1:] or NAMES}
    kept = json.loads(STORE.read_text()) if STORE.exists() else {}
    both = {entry: (kept | made)[entry] for entry in NAMES if entry in kept | made}
    lines = ",\n".join(f" {json.dumps(entry)}: {json.dumps(both[entry])}" for entry in both)
    STORE.write_text(f"{{\n{lines}\n}}\n")
