"""Whether any perturbation breaks a network at an image: decided by attacks, bounds and search."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from attacks import PGD, Attack, Problem, Strong, ThreatModel
from attacks.objectives import decided
from attacks.problem import NoGradientError, NotApplicableError
from defenses.graphs.graph import Graph, Shape
from defenses.graphs.tracing import Program
from defenses.verification.balls import Ball
from defenses.verification.bounds import bound_units, largest, lowest_corner, margins
from defenses.verification.branching import Search
from defenses.verification.lines import Units
from defenses.verification.milp import MixedProgram, is_small
from defenses.verification.slopes import sharpened, tightened

# Raised when other images are proven to be robust by the same method in the same time.
BOUNDS_VERSION = 1

Status = Literal["robust", "broken", "undecided"]

# How: by linear bounds alone, or by these, branch and bound, and the solver where it may help.
Method = Literal["crown", "branch"]

# How far the graph and the model may differ by rounding.
_TOLERANCE = 1e-6

# How many images are bounded at once, and the steps of an attack that are tried on them first.
_BLOCK, _FEW = 16, 20

# Until what share of the time for an image is over there is a first search, hidden units are then
# bounded again, in so many steps, and there is another search, if the solver may help after it.
_FIRST, _BOUNDED, _SEARCH = 0.15, 0.45, 0.6
_STEPS = 6


@dataclass(frozen=True, eq=False)
class Decision:
    """What was found out about one image.

    status   "robust": no point of the ball and the box gives another class a logit at least as
             large as the label's. "broken": `point` is misclassified. "undecided": time ran out, or
             it is so close to a tie that neither could be shown.
    by       what showed it: "attack", "crown", "alpha-crown", "branching" or "solver"; empty where
             it is undecided.
    bound    by how much the label leads every other class at least, by linear bounds alone; NaN
             where it was broken before there were any.
    point    (*shape), in the image's precision and exactly in the ball and the box; None unless
             broken.
    seconds  how long it took; of what is done for several images at once, its share.
    """

    status: Status
    by: str
    bound: float
    point: Tensor | None
    seconds: float


def decide(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    seconds: float = 10.0,
    method: Method = "branch",
    read: "Readable | None" = None,
    attacked: bool = False,
    allowed: int | None = None,
) -> Iterator[Decision]:
    """Decide images x (n, *shape) with labels y (n,), in their order, each within so many seconds
    beside the attack and the linear bounds.

    read      the model in float64, and what was read of it; by default a copy is read.
    attacked  says that attacks broke none of the images, so that none is tried.
    allowed   the class that a perturbed image may have beside its label, if there is one.

    "robust" holds for the network as real numbers, whatever rounding does in these computations
    (`bounds`); where only the solver shows it, up to its tolerance of 1e-6. "broken" does not rest
    on bounds: the model itself misclassifies the point, in its own precision and in float64, by
    more than rounding (`attacks.objectives.decided`).

    A few steps of PGD come first, then linear bounds, then `strong` for what these leave, and then
    the search.

    Raises ValueError, in one line, for another norm than linf and l2, images out of the box, a
    negative time, and a network that cannot be read.
    """
    if not seconds >= 0:
        raise ValueError(f"the time for an image must be at least 0 seconds, not {seconds}")
    if not torch.equal(x, threat.clamp(x)):
        raise ValueError(f"images lie out of the box [{threat.lower}, {threat.upper}]")
    Ball.around(x[:1], threat)
    if not len(x):
        return iter(())
    read = read or Readable.of(copy.deepcopy(model).eval().double(), tuple(x.shape[1:]))
    own = copy.deepcopy(model).eval().requires_grad_(False)
    decider = _Decider(own, read, x.detach(), y, threat, method, attacked, allowed)
    return decider.decide(seconds)


class Network(NamedTuple):
    """A network as bounds are propagated through it: in float64, in which they are proven, and in
    float32, in which slopes and branches are looked for."""

    exact: Graph
    rough: Graph

    @classmethod
    def of(cls, model: nn.Module, shape: Shape) -> "Network":
        """That of a module in float64. Raises ValueError, in one line, where it cannot be read."""
        program = Program(model, shape)
        exact = program.graph(dtype=torch.float64)
        exact.check()
        return cls(exact, program.graph(dtype=torch.float32))


class Readable(NamedTuple):
    """A model in float64, and the network that it is."""

    twin: nn.Module
    network: Network

    @classmethod
    def of(cls, twin: nn.Module, shape: Shape) -> "Readable":
        """That of a model in float64, for images of `shape`. Raises ValueError, in one line, where
        no bounds can be had of it."""
        if not all(bool(weights.isfinite().all()) for weights in twin.parameters()):
            raise ValueError("it has weights that are not finite")
        network = Network.of(twin, shape)
        if network.exact.shape_of(len(network.exact.nodes))[1] < 2:
            raise ValueError("it gives one number for an image, not two or more logits")
        return cls(twin, network)


class _Decider:
    """The model in two precisions, its own and float64, and as a graph."""

    def __init__(
        self,
        model: nn.Module,
        read: Readable,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        method: Method,
        attacked: bool,
        allowed: int | None,
    ) -> None:
        self.models = model, read.twin
        self.graph, self.rough = read.network
        self.x, self.y, self.threat, self.method = x, y, threat, method
        self.attacked, self.allowed = attacked, allowed

    def decide(self, seconds: float) -> Iterator[Decision]:
        for rows in torch.arange(len(self.x), device=self.x.device).split(_BLOCK):
            threat = self.threat.select(rows, self.x.dim())
            yield from self._block(self.x[rows], self.y[rows], threat, seconds)

    def _block(
        self, x: Tensor, y: Tensor, threat: ThreatModel, seconds: float
    ) -> Iterator[Decision]:
        """Decide some images: first those that a few steps of an attack break, then those that
        bounds prove, then those that `strong` breaks, then all others by a search."""
        start, n = time.monotonic(), len(x)
        points: dict[int, Tensor] = {}
        if not self.attacked:
            points = self._broken(PGD(steps=_FEW), x, y, threat, range(n))
        left = [i for i in range(n) if i not in points]
        least: dict[int, float] = {}
        if left:
            units, rows, bounds = self._bounded(x[left], y[left], _of(threat, left, x))
            least = dict(zip(left, bounds.amin(1).tolist(), strict=True))
        if not self.attacked:
            unproven = [i for i in left if not least[i] > 0]
            points |= self._broken(Strong(), x, y, threat, unproven)
        share = (time.monotonic() - start) / n
        for i in range(n):
            if i in points:
                yield Decision("broken", "attack", least.get(i, math.nan), points[i], share)
            elif least[i] > 0:
                yield Decision("robust", "crown", least[i], None, share)
            elif self.method == "crown" or least[i] == -math.inf:
                yield Decision("undecided", "", least[i], None, share)
            else:
                start, place = time.monotonic(), left.index(i)
                found = _Found(self, x[i : i + 1], y[i : i + 1], _of(threat, [i], x))
                asked = bounds[place] != math.inf
                status, by = proved(
                    units[place : place + 1], self.rough, rows[place][asked],
                    bounds[place][asked], start + seconds, found,
                )  # fmt: skip
                took = share + time.monotonic() - start
                yield Decision(status, by, least[i], found.point, took)

    @torch.no_grad()
    def _bounded(self, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Units, Tensor, Tensor]:
        """What is known over the balls around images, the rows by which labels lead, and lower
        bounds of these (n, classes - 1): infinite, where labels need not lead."""
        ball = Ball.around(x.double()[:, None], threat)
        units = bound_units(self.graph, ball)
        rows = margins(y, self.graph.shape_of(len(self.graph.nodes))[1], torch.float64)
        bounds, corners = lowest_corner(units, rows)
        # What may not be a number in the model's own precision counts as misclassified.
        overflows = ~(largest(units) < torch.finfo(self.x.dtype).max)
        bounds[overflows | ~self._compare(ball, corners)] = -math.inf
        if self.allowed is not None:
            bounds[rows[:, :, 0, self.allowed] < 0] = math.inf
        return units, rows, bounds

    def _compare(self, ball: Ball, corners: Tensor) -> Tensor:
        """Whether the model gives numbers for each image (n,): at the image, at some corners of its
        box, among them that (n, *shape) which bounds are lowest at, and between. Raises ValueError
        where the graph is not the function that the model computes there."""
        share = torch.rand_like(ball.x)
        mixed = torch.where(share < 0.5, ball.low, ball.high)
        between = torch.lerp(ball.low, ball.high, share)
        points = torch.cat([ball.x, ball.low, ball.high, mixed, between, corners])
        found, expected = self.graph.forward(points)[-1][:, 0], self.models[1](points[:, 0])
        # Of each class by itself: one whose logits are huge must not hide the others.
        are_numbers = expected.isfinite()
        largest_of = expected.masked_fill(~are_numbers, 0).abs().amax(0, keepdim=True)
        differ = (found - expected).abs() > _TOLERANCE * (1 + largest_of)
        if bool((differ & are_numbers).any() | (found.isfinite() & ~are_numbers).any()):
            raise ValueError("it was not read as the function that it computes")
        gives: Tensor = are_numbers.all(1).view(-1, len(ball.x)).all(0)
        return gives

    def _broken(
        self, attack: Attack, x: Tensor, y: Tensor, threat: ThreatModel, places: Sequence[int]
    ) -> dict[int, Tensor]:
        """Points that break images at some places, by place, as far as an attack finds any or they
        are misclassified as they are."""
        some = list(places)
        if not some:
            return {}
        clean, labels, within = x[some], y[some], _of(threat, some, x)
        try:
            problem = Problem(self.models[0], clean, labels, within, allowed=self.allowed)
            points = attack(problem)
        except (NoGradientError, NotApplicableError):
            points = clean
        both = torch.stack([clean, within.enforce(points.detach(), clean)])
        broken = torch.stack([self.breaks(points, labels) for points in both])
        return {
            place: both[int(hits.nonzero()[0]), i].clone()
            for i, (place, hits) in enumerate(zip(some, broken.unbind(1), strict=True))
            if hits.any()
        }

    @torch.no_grad()
    def breaks(self, points: Tensor, y: Tensor) -> Tensor:
        """Which points (n, *shape) are misclassified in both precisions, by more than rounding."""
        broken = torch.ones_like(y, dtype=torch.bool)
        for model in self.models:
            logits = model(points.to(self.x.dtype if model is self.models[0] else torch.float64))
            broken &= decided(logits, y)
            if self.allowed is not None:
                broken &= logits.argmax(1) != self.allowed
        return broken


def _of(threat: ThreatModel, places: Sequence[int], x: Tensor) -> ThreatModel:
    """The threat around those images x (n, *shape) that are at some places."""
    return threat.select(torch.tensor(places, dtype=torch.long, device=x.device), x.dim())


class _Found:
    """Looks among points for one that breaks an image x (1, *shape), and keeps it."""

    def __init__(self, decider: _Decider, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
        self._decider, self._x, self._y, self._threat = decider, x, y, threat
        self.point: Tensor | None = None

    def __call__(self, points: Tensor) -> bool:
        """Whether any of some points (m, 1, *shape), put into the ball and the box, is
        misclassified."""
        x = self._x.expand(len(points), *self._x.shape[1:])
        near = self._threat.enforce(points[:, 0].to(x.dtype), x)
        broken = self._decider.breaks(near, self._y.expand(len(near)))
        if bool(broken.any()):
            self.point = near[broken][0].clone()
        return self.point is not None


Breaks = Callable[[Tensor], bool]


def proved(
    units: Units, rough: Graph, rows: Tensor, bounds: Tensor, deadline: float, breaks: Breaks
) -> tuple[Status, str]:
    """Whether rows (s, 1, outputs) times the outputs of a network are above 0 over the ball around
    one image, and what showed it; where `breaks` finds that a point is a counterexample, "broken".

    rough     the same network in the precision that proofs are looked for in.
    bounds    (s,), lower bounds of the rows that are known.
    deadline  of the monotonic clock.
    breaks    is given points (m, *shape) of the ball.
    """

    def is_over() -> bool:
        return time.monotonic() >= deadline

    if is_over():
        return "undecided", ""
    (sharp,), slopes = sharpened(units, rows[None], rough, is_over=is_over)
    sharp = torch.maximum(sharp, bounds)
    if bool((sharp > 0).all()):
        return "robust", "alpha-crown"
    search, now = Search(units, rows, sharp, rough, slopes), time.monotonic()
    first, then, last = (now + share * (deadline - now) for share in (_FIRST, _BOUNDED, _SEARCH))
    proven, solvable = search.run(first, breaks), False
    if proven is None:
        units = tightened(units, rough, _STEPS, lambda: time.monotonic() >= then)
        search.narrow(units)
        solvable = units.ball.norm == "linf" and is_small(units)
        proven = search.run(last if solvable else deadline, breaks)
    if proven is not None:
        return ("robust" if proven else "broken"), "branching"
    return _solved(units, rows, search.left(), deadline, breaks) if solvable else ("undecided", "")


def _solved(
    units: Units, rows: Tensor, left: Sequence[int], deadline: float, breaks: Breaks
) -> tuple[Status, str]:
    """What the solver says of some of the rows."""
    program = MixedProgram.of(units)
    low, high = units.ball.low[0], units.ball.high[0]
    status: Status = "robust"
    for row in left:
        excluded, variables = program.solve(
            -rows[row, 0].cpu().numpy(), deadline - time.monotonic()
        )
        if variables is not None:
            share = torch.from_numpy(variables[: low.numel()]).view_as(low).to(low)
            if breaks((low + share * (high - low))[None]):
                return "broken", "solver"
        if not excluded:
            status = "undecided"
    return status, "solver" if status == "robust" else ""
