"""What the adapters of other attack libraries share: their names and options, and a safe run."""

import ast
import importlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.generators import seeded
from attacks.messages import closest, reason
from attacks.objectives import CLEAR, decided
from attacks.problem import Facts, Family, NotApplicableError, Problem
from attacks.threat import Norm, ThreatModel, per_sample
from attacks.working import standing

# The noise stream that seeds a library, far from those that its adapter draws starts from.
_SEED_STREAM = 1 << 16

# Logits further than this below the largest decide nothing, and may be minus infinity.
_DEPTH = 100.0

# Options that take objects, print or write files.
_CLOSED = {"self", "model", "distance", "init_attack", "tensorboard", "verbose"}

# More names than this do not fit into an error's line.
_MANY = 30

_WORDS: dict[str, bool | None] = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Foreign:
    """An attack of another library, by its name and options.

    library_version  of the library that is installed, whose behaviour this has.
    """

    attack: str
    options: Mapping[str, Any] = field(default_factory=dict)
    library_version: str = field(init=False, default="")

    version: ClassVar[int]
    library: ClassVar[str]

    def _settle(self, options: Mapping[str, Any]) -> None:
        """Keep the options as read, and the library's version."""
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "library_version", version(self.library))

    @cached_property
    def facts(self) -> Facts:
        """What the library says of the attack under these options."""
        raise NotImplementedError

    @property
    def _name(self) -> str:
        return f"{self.library}:{self.attack}"

    def __call__(self, problem: Problem) -> Tensor:
        return run(self._name, self.facts.family, problem, self._craft)

    def _craft(self, problem: Problem, classes: int, seed: int) -> Tensor:
        raise NotImplementedError


def facts_of(family: Family, norms: tuple[Norm, ...]) -> Facts:
    """The facts of a library's attack. Those of minimal norm do not know the budget, so they all
    minimise. Noise is drawn for all samples of a block at once, so points depend on the block."""
    return Facts(family, norms, minimises=family == "minimal-norm", by_block=True)


def listed(facts: Facts) -> str:
    """An attack's family and norms, as lists of attacks show them."""
    return f"{facts.family}, {' and '.join(facts.norms)}"


def load(library: str) -> ModuleType:
    """The library's package. Raises ValueError where it is missing."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            raise ValueError(f"{library} is not installed: pip install {library}") from error
        raise ValueError(f"{library} cannot be imported: {reason(error)}") from error


def find(library: str, attack: str, classes: Mapping[str, type]) -> type:
    """The class of that name. Raises ValueError with the nearest name where there is none."""
    if attack not in classes:
        hint = _nearest(attack, classes)
        raise ValueError(f"{library} has no attack {attack!r}: {hint}")
    return classes[attack]


def parse(name: str, cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, sorted, with what arrives as text ("50", "0.1", "true", "None") read.

    Raises ValueError for one that the constructor of `cls` does not take, or a word for a number.
    """
    known = {
        key: parameter.default
        for key, parameter in inspect.signature(cls).parameters.items()
        if key not in _CLOSED | {"args", "kwargs"}
    }
    parsed = {}
    for key in sorted(options):
        if key not in known:
            raise ValueError(f"{name} has no option {key!r}: {_nearest(key, known)}")
        value = _literal(options[key]) if isinstance(options[key], str) else options[key]
        number = isinstance(known[key], int | float)
        if number and (
            not isinstance(value, int | float)
            or isinstance(value, bool) != isinstance(known[key], bool)
        ):
            kind = "true or false" if isinstance(known[key], bool) else "a number"
            raise ValueError(f"{name}: {key} must be {kind}, not {value!r}")
        parsed[key] = value
    return parsed


def _nearest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    if close := closest(word, names):
        return f"did you mean {close!r}?"
    if len(names) > _MANY:
        return "'bestattack list' shows all"
    return f"it has {', '.join(names) or 'none'}"


