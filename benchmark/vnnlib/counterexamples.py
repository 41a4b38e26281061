"""The search for counterexamples to a property, by `strong`, and what confirms them."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from attacks import Problem, ThreatModel
from attacks.objectives import CLEAR
from attacks.strong import Strong
from benchmark.vnnlib.boxes import Box
from benchmark.vnnlib.properties import Case
from defenses.foreign.onnx_graphs.onnx_file import OnnxFile

# How often a search begins again, further from ties, where onnxruntime does not confirm its point.
_TRIES = 3

# How many random points of a box are attacked too, and how many inputs they have together, at most.
_STARTS, _STARTED = 64, 2048


@dataclass(frozen=True, eq=False)
class Counterexample:
    """A point (*shape) that a network is given, and as text its numbers and those of the outputs
    there."""

    point: Tensor
    inputs: Sequence[str]
    outputs: Sequence[str]

    def text(self) -> str:
        """The counterexample as the competition has it: ((X_0 0.5) ... (Y_0 -1.25))."""
        named = [f"(X_{i} {value})" for i, value in enumerate(self.inputs)]
        named += [f"(Y_{j} {value})" for j, value in enumerate(self.outputs)]
        return "(" + "\n ".join(named) + ")"


class CaseSearch:
    """The search for a counterexample in one case of a property.

    It is a problem of one image under L-infinity. The image is the middle of the box, in shares of
    the way through it, so that the ball is the box. The label's logit is 0; that of each other
    class is by how much one of the ways to violate the property holds (see `Slacks`).
    """

    def __init__(self, file: OnnxFile, network: nn.Module, case: Case) -> None:
        self.case = case
        self.box = Box.of(case.box, file.input_shape, file.takes)
        self._file, self._network = file, network

    def run(self, quick: bool, seed: int, deadline: float) -> Counterexample | None:
        """Attack until `deadline`, of the monotonic clock, or `quick`ly; a counterexample that
        onnxruntime confirms, or None."""
        if self.box.is_point or self.case.is_trivial:
            return self.confirm(self.box.middle)
        slacks = Slacks(self._network, self.box, self.case)
        for attempt in range(_TRIES):
            best = _Best(slacks, deadline)
            with suppress(_OverError):
                self._attack(slacks, quick, seed ^ attempt, best)
            if best.point is None:
                return None
            confirmed = self.confirm(best.point)
            if confirmed or best.value <= 0:
                return confirmed
            if not slacks.demand_more(self._outputs(best.point), best.point):
                return None
        return None

    def _attack(self, slacks: "Slacks", quick: bool, seed: int, best: "_Best") -> None:
        """Attack the middle; and where there are few inputs, which is cheap and may have many local
        optima, random points for which the ball is the whole box too."""
        middle = torch.full_like(self.box.low, 0.5)[None]
        ball = ThreatModel("linf", 0.5)
        Strong(quick=quick)(Problem(slacks, middle, _labels(1), ball, seed=seed, meter=best))
        count = min(_STARTS, _STARTED // middle.numel())
        if not quick and count:
            x = middle.repeat(count, *[1] * self.box.low.dim())
            x = ball.random_start(x, seed, torch.arange(count), stream=0)
            ball = ThreatModel("linf", 1.0)
            Strong()(Problem(slacks, x, _labels(count), ball, seed=seed, meter=best))

    def confirm(self, point: Tensor) -> Counterexample | None:
        """The counterexample at a point of the box (*shape), if onnxruntime gives outputs there, in
        the file's own precision, that make it one."""
        inputs = self.box.texts(point)
        outputs = self._outputs(point).tolist()
        if inputs is None or not all(math.isfinite(value) for value in outputs):
            return None
        texts = [repr(value) for value in outputs]
        # Also as they are written, which decides a tie.
        for of_each in (outputs, texts):
            if not self.case.holds([Fraction(value) for value in of_each]):
                return None
        return Counterexample(point, inputs, texts)

    def _outputs(self, point: Tensor) -> Tensor:
        return self._file.run(point[None])[0].flatten().double()


class Slacks(nn.Module):
    """From shares of the way through the box of a case (n, *shape) to logits (n, 1 + ways): 0, and
    for each way to violate the property the least that any of its rows is below its bound.

    What rounding may take away is taken off first, so that a positive slack is a counterexample.
    `points` (n, *shape) are those of the last call, in the network's own units.
    """

    points: Tensor

    def __init__(self, network: nn.Module, box: Box, case: Case) -> None:
        super().__init__()
        self.network, self.box = network, box
        with torch.no_grad():
            outputs = self._network(box.middle[None])
        # The rows of all ways, one below the other.
        rows = [row for way in case.ways for row in way]
        count = outputs.shape[1]
        self.weight = torch.zeros(len(rows), count, dtype=outputs.dtype)
        for place, row in enumerate(rows):
            for output, weight in row.weights:
                self.weight[place, output] = float(weight)
        bounds = [float(row.bound) for row in rows]
        self.bound = torch.tensor(bounds, dtype=outputs.dtype)
        size = outputs[0].abs() @ self.weight.abs().T + self.bound.abs()
        self.clearance = CLEAR * size
        # The places of the rows of each way; where it has fewer than others, one of them again.
        most, place = max(len(way) for way in case.ways), 0
        places = []
        for way in case.ways:
            places.append([place + min(i, len(way) - 1) for i in range(most)])
            place += len(way)
        self.places = torch.tensor(places, dtype=torch.long)

    def forward(self, shares: Tensor) -> Tensor:
        self.points = self.box.place(shares)
        outputs = self._network(self.points)
        slacks = self.bound - self.clearance - outputs @ self.weight.T
        least = slacks[:, self.places].amin(2)
        return torch.cat([least.new_zeros(len(least), 1), least], 1)

    def demand_more(self, outputs: Tensor, point: Tensor) -> bool:
        """Take off twice as much as the outputs (m,) of another computation of the network differ
        at a point (*shape); whether that is more than before."""
        with torch.no_grad():
            own = self._network(point[None])[0]
        off = (own.double() - outputs).abs().to(own.dtype) @ self.weight.abs().T
        if not bool((2 * off > self.clearance).any()):
            return False
        self.clearance = torch.maximum(self.clearance, 2 * off)
        return True

    def _network(self, points: Tensor) -> Tensor:
        outputs: Tensor = self.network(points)
        return outputs.flatten(1).to(self.box.low.dtype)


class _OverError(Exception):
    """A point was found, or the deadline has passed."""


class _Best:
    """A meter that keeps the point of the largest slack, and ends the search where that is above 0
    or its deadline has passed."""

    def __init__(self, slacks: Slacks, deadline: float) -> None:
        self._slacks, self._deadline = slacks, deadline
        self.value = -math.inf
        self.point: Tensor | None = None

    def __call__(self, rows: Tensor, logits: Tensor) -> None:
        del rows
        values = logits.detach()[:, 1:].amax(1).nan_to_num(-math.inf)
        value, place = values.max(0)
        if float(value) > self.value:
            self.value = float(value)
            self.point = self._slacks.points[place].detach().clone()
        if self.value > 0 or time.monotonic() > self._deadline:
            raise _OverError


def _labels(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.long)
