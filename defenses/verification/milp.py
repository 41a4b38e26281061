"""Exact L-infinity robustness of small piecewise-linear networks, by mixed-integer programming."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from attacks import ThreatModel
from attacks.objectives import decided
from defenses.verification.piecewise import Array, Matrix, PiecewiseLinear, identity, read_network
from defenses.verification.relaxation import Lines, bound_units, upper_bounds

Status = Literal["robust", "broken", "undecided"]

# Any relative gap will do: the solver stops at its first point.
_FIRST = 1e9


@dataclass(frozen=True, eq=False)
class ExactResult:
    """What was found out about one sample.

    status   "robust": no point of the ball and the box gives another class a logit at least as
             large as the label's. "broken": `point` is misclassified. "undecided": time ran out, or
             it is so close to a tie that neither could be shown.
    point    (*shape), in the image's precision and exactly in the ball and the box; None unless
             broken.
    seconds  how long it took.
    """

    status: Status
    point: Tensor | None
    seconds: float


def exact(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, limit_s: float = 60.0
) -> Iterator[ExactResult]:
    """Decide images x (n, *shape) with labels y (n,), one by one, each within `limit_s` seconds.

    It is done as by Tjeng et al. (2019), "Evaluating Robustness of Neural Networks with Mixed
    Integer Programming", section 4: for each class that the bounds do not exclude there is one
    program, with a binary variable for each ReLU that may go either way.

    "robust" holds in float64 and up to the solver's tolerance, 1e-6 of the most that a unit's input
    can be. "broken" does not rest on the solver: the model itself misclassifies the point, in its
    own precision and in float64, by more than rounding (`attacks.objectives.decided`). The limit is
    the solver's, which may overrun it a little.

    Differs from the source: a sample's bounds come from CROWN instead of linear programs, the
    corners that attain them are tried as points before any program, and a program ends at its first
    point instead of the nearest.

    Raises ValueError, in one line, for another norm, images out of the box, a negative limit, and
    layers that `read_network` does not know.
    """
    if threat.norm != "linf":
        raise ValueError(f"exact: only linf is supported, not {threat.norm}")
    if not limit_s >= 0:
        raise ValueError(f"exact: the limit must be at least 0 seconds, not {limit_s}")
    x, y = x.detach().cpu(), y.cpu()
    if not torch.equal(x, threat.clamp(x)):
        raise ValueError(f"exact: images lie out of the box [{threat.lower}, {threat.upper}]")
    network = read_network(model, tuple(x.shape[1:]))
    copies = copy.deepcopy(model).cpu().eval(), copy.deepcopy(model).cpu().double().eval()
    return (
        _Sample(network, copies, image[None], label[None], threat).decide(limit_s)
        for image, label in zip(x, y, strict=True)
    )


@dataclass(frozen=True, eq=False)
class _Sample:
    """One image x (1, *shape) and its label y (1,), the network, and the model in two precisions:
    its own and float64."""

    network: PiecewiseLinear
    models: tuple[nn.Module, nn.Module]
    x: Tensor
    y: Tensor
    threat: ThreatModel

    def decide(self, limit_s: float) -> ExactResult:
        start = time.monotonic()
        status, point = self._search(start + limit_s)
        return ExactResult(status, point, time.monotonic() - start)

    def _search(self, deadline: float) -> tuple[Status, Tensor | None]:
        # The image itself may be misclassified.
        clean = self.x.double().numpy().reshape(1, -1)
        if (point := self._breaking(clean)) is not None:
            return "broken", point
        if time.monotonic() >= deadline:
            return "undecided", None
        # Bounds on the leads of the other classes may exclude them all, or be attained where one is
        # broken.
        low = np.maximum(clean[0] - self.threat.eps, self.threat.lower)
        high = np.minimum(clean[0] + self.threat.eps, self.threat.upper)
        lines = bound_units(self.network, low, high)
        leads, bias = _leads(self.network.weight.toarray(), self.network.bias, int(self.y))
        most, corners = upper_bounds(self.network, lines, leads, bias, low, high)
        # The most promising class first.
        order = [int(j) for j in np.argsort(-most) if not most[j] < 0]
        if not order:
            return "robust", None
        if (point := self._breaking(corners[order])) is not None:
            return "broken", point
        # A program for each class that is left.
        program = _Program.of(self.network, lines, low, high)
        rows, offsets = _leads(program.weight, program.offset, int(self.y))
        status: Status = "robust"
        for j in order:
            excluded, variables = program.solve(rows[[j]], offsets[j], deadline - time.monotonic())
            if variables is not None:
                points = low + variables[None, : len(low)] * (high - low)
                if (point := self._breaking(points)) is not None:
                    return "broken", point
            if not excluded:
                status = "undecided"
        return status, None

    @torch.no_grad()
    def _breaking(self, points: Array) -> Tensor | None:
        """The first of some points (m, inputs), put into the ball and the box, that is
        misclassified; None if none is."""
        x = self.x.expand(len(points), *self.x.shape[1:])
        near = torch.from_numpy(points).to(x.dtype).view(x.shape)
        near = self.threat.enforce(near, x)
        y = self.y.expand(len(points))
        broken = decided(self.models[0](near), y) & decided(self.models[1](near.double()), y)
        return near[broken][0].clone() if broken.any() else None


def _leads(logits: Matrix, bias: Array, label: int) -> tuple[Matrix, Array]:
    """By how much each other class's logit is above the label's, as rows and biases, given those of
    all logits."""
    others = [j for j in range(len(bias)) if j != label]
    labels = [label] * len(others)
    return logits[others] - logits[labels], bias[others] - bias[labels]


@dataclass(frozen=True, eq=False)
class _Program:
    """The network over a box: the variables v that fulfil least <= rows @ v <= most and
    low <= v <= 1, with integers where `integral` is 1, and its logits, weight @ v + offset.

    v holds the input, as fractions of the way through the box; then, layer by layer, the outputs of
    the unstable units, as fractions of their largest size, and a bit for each. So the solver's
    tolerance is relative, and the sizes of weights and eps do not matter to it.
    """

    rows: Matrix
    least: Array
    most: Array
    low: Array
    integral: Array
    weight: Matrix
    offset: Array

    @classmethod
    def of(
        cls, network: PiecewiseLinear, lines: Sequence[Lines], low: Array, high: Array
    ) -> "_Program":
        """The program of a network whose units have these lines where the flattened input lies in
        [low, high]."""
        from scipy.sparse import csr_array, diags_array, vstack

        inputs = len(low)
        added = 2 * sum(int(line.unstable.sum()) for line in lines)
        unit, integral = identity(inputs + added), np.zeros(inputs + added)
        floor = np.zeros(inputs + added)
        rows, least, most = [unit[:0]], [np.zeros(0)], [np.zeros(0)]
        # The output of the current layer, as an expression in the variables.
        weight, offset = diags_array(high - low) @ unit[:inputs], low
        start = inputs
        for layer, line in zip(network.layers, lines, strict=True):
            weight, offset = layer.weight @ weight, layer.weight @ offset + layer.bias
            # Each unstable unit has two variables, its output and a bit.
            places = np.flatnonzero(line.unstable)
            count = len(places)
            output, bit = slice(start, start + count), slice(start + count, start + 2 * count)
            start += 2 * count
            size = np.maximum(-line.low[places], line.high[places])
            below, above = line.low[places] / size, line.high[places] / size
            slope = layer.slope[places]
            floor[output], integral[bit] = slope * below, 1
            # Together they say that the output is the larger of z and slope * z.
            z, z_offset = diags_array(1 / size) @ weight[places], offset[places] / size
            bent, bent_offset = diags_array(slope) @ z, slope * z_offset
            drop, rise, endless = (1 - slope) * below, (1 - slope) * above, np.full(count, np.inf)
            rows += [
                unit[output] - z,  # output >= z
                unit[output] - bent,  # output >= slope * z
                unit[output] - z - diags_array(drop) @ unit[bit],  # output <= z if the bit is 1
                unit[output] - bent - diags_array(rise) @ unit[bit],  # <= slope * z if it is 0
            ]
            least += [z_offset, bent_offset, -endless, -endless]
            most += [endless, endless, z_offset - drop, bent_offset]
            # The output of the layer: of stable units a multiple of z, of the others the variable.
            stable = np.where(line.unstable, 0.0, line.upper)
            columns = np.arange(output.start, output.stop)
            chosen = csr_array((size, (places, columns)), weight.shape)
            weight, offset = diags_array(stable) @ weight + chosen, stable * offset
        return cls(
            vstack(rows).tocsr(),
            np.concatenate(least),
            np.concatenate(most),
            floor,
            integral,
            (network.weight @ weight).tocsr(),
            network.weight @ offset + network.bias,
        )

    def solve(self, row: Matrix, offset: float, seconds: float) -> tuple[bool, Array | None]:
        """Whether row (1, variables) @ v + offset >= 0 is shown to be impossible within so many
        seconds; and the v that fulfils it, if one was found."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import vstack

        if seconds <= 0:
            return False, None
        size = max(float(abs(row).max()), np.finfo(float).tiny)
        row, offset = row / size, offset / size
        # A mere constraint would give points on the boundary, which rounding undoes; with the same
        # objective, the first point is usually well beyond it.
        result = milp(
            -row.toarray()[0],
            integrality=self.integral,
            bounds=Bounds(self.low, 1.0),
            constraints=LinearConstraint(
                vstack([self.rows, row]).tocsr(),
                np.append(self.least, -offset),
                np.append(self.most, np.inf),
            ),
            options={"time_limit": seconds, "mip_rel_gap": _FIRST},
        )
        return result.status == 2, result.x
