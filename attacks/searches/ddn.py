"""The closest misclassified point: decoupled direction and norm, toward each class, smoothed."""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from attacks.objectives import decided, margin, targeted_margin
from attacks.problem import Facts, NoGradientError, Problem, climb, positions
from attacks.segment import pull
from attacks.smoothing import WARM, Cooling
from attacks.targets import by_distance
from attacks.threat import ThreatModel, per_sample
from attacks.working import Closest, Working, due, far, standing

# Other classes that are tried, at most: those with the largest logits.
_CLASSES = 10

# Temperatures of the searches that go on from the first ones.
_MILD = (0.3, 0.03)

# The parts of the steps that the first searches take together, each of those that go on, and the
# last one; and how many go on.
_SCOUTING, _GOING_ON, _LAST, _KEPT = 0.42, 0.16, 0.1, 3

# How much the radius changes at first and at last; the same, and the length of steps as a part of
# the radius, of the last search, which only polishes.
_CHANGE, _LEAST_CHANGE = 0.05, 0.002
_POLISH, _SHORT = 0.02, 0.1

# The weight of the new step against the momentum, as in APGD.
_MOMENTUM = 0.75

# The first radius is a little more than the linearised distance, and at most eps. It grows by so
# much at each step until a misclassified point is known.
_MORE, _GROWTH = 1.02, 0.15

_HALVINGS = 10


@dataclass(frozen=True)
class DDN:
    """Decoupled direction and norm (Rony et al. 2019), toward one class after another on a smoothed
    network, L2 and L-infinity: the closest misclassified point.

    steps     gradient steps of all searches of a sample together.
    minimize  go on to the end for the smallest distance. Without it a sample is done once it is
              broken within eps.

    A search steps along the gradient and back to a sphere around the image, whose radius shrinks
    where the point is misclassified and grows where it is not. Short ones toward each of up to 10
    classes come first, then longer ones toward the 3 classes that came closest, each from where it
    was, and last a polish with short steps. What is found is pulled toward the image by bisection.

    Returns the closest misclassified points (n, *shape) in the box, clean images where none was
    found. A problem's start is where the first search begins. Raises ValueError for fewer than 20
    steps.

    Differs from the source:
    - Gradients are those of the smoothed network (`attacks.smoothing`), less and less; each point
      is judged on the network itself.
    - Searches have targets, momentum, and radii that begin at the linearised distance.
    - L-infinity, where the gradient's sign takes its place.

    >>> from attacks.threat import ThreatModel
    >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)
    >>> x, y = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
    >>> problem = Problem(model, x, y, ThreatModel("l2", 0.2))
    >>> points = DDN(minimize=True)(problem)
    >>> round(float(problem.threat.distance(points, problem.x)), 3)  # the boundary is 0.1 away
    0.1
    """

    steps: int = 450
    minimize: bool = False

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.steps < 20:
            raise ValueError("ddn: steps must be at least 20")

    @property
    def facts(self) -> Facts:
        """A minimal-norm attack under L2 and L-infinity."""
        passes = self.steps + 2 * _CLASSES + 10 + _HALVINGS
        return Facts("minimal-norm", passes=passes, minimises=self.minimize)

    def minimising(self) -> "DDN":
        """The same attack, which goes on to the smallest distance that it finds."""
        return replace(self, minimize=True)

    def __call__(self, problem: Problem) -> Tensor:
        answer = problem.x.clone()
        rows, _ = standing(problem)
        if len(rows):
            answer[rows] = self._closest(problem.select(rows))
        return answer

    def _closest(self, problem: Problem) -> Tensor:
        budget = 0.0 if self.minimize else problem.threat.eps
        classes, radius = _ranked(problem)
        places = classes.shape[1]

        # A short search toward each class, from the image.
        best = Closest(problem.x, far(problem.x))
        start = problem.x if problem.start is None else problem.threat.clamp(problem.start)
        lengths, points = [], []
        scouting = max(1, int(_SCOUTING * self.steps / places))
        for place in range(places):
            found = _search(
                problem, best, start, classes[:, place], radius[:, place], scouting, WARM, budget
            )
            lengths.append(found.length)
            points.append(found.points)
            best.improve(found)

        # Longer ones toward the classes that came closest.
        every_length, every_point = torch.stack(lengths, 1), torch.stack(points, 1)
        order = every_length.argsort(dim=1, stable=True)
        every = torch.arange(len(problem), device=order.device)
        for place in range(min(_KEPT, places)):
            chosen = order[:, place]
            length = every_length[every, chosen]
            known = length.isfinite()
            at = every_point[every, chosen]
            at = torch.where(per_sample(known, at), at, start)
            begin = torch.where(known, length, radius[every, chosen])
            found = _search(
                problem, best, at, classes[every, chosen], begin,
                int(_GOING_ON * self.steps), _MILD, budget,
            )  # fmt: skip
            best.improve(found)

        # A polish on the network itself, toward any class.
        begin = torch.where(best.length.isfinite(), best.length, radius[:, 0])
        last = int(_LAST * self.steps)
        with suppress(NoGradientError):  # what has none itself may have one when it is smoothed
            best.improve(_search(problem, best, best.points, None, begin, last, None, budget))
        going = positions(best.length.isfinite() & (best.length > budget))
        if len(going):
            best.points[going] = pull(problem.select(going), best.points[going], _HALVINGS)
        return best.points


