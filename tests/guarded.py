"""What `test_versions` guards, each run on small fixed inputs: attacks, recipes, networks, the
judge and the training loop."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import defenses
from attacks import Attack, Problem, ThreatModel
from attacks.threat import Norm
from benchmark.judge import evaluator
from benchmark.judge.evaluator import Samples
from benchmark.judge.examination import examine
from benchmark.judge.records import MemoryCell
from benchmark.judge.subject import Terms
from benchmark.run import measuring
from benchmark.run.measuring import measure_natural
from benchmark.spec.components import Component, configure
from benchmark.spec.registry import ATTACKS, DEFENSES
from defenses.networks.architectures import ARCHITECTURES
from defenses.nonexpansive.scalings import SCALINGS
from defenses.nonexpansive.stacks import STACKS
from defenses.recipes.schedules import SCHEDULES
from defenses.training import loop
from tests.benchmark.small import Returning, measure_attack

SHAPE, CLASSES = (1, 4, 4), 3

# How each is run here: cheaply, and so that all of its parts are.
ATTACK_OPTIONS = {
    "ddn": "ddn/steps=60/minimize",
    "rays": "rays/steps=60/minimize",
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
    "lp-robust": SMALL,
    "vanilla": SMALL | {"dropout": 0.2, "hold_out": 6},
}
ADVERSARIAL = SMALL | {"steps": 2}
# The width of each network here; those that are not named are multiplied by 0.1.
WIDTHS = {"resnet18": 0.05, "resnet50": 0.05}


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
        self.register_buffer("groups", torch.tensor([0, 0, 1]))
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


class _Misleading(_Network):
    """What it computes is a staircase, by steps that no smoothing knows, whose gradient points
    down it."""

    def forward(self, x: Tensor) -> Tensor:
        edges = torch.arange(1, 13, dtype=x.dtype, device=x.device) / 12
        return super().forward(torch.bucketize(x.detach(), edges).to(x.dtype) / 12 - 0.01 * x)


class _Certified(_Network):
    def certified_radius(self, x: Tensor) -> Tensor:
        first, second = self(x).topk(2, dim=1).values.unbind(1)
        return (first - second) / 50


class _Rounded(nn.Module):
    """Class 1 where the first pixel is above 0.2, but in float32 it is lost, and ties go to 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(2.0**26, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, 0]
        return torch.stack([torch.full_like(first, 0.2), first], dim=1) + self.bias


def _network_for(name: str) -> nn.Module:
    on_arms = ("robin", "best-arm", "top-2", "softmax", "highest-arm", "average-gradient")
    if name in (*on_arms, "softmax-top-2"):
        return _Armed()
    return _Staged() if name == "hierarchical" else _Network()


def attack_of(text: str) -> Attack:
    """The attack that is written so."""
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


def attack_outcome(text: str, model: nn.Module, *norms: Norm) -> dict[str, Any]:
    """What an attack makes of a small network, under some norms or each of its own."""
    attack = attack_of(text)
    return {norm: _attacked(attack, model, norm) for norm in norms or attack.facts.norms}


def named_outcome(name: str) -> dict[str, Any]:
    """What the attack of a registered name does, around pgd where it wraps another."""
    return attack_outcome(ATTACK_OPTIONS.get(name, f"{name}:pgd/steps=6"), _network_for(name))


def _training_set() -> tuple[Tensor, Tensor]:
    y = torch.arange(48) % CLASSES
    x = 0.3 + 0.2 * _wave(48, *SHAPE, phase=0.9)
    x[torch.arange(48), 0, y] += 0.3
    return x, y


def trained(name: str, device: str | torch.device = "cpu", **options: Any) -> nn.Module:
    """The model that the recipe of a registered name makes, trained in float64 on a device."""
    values = RECIPE_OPTIONS.get(name, ADVERSARIAL) | options
    parts: dict[str, nn.Module] = {}
    if name in ("gnb", "mrf", "belief"):
        values, parts = values | {"source": "fractal"}, {"source": copy.deepcopy(_fractal())}
    if name == "hybrid":
        values = values | {"of": "l2nnn", "otherwise": "vanilla"}
        parts = {"of": trained("l2nnn"), "otherwise": trained("vanilla")}
    recipe = configure(DEFENSES, Component(name=name, options=values))
    for part in parts.values():
        part.float()
    model = defenses.initialise(recipe, SHAPE, CLASSES, 5, parts).double()
    threat = ThreatModel("l2", 0.2)
    defenses.train(recipe, model, *_training_set(), threat=threat, seed=5, device=device)
    return model


@cache
def _fractal() -> nn.Module:
    """What several recipes are made of; it takes long to train."""
    return trained("fractal")


def _logits(model: nn.Module, *shape: int) -> list[list[float]]:
    with torch.no_grad():
        logits = model((_wave(5, *shape, phase=0.2) + 1) / 2)
    return [[round(value, 6) for value in row] for row in logits.tolist()]


def recipe_outcome(name: str, **options: Any) -> dict[str, Any]:
    """The logits of a trained model at a few images."""
    return {"logits": _logits(trained(name, **options), *SHAPE)}


def network_outcome(name: str, **options: Any) -> dict[str, Any]:
    """The size of a recipe's new network, and its logits at a few images of 8x8."""
    recipe = configure(DEFENSES, Component(name=name, options=options))
    model = defenses.initialise(recipe, (1, 8, 8), CLASSES, 5, {}).double()
    with torch.no_grad():
        model.train()(_wave(8, 1, 8, 8))  # which moves batch statistics off 0 and 1
    weights = sum(parameter.numel() for parameter in model.parameters())
    return {"weights": weights, "logits": _logits(model.eval(), 1, 8, 8)}


