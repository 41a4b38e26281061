"""Whether a row of the logits can be at least 0 over a ball, by mixed-integer programming.

It is done as by Tjeng et al. (2019), "Evaluating Robustness of Neural Networks with Mixed Integer
Programming", section 4, with a binary variable for each rectifier that may go either way. Differs
from the source: bounds come from CROWN instead of linear programs, and a program ends at its first
point instead of the nearest.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defenses.graphs.graph import Affine, Unary
from defenses.verification.lines import Units

Array = NDArray[np.float64]
Matrix = Any  # a scipy.sparse.csr_array: scipy is loaded only where one is made

# Any relative gap will do: the solver stops at its first point.
_FIRST = 1e9

# How many unit vectors pass a node at once, and how many entries the matrices of a graph may have
# that is still small enough for the solver.
_BLOCK, _LARGEST, _UNSTABLE = 256, 2**24, 300


def is_small(units: Units) -> bool:
    """Whether a network consists of what the solver knows, is small enough for its matrices, and
    has few enough rectifiers that may go either way over the ball around one image."""
    graph = units.graph
    if any(isinstance(node, Unary) and node.kind != "rectifier" for node in graph.nodes):
        return False
    if sum(int(line.unstable.sum()) for line in units.lines.values()) > _UNSTABLE:
        return False
    entries = (
        math.prod(node.shape) * sum(map(math.prod, node.input_shapes))
        for node in graph.nodes
        if isinstance(node, Affine)
    )
    return sum(entries) <= _LARGEST


@dataclass(frozen=True, eq=False)
class MixedProgram:
    """A network over a box: the variables v that fulfil least <= rows @ v <= most and
    low <= v <= 1, with integers where `integral` is 1, and its logits, weight @ v + offset.

    v holds the input, as fractions of the way through the box; then, node by node, the outputs of
    the unstable rectifiers, as fractions of their largest size, and a bit for each. So the solver's
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
    def of(cls, units: Units) -> "MixedProgram":
        """The program of a network over the L-infinity ball around one image."""
        return _Builder(units).program()

    def solve(self, row: Array, seconds: float) -> tuple[bool, Array | None]:
        """Whether row (classes,) times the logits >= 0 is shown to be impossible within so many
        seconds, up to the solver's tolerance of 1e-6; and the v that fulfils it, if one was
        found."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array, vstack

        if seconds <= 0:
            return False, None
        led = csr_array(row[None] @ self.weight)
        offset = float(row @ self.offset)
        size = max(float(abs(led).max()), np.finfo(float).tiny)
        led, offset = led / size, offset / size
        # A mere constraint would give points on the boundary, which rounding undoes; with the same
        # objective, the first point is usually well beyond it.
        result = milp(
            -led.toarray()[0],
            integrality=self.integral,
            bounds=Bounds(self.low, 1.0),
            constraints=LinearConstraint(
                vstack([self.rows, led]).tocsr(),
                np.append(self.least, -offset),
                np.append(self.most, np.inf),
            ),
            options={"time_limit": seconds, "mip_rel_gap": _FIRST},
        )
        return result.status == 2, result.x


class _Builder:
    """Writes the outputs of each node as a matrix times the variables and an offset."""

    def __init__(self, units: Units) -> None:
        from scipy.sparse import diags_array

        self._units = units
        low, high = (_flat(side) for side in (units.ball.low, units.ball.high))
        inputs = len(low)
        added = 2 * sum(int(line.unstable.sum()) for line in units.lines.values())
        self._unit = _identity(inputs + added)
        self._integral, self._floor = np.zeros(inputs + added), np.zeros(inputs + added)
        self._rows, self._least, self._most = [self._unit[:0]], [np.zeros(0)], [np.zeros(0)]
        self._outputs = {0: (diags_array(high - low) @ self._unit[:inputs], low)}
        self._start = inputs

    def program(self) -> MixedProgram:
        from scipy.sparse import vstack

        for number, node in enumerate(self._units.graph.nodes, 1):
            if isinstance(node, Affine):
                self._outputs[number] = self._affine(node)
            else:
                self._outputs[number] = self._rectified(number, node)
        weight, offset = self._outputs[len(self._units.graph.nodes)]
        return MixedProgram(
            vstack(self._rows).tocsr(), np.concatenate(self._least), np.concatenate(self._most),
            self._floor, self._integral, weight.tocsr(), offset,
        )  # fmt: skip

    def _affine(self, node: Affine) -> tuple[Matrix, Array]:
        weight, offset = None, node.offset.flatten().double().cpu().numpy()
        for number, matrix in zip(node.inputs, matrices(node), strict=True):
            before, constant = self._outputs[number]
            part = matrix @ before
            weight = part if weight is None else weight + part
            offset = offset + matrix @ constant
        return weight, offset

    def _rectified(self, number: int, node: Unary) -> tuple[Matrix, Array]:
        from scipy.sparse import csr_array, diags_array

        (before,) = node.inputs
        weight, offset = self._outputs[before]
        line = self._units.lines[number]
        low, high = _flat(line.low), _flat(line.high)
        slope = np.broadcast_to(
            torch.as_tensor(node.slope).double().expand(node.shape).flatten().numpy(), low.shape
        )
        unstable = line.unstable.flatten().cpu().numpy()
        # Each unstable unit has two variables, its output and a bit.
        places = np.flatnonzero(unstable)
        count, start = len(places), self._start
        output, bit = slice(start, start + count), slice(start + count, start + 2 * count)
        self._start += 2 * count
        size = np.maximum(-low[places], high[places])
        below, above = low[places] / size, high[places] / size
        bent_slope, unit = slope[places], self._unit
        self._floor[output], self._integral[bit] = bent_slope * below, 1
        # Together they say that the output is the larger of z and slope * z.
        z, z_offset = diags_array(1 / size) @ weight[places], offset[places] / size
        bent, bent_offset = diags_array(bent_slope) @ z, bent_slope * z_offset
        drop, rise = (1 - bent_slope) * below, (1 - bent_slope) * above
        endless = np.full(count, np.inf)
        self._rows += [
            unit[output] - z,  # output >= z
            unit[output] - bent,  # output >= slope * z
            unit[output] - z - diags_array(drop) @ unit[bit],  # output <= z if the bit is 1
            unit[output] - bent - diags_array(rise) @ unit[bit],  # <= slope * z if it is 0
        ]
        self._least += [z_offset, bent_offset, -endless, -endless]
        self._most += [endless, endless, z_offset - drop, bent_offset]
        # The output of the node: of stable units a multiple of z, of the others the variable.
        stable = np.where(unstable, 0.0, np.where(high > 0, 1.0, slope))
        columns = np.arange(output.start, output.stop)
        chosen = csr_array((size, (places, columns)), weight.shape)
        return diags_array(stable) @ weight + chosen, stable * offset


@lru_cache(maxsize=64)
def matrices(node: Affine) -> list[Matrix]:
    """The matrices (outputs, inputs) of an affine node, one for each of its inputs."""
    from scipy.sparse import csr_array, vstack

    outputs = math.prod(node.shape)
    parts: list[list[Matrix]] = [[] for _ in node.inputs]
    for places in torch.arange(outputs).split(_BLOCK):
        units = torch.nn.functional.one_hot(places, outputs).to(node.like)
        for part, rows in zip(parts, node.backward(units.view(-1, *node.shape)), strict=True):
            part.append(csr_array(rows.detach().flatten(1).double().cpu().numpy()))
    return [vstack(part).tocsr() for part in parts]


def _identity(size: int) -> Matrix:
    from scipy.sparse import csr_array, eye

    return csr_array(eye(size))


def _flat(tensor: Tensor) -> Array:
    flat: Array = tensor.detach().flatten().double().cpu().numpy()
    return flat
