"""The attacks of foolbox."""

import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks import noise
from attacks.libraries import library as foreign
from attacks.objectives import decided
from attacks.problem import Facts, Family, Problem
from attacks.segment import pull
from attacks.threat import NORMS, per_sample

_REFUSED = {
    "BinarizationRefinementAttack": "it refines points that another attack has found",
    "GenAttack": "it is targeted only",
    "SpatialAttack": "it rotates and shifts images, which no norm ball bounds",
}

# What foolbox demands and does not choose itself.
_DEFAULTS: dict[str, dict[str, Any]] = {"VirtualAdversarialAttack": {"steps": 10}}

# These raise for the whole batch where one sample has no start.
_NEED_STARTS = ("BoundaryAttack", "HopSkipJumpAttack", "PointwiseAttack", "BrendelBethgeAttack")

# Images of noise, and images of the block, that are tried as the start of each sample, and the
# bisections that pull a start toward its image.
_NOISES, _IMAGES, _HALVINGS = 16, 16, 6


@dataclass(frozen=True)
class Foolbox(foreign.Foreign):
    """An attack class of foolbox by its name, as in foolbox.attacks (Rauber et al. 2020).

    attack           the name: "L2DDNAttack", "LinfPGD", ...; `available` lists them.
    options          what its constructor takes, but objects and what writes files: `distance` and
                     `constraint` come from the threat, starts from noise. Text is read as Python
                     literals.
    library_version  of foolbox, whose behaviour this has.

    Fixed-budget attacks get the threat's eps; the others minimise without one. Returns points
    (n, *shape) in the box; samples that are misclassified as they are, and those that a
    minimal-norm attack does not break, come back clean. Raises ValueError, in one line, where
    foolbox is missing, for unknown names and options, for attacks of another norm, and for
    what foolbox raises.

    Differs from the source:
    - Everything is in float32, and a box other than [0, 1] is scaled to it (HopSkipJump clips to
      it regardless).
    - Boundary, HopSkipJump, pointwise and Brendel-Bethge attacks start from `problem.start` where
      it is misclassified, else from noise, else from another image of the block, for each sample by
      itself; in foolbox one sample without a start loses the batch.
    - The virtual adversarial attack returns the clean image where its gradient vanishes; in foolbox
      this loses the batch.
    - DatasetAttack draws from the images of the block.
    Not mended: random numbers are foolbox's, seeded by (seed, first sample of the block), so that
    noise depends on the block; in L2CarliniWagnerAttack one sample's loss stops the others;
    BoundaryAttack shares its directions across the block; Brendel-Bethge attacks need numba and can
    loop forever.

    >>> Foolbox("L2DDNAttack", {"steps": 50}).facts.family
    'minimal-norm'
    """

    version: ClassVar[int] = 1
    library: ClassVar[str] = "foolbox"

    def __post_init__(self) -> None:
        cls = foreign.find(self.library, self.attack, _classes())
        options = foreign.parse(self._name, cls, _DEFAULTS.get(cls.__name__, {}) | {**self.options})
        _facts(cls, options)  # raises where the attack cannot be used
        foreign.build(self._name, lambda: cls(**options))
        self._settle(options)

    @cached_property
    def facts(self) -> Facts:
        """What the library says of the attack under these options."""
        return _facts(_classes()[self.attack], self.options)

    def _craft(self, problem: Problem, classes: int, seed: int) -> Tensor:
        cls = _classes()[self.attack]
        if not cls.__name__.endswith(_NEED_STARTS):
            return self._attack(problem, {})
        points = problem.x.clone()
        starts, has_start = _starts(problem)
        if bool(has_start.any()):
            chosen, starts = problem.select(has_start), starts[has_start]
            starts = pull(chosen, starts, _HALVINGS)
            points[has_start] = self._attack(chosen, {"starting_points": starts})
        return points

    def _attack(self, problem: Problem, extra: dict[str, Any]) -> Tensor:
        try:
            return self._once(problem, extra)
        except RuntimeError as error:
            if "Gradient vanished" not in str(error):
                raise
        if len(problem) == 1:
            return problem.x
        halves = torch.arange(len(problem), device=problem.x.device).chunk(2)
        return torch.cat([self._attack(problem.select(half), extra) for half in halves])

    def _once(self, problem: Problem, extra: dict[str, Any]) -> Tensor:
        foolbox: Any = foreign.load("foolbox")
        cls = _classes()[self.attack]
        norm = problem.threat.norm
        given = {"constraint": norm} if cls.__name__ == "HopSkipJumpAttack" else {}
        attack = cls(**given | {**self.options})
        target = foreign.Target(problem)
        model = foolbox.PyTorchModel(target, bounds=(0, 1), device=problem.x.device)
        if hasattr(attack, "feed"):
            attack.feed(model, problem.x)
        epsilon = problem.threat.eps if self.facts.family == "fixed-budget" else None
        criterion = foolbox.criteria.Misclassification(problem.y)
        points: Tensor
        _, points, _ = attack(model, problem.x, criterion, epsilons=epsilon, **extra)
        return points