def _literal(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def build(name: str, make: Callable[[], Any]) -> Any:
    """What `make` constructs; any exception becomes a ValueError of one line."""
    try:
        return make()
    except Exception as error:
        raise ValueError(f"{name}: {reason(error)}") from error


class Target(nn.Module):
    """The problem's model as a library sees it: always in eval mode, metered, viewed.

    The label's logit is raised by rounding, so that no search ends on points that another batch
    size or precision undoes. Logits are shifted so that the least of each image is 0, because some
    losses compare them with constants. Where a library forwards other than the whole batch, it does
    not say which samples; those passes are counted round robin, so that their mean over the samples
    stays true, and labels are not raised. With a view, such a forward raises ValueError.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        # A library asks the first parameter for the device. The model itself is no submodule, so
        # that train(), eval() and to() do not reach it.
        nothing = torch.empty(0, device=problem.x.device)
        self.device = nn.Parameter(nothing, requires_grad=False)
        self._problem = problem
        self._next = 0
        self.eval()

    def forward(self, points: Tensor) -> Tensor:
        problem = self._problem
        points = points.reshape(-1, *problem.x.shape[1:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and points.requires_grad):
            whole = len(points) == len(problem)
            if whole:
                logits = problem.logits(points)
            else:
                logits = torch.cat([self._chunk(chunk) for chunk in points.split(len(problem))])
            known = logits.detach()
            top = known.amax(1, keepdim=True)
            low = known.amin(1, keepdim=True).maximum(top - _DEPTH)
            if whole:
                slack = CLEAR * top.abs().maximum(low.abs())
                logits = logits.scatter_add(1, problem.y[:, None], slack)
            return logits - low

    def _chunk(self, points: Tensor) -> Tensor:
        problem = self._problem
        if problem.view is not None:
            raise ValueError("it asks about parts of a batch, which a view cannot answer")
        logits = problem.call(points)
        if problem.meter is not None:
            places = torch.arange(self._next, self._next + len(points), device=points.device)
            problem.meter(problem.rows[places % len(problem)], logits)
            self._next = (self._next + len(points)) % len(problem)
        return logits


def run(
    name: str, family: Family, problem: Problem, craft: Callable[[Problem, int, int], Tensor]
) -> Tensor:
    """The points (n, *shape) that `craft` finds for the samples that are not misclassified as they
    are; the others stay clean.

    `craft` is given the problem in float32 and the box [0, 1], the number of classes and a seed,
    and returns points. NaN pixels become those of the image, and so does what a minimal-norm attack
    returns for samples that it does not break. What it raises becomes a ValueError of one line that
    starts with `name`; a NotApplicableError stays one.
    """
    answer = problem.x.clone()
    if not len(problem):
        return answer
    rows, logits = standing(problem)
    if not len(rows):
        return answer
    undecided = problem.select(rows)
    try:
        with warnings.catch_warnings(), seeded(problem.seed, problem.index, _SEED_STREAM) as seed:
            warnings.simplefilter("ignore")
            points = craft(_unit(undecided), logits.shape[1], seed)
    except (torch.OutOfMemoryError, NotApplicableError):
        raise
    except Exception as error:
        raise ValueError(f"{name}: {reason(error)}") from error
    points = _from_unit(points.detach(), undecided)
    points = problem.threat.clamp(torch.where(points.isnan(), undecided.x, points))
    if family == "minimal-norm":
        with torch.no_grad():
            broken = decided(undecided.logits(points), undecided.y)
        points = torch.where(per_sample(broken, points), points, undecided.x)
    answer[rows] = points
    return answer


def _to_unit(points: Tensor, threat: ThreatModel) -> Tensor:
    low, high = threat.hull
    unit = ((points - low) / (high - low)).float().clamp(0, 1)
    return unit.contiguous()  # which some take for granted


def _from_unit(points: Tensor, problem: Problem) -> Tensor:
    low, high = problem.threat.hull
    return points.to(problem.x.dtype) * (high - low) + low


def _unit(problem: Problem) -> Problem:
    """The same problem in float32 and in the box [0, 1], as the libraries take for granted.

    Where bounds differ by pixel, that is the box around all of them, and points are brought into
    theirs in the end.
    """
    x, threat = problem.x, problem.threat
    return replace(
        problem,
        model=lambda points: problem.model(_from_unit(points, problem)).float(),
        x=_to_unit(x, threat),
        threat=ThreatModel(threat.norm, threat.eps / (threat.hull[1] - threat.hull[0])),
        start=None if problem.start is None else _to_unit(problem.start, threat),
    )
