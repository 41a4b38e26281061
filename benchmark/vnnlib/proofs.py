"""Proofs that a property has no counterexample, by bounds, branching and the exact solver."""

import copy
import math
import time
from collections.abc import Callable
from fractions import Fraction
from functools import reduce

import torch
from torch import Tensor, nn

from benchmark.vnnlib.boxes import Box
from benchmark.vnnlib.properties import Case, Row
from defenses.foreign.onnx_graphs.onnx_file import OnnxFile
from defenses.graphs.tracing import read_graph
from defenses.verification.balls import Ball
from defenses.verification.bounds import bound_units, lower_bounds
from defenses.verification.deciding import Network, Status, proved

Confirm = Callable[[Tensor], bool]

# Points on which what was read is compared with onnxruntime, and how far it may differ, as a part
# of the largest output.
_POINTS, _TOLERANCE = 8, 1e-3


class Prover:
    """A converted network in float64, as far as bounds can be propagated through it.

    Raises ValueError, in one line, for an operation that bounds cannot pass, and where what was
    read is not the function that onnxruntime computes.
    """

    def __init__(self, file: OnnxFile, network: nn.Module) -> None:
        self._network = copy.deepcopy(network).double()
        self._shape = tuple(file.input_shape)
        graph = read_graph(_Flat(self._network), self._shape)
        x = torch.rand(_POINTS, *self._shape, generator=torch.Generator().manual_seed(0))
        expected = file.run(x)[0].flatten(1).double()
        found = graph.forward(x.to(file.takes).double()[:, None])[-1][:, 0]
        if found.shape != expected.shape or not bool(
            (found - expected).abs().max() <= _TOLERANCE * expected.abs().max()
        ):
            raise ValueError("it was not read as the function that onnxruntime computes")

    def prove(
        self, box: Box, case: Case, start: Tensor | None, limit_s: float, confirm: Confirm
    ) -> Status:
        """Whether a case of a property has a counterexample, within so many seconds.

        start    a point (*shape) where it looks first.
        confirm  says whether a point (*shape), in the network's own units, is one.

        "robust" is a proof that there is none: it holds whatever rounding does in bounds, and up to
        the solver's tolerance of 1e-6 where only that shows it.
        """
        deadline = time.monotonic() + limit_s
        low, high = (
            torch.tensor([_outward(side, sign) for side in sides], dtype=torch.float64).view(
                self._shape
            )
            for sides, sign in (
                ([interval.lower for interval in box.intervals], -1),
                ([interval.upper for interval in box.intervals], 1),
            )
        )

        def breaks(shares: Tensor) -> bool:
            points = torch.lerp(low, high, shares[:, 0]).view(-1, *box.low.shape)
            return any(
                confirm(point.to(box.low.dtype).clamp(box.low, box.high)) for point in points
            )

        if start is not None and confirm(start):
            return "broken"
        graph, rough = Network.of(_Ways(self._network, low, high, case), self._shape)
        shares = torch.full((1, 1, *self._shape), 0.5, dtype=torch.float64)
        ball = Ball(shares, 0.5, "linf", torch.zeros_like(shares), torch.ones_like(shares))
        with torch.no_grad():
            units = bound_units(graph, ball)
            # No way to violate the property may hold anywhere.
            rows = -torch.eye(len(case.ways), dtype=torch.float64)[:, None]
            bounds = lower_bounds(units, len(graph.nodes), rows[None])[0]
        if bool((bounds > 0).all()):
            return "robust"
        return proved(units, rough, rows, bounds, deadline, breaks)[0]


def _outward(value: Fraction, sign: int) -> float:
    """The float64 nearest to a number that is not inside of it."""
    near = float(value)
    inside = sign * (Fraction(near) - value) < 0
    return math.nextafter(near, sign * math.inf) if inside else near


class _Flat(nn.Module):
    """A network whose outputs are flat."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).flatten(1)  # type: ignore[no-any-return]


class _Ways(nn.Module):
    """From shares (n, *shape) of the way through a box to how far each way to violate a property
    holds (n, ways): the least that any of its rows is below its bound."""

    low: Tensor
    width: Tensor

    def __init__(self, network: nn.Module, low: Tensor, high: Tensor, case: Case) -> None:
        super().__init__()
        self.network, self.case = _Flat(network), case
        self.register_buffer("low", low)
        self.register_buffer("width", high - low)

    def forward(self, shares: Tensor) -> Tensor:
        outputs = self.network(self.low + self.width * shares)
        ways = [
            reduce(torch.minimum, (_slack(row, outputs) for row in way)) for way in self.case.ways
        ]
        return torch.cat(ways, 1)


def _slack(row: Row, outputs: Tensor) -> Tensor:
    """By how much a row of outputs (n, m) is below its bound, (n, 1)."""
    weights = outputs.new_zeros(outputs.shape[1], 1)
    for output, weight in row.weights:
        weights[output] = float(weight)
    return float(row.bound) - outputs @ weights