def available() -> dict[str, str]:
    """The family and norms of each attack class that can be used, by name."""
    listed = {}
    for name, cls in sorted(_classes().items()):
        if name == cls.__name__:
            try:
                listed[name] = foreign.listed(_facts(cls, {}))
            except ValueError:
                continue
    return listed


def _classes() -> dict[str, Any]:
    """All attack classes and their short names."""
    # On a machine without git, foolbox cannot be imported unless GitPython is told not to mind.
    before = os.environ.get("GIT_PYTHON_REFRESH")
    os.environ["GIT_PYTHON_REFRESH"] = before or "quiet"
    try:
        module: Any = foreign.load("foolbox").attacks
    finally:
        if before is None:
            del os.environ["GIT_PYTHON_REFRESH"]
    classes = {
        name: cls
        for name, cls in vars(module).items()
        if inspect.isclass(cls) and issubclass(cls, module.Attack) and not inspect.isabstract(cls)
    }
    # Foolbox leaves the norm out of this name alone.
    return classes | {"L2DDNAttack": classes["DDNAttack"]}


def _facts(cls: Any, options: Mapping[str, Any]) -> Facts:
    name = cls.__name__
    if name in _REFUSED:
        raise ValueError(f"foolbox:{name} cannot be used: {_REFUSED[name]}")
    base: Any = foreign.load("foolbox").attacks.base
    fixed = issubclass(cls, base.FixedEpsilonAttack)
    family: Family = "fixed-budget" if fixed else "minimal-norm"
    norms = NORMS
    if name == "HopSkipJumpAttack":
        norms, given = ("l2", "linf"), options.get("constraint")
        if given is not None and given not in norms:
            raise ValueError(f"foolbox:{name}: constraint must be l2 or linf, not {given!r}")
        norms = tuple(norm for norm in norms if given in (None, norm))
    elif not issubclass(cls, base.FlexibleDistanceMinimizationAttack):
        # Attacks by noise have their distance as a property, and need no options.
        distance = cls().distance if isinstance(cls.distance, property) else cls.distance
        its_norm = f"L{distance.p:g}"
        norms = tuple(norm for norm in norms if norm == its_norm.lower())
        if not norms:
            raise ValueError(
                f"foolbox:{name} runs under {its_norm} only; bestattack measures {', '.join(NORMS)}"
            )
    if name.endswith("BrendelBethgeAttack") and find_spec("numba") is None:
        raise ValueError(f"foolbox:{name} needs numba: pip install numba")
    return foreign.facts_of(family, norms)


def _starts(problem: Problem) -> tuple[Tensor, Tensor]:
    """A misclassified image for each sample (n, *shape), and where one was found (n,)."""
    points = problem.x.clone()
    has_start = torch.zeros_like(problem.y, dtype=torch.bool)
    for candidates in _candidates(problem):
        (left,) = (~has_start).nonzero(as_tuple=True)
        if not len(left):
            break
        chosen, tried = problem.select(left), candidates[left]
        with torch.no_grad():
            hit = decided(chosen.logits(tried), chosen.y)
        points[left] = torch.where(per_sample(hit, tried), tried, chosen.x)
        has_start[left] = hit
    return points, has_start


def _candidates(problem: Problem) -> Iterator[Tensor]:
    """Images of the problem's shape (n, *shape) in the box [0, 1]: first those it was given, then
    grey noise and black and white noise by turns, then the images of the block."""
    if problem.start is not None:
        yield problem.start
    shape = tuple(problem.x.shape[1:])
    for stream in range(_NOISES):
        image = noise.uniform(problem.seed, problem.index, stream, shape)
        yield image.round() if stream % 2 else image
    for step in range(1, min(_IMAGES + 1, len(problem))):
        yield problem.x.roll(step, 0)
