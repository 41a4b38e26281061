"""The attacks of torchattacks."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from attacks.libraries import library as foreign
from attacks.problem import Facts, Family, NotApplicableError, Problem
from attacks.threat import NORMS, Norm

_REFUSED = {
    "LGV": "it trains models on a data set",
    "MultiAttack": "it combines attacks: name them one by one, best-attack is per sample",
}

_BUDGETS = ("eps", "max_epsilon")
_TARGETS = 10
_NORMS: dict[str, Norm] = {"L1": "l1", "L2": "l2", "Linf": "linf"}

# The convolutions that these smooth their gradients with are for three channels.
_COLOUR = ("PIFGSM", "PIFGSMPP", "TIFGSM")

# These resize images or lay squares on them, as if they were square and not tiny.
_SQUARE = ("AutoAttack", "DIFGSM", "Square", "TIFGSM")
_LEAST_SIDE = 5


@dataclass(frozen=True)
class TorchAttacks(foreign.Foreign):
    """An attack class of torchattacks by its name (Kim 2020).

    attack           the name: "PGD", "Square", ...; `available` lists them.
    options          what its constructor takes, in units of images in [0, 1]. Text is read as
                     Python literals. `eps`, `norm`, `seed` and `n_classes` come from the problem
                     unless given.
    library_version  of torchattacks, whose behaviour this has.

    Attacks that take an eps are fixed-budget, also FAB, which returns no point beyond it; the
    others are minimal-norm. Returns points (n, *shape) in the box; samples that are misclassified
    as they are, and those that a minimal-norm attack does not break, come back clean. Raises
    ValueError, in one line, where torchattacks is missing, for unknown names and options, for
    attacks of another norm, and for what torchattacks raises; and NotApplicableError for
    fewer classes, other channels or other inputs than the attack can take.

    Differs from the source:
    - Everything is in float32, and a box other than [0, 1] is scaled to it.
    - Seeds never come from the clock, as AutoAttack's would.
    - n_classes is at most the model's number of classes, and unless given 10 at most, as in the
      published settings: a run toward each of 1000 classes would take a hundred times as long.
    - The least logit is 0, without which CW, EADEN and UPGD's margin stop where all are negative.
    - Images that are not square are padded with zeros for attacks that take squares for granted.
    Not mended: random numbers are torchattacks', seeded by (seed, first sample of the block), so
    that noise depends on the block; alpha does not scale with eps; AutoAttack runs APGD with 10
    steps; CW does not move pixels at 0 or 1, has no search for c, and stops on the whole block's
    loss.

    >>> TorchAttacks("PGDL2", {"steps": 10}).facts.norms
    ('l2',)
    """

    version: ClassVar[int] = 2
    library: ClassVar[str] = "torchattacks"

    def __post_init__(self) -> None:
        cls = foreign.find(self.library, self.attack, _classes())
        options = foreign.parse(self._name, cls, self.options)
        _facts(cls, options)  # raises where the attack cannot be used
        # The weights are drawn, which must not change what the user draws next.
        with torch.random.fork_rng(devices=[]):
            foreign.build(self._name, lambda: cls(nn.Linear(1, 1), **options))
        self._settle(options)

    @cached_property
    def facts(self) -> Facts:
        """What the library says of the attack under these options."""
        return _facts(_classes()[self.attack], self.options)

    def _craft(self, problem: Problem, classes: int, seed: int) -> Tensor:
        x = problem.x
        self._check(x, classes)
        cls = _classes()[self.attack]
        options = _settings(cls, problem, classes, seed) | {
            key: value for key, value in self.options.items() if (key, value) != ("seed", None)
        }
        if "n_classes" in options:
            options["n_classes"] = min(options["n_classes"], classes)
        target: nn.Module = foreign.Target(problem)
        if self.attack not in _SQUARE:
            # Many take four dimensions for granted; `Target` restores the shape.
            images = x if x.dim() == 4 else x.flatten(1)[:, None, None]
            points: Tensor = cls(target, **options)(images, problem.y)
            return points.view_as(x)
        height, width = x.shape[2:]
        side = max(height, width, _LEAST_SIDE)
        padded = pad(x, (0, side - width, 0, side - height))
        points = cls(_Cropped(target, height, width), **options)(padded, problem.y)
        return points[..., :height, :width]

    def _check(self, x: Tensor, classes: int) -> None:
        if self.attack in _SQUARE + _COLOUR and x.dim() != 4:
            raise NotApplicableError("it needs images of channels, height and width")
        if self.attack in _COLOUR and x.shape[1] != 3:
            raise NotApplicableError(f"it needs images of 3 channels, not {x.shape[1]}")
        least, instead = 2, ""
        if self.attack == "APGDT":
            least, instead = 4, "APGD"
        elif self.attack == "AutoAttack":
            least = 3 if self.options.get("version") == "rand" else 4
            instead = "APGD, FAB and Square"
        elif self.options.get("loss") == "dlr":
            least, instead = 3, "loss=ce"
        if classes < least:
            raise NotApplicableError(f"its DLR loss needs at least {least} classes: use {instead}")


class _Cropped(nn.Module):
    """A model of images that were padded below and to the right."""

    def __init__(self, model: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.model, self.height, self.width = model, height, width
        self.eval()

    def forward(self, points: Tensor) -> Tensor:
        logits: Tensor = self.model(points[..., : self.height, : self.width])
        return logits


def available() -> dict[str, str]:
    """The family and norms of each attack class that can be used, by name."""
    listed = {}
    for name, cls in sorted(_classes().items()):
        try:
            listed[name] = foreign.listed(_facts(cls, {}))
        except ValueError:
            continue
    return listed


def _classes() -> dict[str, Any]:
    module: Any = foreign.load("torchattacks")
    return {name: getattr(module, name) for name in module.__all__}


def _settings(cls: Any, problem: Problem, classes: int, seed: int) -> dict[str, Any]:
    """What the constructor takes of what the problem says."""
    taken = inspect.signature(cls).parameters
    norm = next(name for name, ours in _NORMS.items() if ours == problem.threat.norm)
    told: dict[str, Any] = {"norm": norm, "n_classes": min(classes, _TARGETS), "seed": seed}
    told |= dict.fromkeys(_BUDGETS, problem.threat.eps)
    return {key: value for key, value in told.items() if key in taken}


def _facts(cls: Any, options: Mapping[str, Any]) -> Facts:
    name = cls.__name__
    if name in _REFUSED:
        raise ValueError(f"torchattacks:{name} cannot be used: {_REFUSED[name]}")
    taken = inspect.signature(cls).parameters
    fixed = any(budget in taken for budget in _BUDGETS)
    family: Family = "fixed-budget" if fixed else "minimal-norm"
    said = re.search(r"Distance Measure\s*:(.*)", inspect.getdoc(cls) or "")
    if not said:
        # Noise and nothing, which know no norm.
        return foreign.facts_of(family, NORMS)
    measures = re.findall(r"L\w+", said[1])
    norms = tuple(_NORMS[measure] for measure in sorted(measures) if measure in _NORMS)
    if name == "FAB":
        norms = ("l2", "linf")  # under L1 it raises
    if not norms:
        raise ValueError(
            f"torchattacks:{name} runs under {', '.join(measures)} only; "
            f"bestattack measures {', '.join(NORMS)}"
        )
    given = options.get("norm")
    if given is None:
        return foreign.facts_of(family, norms)
    if _NORMS.get(given) not in norms:
        known = " or ".join(its_name for its_name, norm in _NORMS.items() if norm in norms)
        raise ValueError(f"torchattacks:{name}: norm must be {known}, not {given!r}")
    return foreign.facts_of(family, (_NORMS[given],))