def _ranked(problem: Problem) -> tuple[Tensor, Tensor]:
    """Other classes (n, k), the nearest by linearised distance on the smoothed network first, and
    these distances (n, k), brought to a range that a search can begin with."""
    smoothed = replace(problem, cooling=Cooling(WARM[0], WARM[0], 1))
    classes, distance = by_distance(smoothed, _CLASSES)
    tiny = torch.finfo(distance.dtype).tiny
    return classes, (_MORE * distance).clamp(tiny, problem.threat.eps)


@dataclass
class _Walk(Closest):
    """Where a search is: the point and the one before (n, *shape), the radius and the target (n,),
    and the closest distance that any search found before (n,)."""

    at: Tensor
    previous: Tensor
    radius: Tensor
    target: Tensor
    before: Tensor


def _search(
    problem: Problem, best: Closest, start: Tensor, target: Tensor | None, radius: Tensor,
    steps: int, cooling: tuple[float, float] | None, budget: float,
) -> Closest:  # fmt: skip
    """One search from `start` (n, *shape) on spheres that begin at a radius (n,), toward a target
    (n,), or any class without one: the closest misclassified points that it meets."""
    any_class = target is None
    target = problem.y if target is None else target
    state = _Walk(problem.x, far(problem.x), start, start, radius, target, best.length)
    if cooling is not None:
        problem = replace(problem, cooling=Cooling(*cooling, steps))
    batch = Working(problem, state)
    change, longest = (_POLISH, _SHORT) if any_class else (_CHANGE, 1.0)
    for step in range(steps):
        if due(step) and not batch.retire(state.length.minimum(state.before) <= budget):
            break
        objective = margin if any_class else partial(targeted_margin, target=state.target)
        x, threat = batch.problem.x, batch.problem.threat
        gradient, _, logits = climb(batch.problem, state.at, objective)

        # Whether the network itself misclassifies the point, and the radius that follows.
        hit = decided(logits, batch.problem.y)
        distance = threat.length(state.at - x)
        new = hit & (distance < state.length)
        state.length = torch.where(new, distance, state.length)
        state.points = torch.where(per_sample(new, x), state.at, state.points)
        decay = (1 + math.cos(math.pi * step / steps)) / 2
        factor = change * decay + _LEAST_CHANGE
        shrunk = state.radius.minimum(distance) * (1 - factor)
        grown = torch.where(state.length.isfinite(), 1 + factor, 1 + _GROWTH)
        radius = torch.where(hit, shrunk, state.radius * grown)
        # Nothing is to be found beyond what is known.
        state.radius = radius.minimum(state.length.minimum(state.before) * (1 - _LEAST_CHANGE))

        # Along the gradient, with momentum, and back to the sphere.
        size = per_sample(longest * decay * state.radius, x)
        push = size * threat.ascent(gradient)
        weight = _MOMENTUM if step else 1.0
        ahead = state.at + weight * push + (1 - weight) * (state.at - state.previous)
        state.previous, state.at = state.at, _to_sphere(threat, x, ahead, state.radius)
    return batch.finish()


def _to_sphere(threat: ThreatModel, x: Tensor, points: Tensor, radius: Tensor) -> Tensor:
    """Points in the box at a distance (n,) from images x (n, *shape), or nearer where the box or
    the points leave no other choice."""
    if threat.norm == "linf":
        reach = per_sample(radius, x)
        return threat.clamp(points.minimum(x + reach).maximum(x - reach))
    tiny = torch.finfo(x.dtype).tiny
    # Twice, since clipping shortens.
    for _ in range(2):
        delta = points - x
        scale = radius / threat.length(delta).clamp_min(tiny)
        points = threat.clamp(torch.addcmul(x, delta, per_sample(scale, x)))
    return points