def schedule_outcome(name: str) -> dict[str, Any]:
    """The learning rate along the training, in millionths of the highest."""
    options = {"schedule": name, "learning_rate": 1.0}
    recipe = configure(DEFENSES, Component(name="vanilla", options=options))
    return {"millionths": [round(1e6 * recipe.rate(done / 12)) for done in range(12)]}


def judged_outcome() -> dict[str, Any]:
    """What the judge records of points in the ball, outside of it, outside of the box, and NaN."""
    model = _Network()
    x = (_wave(12, *SHAPE, phase=0.4) + 1) / 2
    samples = Samples(x, model(x).argmax(1), np.arange(12))
    subject = examine(model, x, torch.device("cpu"))
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


def twin_outcome() -> dict[str, Any]:
    """What the judge records where only float32 sees a misclassification, clean and attacked."""
    x = (_wave(12, *SHAPE, phase=0.4) + 1) / 2
    samples = Samples(x, torch.ones(12, dtype=torch.int64), np.arange(12))
    subject = examine(_Rounded(), x, torch.device("cpu"), Terms("float32"))
    natural, attacked = MemoryCell(), MemoryCell()
    measure_natural(subject, samples, natural, 5)
    attack = Returning(lambda problem: problem.x - 0.25)
    threat = ThreatModel("linf", 0.3)
    measure_attack(subject, samples, np.arange(12), threat, attack, 0, attacked, 5)
    return {"natural": _recorded(natural), "attacked": _recorded(attacked)}


def radii_outcome() -> dict[str, Any]:
    """What is recorded of a certificate, where the class is the label and where it is not."""
    model = _Certified()
    x = (_wave(12, *SHAPE, phase=0.4) + 1) / 2
    y = model(x).argmax(1)
    y[::4] = (y[::4] + 1) % CLASSES
    subject = examine(model, x, torch.device("cpu"))
    outcome = {}
    for norm in ("l2", "linf"):
        cell, samples = MemoryCell(), Samples(x, y, np.arange(12))
        measuring.measure_radii(subject, samples, ThreatModel(norm, 0.3), cell, 5)
        outcome[norm] = _recorded(cell)
    return outcome


def _recorded(cell: MemoryCell) -> dict[str, list[Any]]:
    blocks = list(cell.blocks())
    names = ("predicted", "broken", "distance", "outside")
    if not blocks:
        return {name: [] for name in names}
    values = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in names}
    values["distance"] = np.nan_to_num(values["distance"], nan=-1.0).round(5)
    return {name: value.tolist() for name, value in values.items()}


def loop_outcome() -> dict[str, Any]:
    """What the training loop makes of a plain recipe with momentum, decay and a schedule."""
    return recipe_outcome(
        "vanilla", optimizer="sgd", learning_rate=0.1, weight_decay=0.01, schedule="one-cycle"
    )


@dataclass(frozen=True)
class Guarded:
    """What a stored outcome is of: the version that stands for it, and how it is made."""

    version: Callable[[], int]
    outcome: Callable[[], dict[str, Any]]


def _attack(name: str, *of: Any) -> Guarded:
    outcome = partial(attack_outcome, *of) if of else partial(named_outcome, name)
    return Guarded(lambda: ATTACKS.get(name).version, outcome)


def _defense(name: str, outcome: Callable[[], dict[str, Any]]) -> Guarded:
    return Guarded(lambda: DEFENSES.get(name).version, outcome)


def _judge(outcome: Callable[[], dict[str, Any]]) -> Guarded:
    return Guarded(lambda: evaluator.VERSION, outcome)


def _training(outcome: Callable[[], dict[str, Any]]) -> Guarded:
    return Guarded(lambda: loop.VERSION, outcome)


def _architecture(name: str) -> Guarded:
    options = {"arch": name, "widen": WIDTHS.get(name, 0.1)}
    return _defense("vanilla", partial(network_outcome, "vanilla", **options))


ENTRIES = {
    **{f"attack {name}": _attack(name) for name in sorted(ATTACKS._builtin)},
    "attack robin on stages": _attack("robin", "robin:pgd/steps=6", _Staged()),
    "attack transfer:cw": _attack(
        "transfer", "transfer:cw/steps=15/searches=2/source=other", _Network()
    ),
    "attack strong on misleading gradients": _attack(
        "strong", "strong/steps=8/queries=40", _Misleading(), "l2"
    ),
    **{
        f"defense {name}": _defense(name, partial(recipe_outcome, name))
        for name in sorted(DEFENSES._builtin)
    },
    **{f"architecture {name}": _architecture(name) for name in ARCHITECTURES},
    **{
        f"stack {name}": _defense(
            "l2nnn", partial(network_outcome, "l2nnn", arch=name, widen=0.1, multi=True)
        )
        for name in STACKS
    },
    **{
        f"scaling {name}": _defense(
            "l2nnn", partial(recipe_outcome, "l2nnn", scaling=name, adversarial=False)
        )
        for name in SCALINGS
    },
    **{f"schedule {name}": _training(partial(schedule_outcome, name)) for name in SCHEDULES},
    "judge": _judge(judged_outcome),
    "judge in two precisions": _judge(twin_outcome),
    "judge of certificates": _judge(radii_outcome),
    "training loop": _training(loop_outcome),
}


def current(entry: str) -> dict[str, Any]:
    """The declared version and the outcome, as they are now, of an entry."""
    guarded = ENTRIES[entry]
    return {"version": guarded.version(), "outcome": guarded.outcome()}
