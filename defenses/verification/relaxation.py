"""Sound bounds on the units of a piecewise-linear network over a box of inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defenses.verification.piecewise import Array, Layer, PiecewiseLinear


@dataclass(frozen=True, eq=False)
class Lines:
    """Bounds on one layer's units over the box: low <= z <= high, and two lines that enclose the
    output, lower * z <= max(z, slope * z) <= upper * z + offset. The lines coincide for units that
    are not `unstable`.
    """

    low: Array
    high: Array
    unstable: NDArray[np.bool_]
    lower: Array
    upper: Array
    offset: Array


def bound_units(network: PiecewiseLinear, low: Array, high: Array) -> list[Lines]:
    """Bound every layer's units where the flattened input lies in [low, high].

    Intervals come first; then, for units that these leave unstable, CROWN (Zhang et al. 2018,
    "Efficient Neural Network Robustness Certification with General Activation Functions", section
    3).
    """
    lines: list[Lines] = []
    below, above = low, high
    for layer in network.layers:
        centre = layer.weight @ ((below + above) / 2) + layer.bias
        radius = abs(layer.weight) @ ((above - below) / 2)
        least, most = centre - radius, centre + radius
        loose = np.flatnonzero((least < 0) & (most > 0) & (layer.slope < 1))
        if lines and len(loose):
            rows, bias = layer.weight[loose].toarray(), layer.bias[loose]
            rows, bias = np.concatenate([rows, -rows]), np.concatenate([bias, -bias])
            both, _ = upper_bounds(network, lines, rows, bias, low, high)
            most[loose] = np.minimum(most[loose], both[: len(loose)])
            least[loose] = np.maximum(least[loose], -both[len(loose) :])
        lines.append(_lines(layer, least, most))
        below, above = np.maximum(least, layer.slope * least), np.maximum(most, layer.slope * most)
    return lines


def upper_bounds(
    network: PiecewiseLinear,
    lines: Sequence[Lines],
    rows: Array,
    bias: Array,
    low: Array,
    high: Array,
) -> tuple[Array, Array]:
    """Upper bounds (m,) of rows @ output + bias, with rows (m, units), for the output of the last
    layer that `lines` has; and the corners of the box (m, inputs) at which they are attained."""
    passed = network.layers[: len(lines)]
    for layer, line in zip(reversed(passed), reversed(lines), strict=True):
        plus, minus = np.maximum(rows, 0), np.minimum(rows, 0)
        rows = plus * line.upper + minus * line.lower
        bias = bias + plus @ line.offset + rows @ layer.bias
        rows = rows @ layer.weight
    corners = np.where(rows > 0, high, low)
    return (rows * corners).sum(1) + bias, corners


def _lines(layer: Layer, low: Array, high: Array) -> Lines:
    """The lines of a layer whose units lie between low and high (units,)."""
    unstable = (low < 0) & (high > 0) & (layer.slope < 1)
    exact = np.where(high > 0, 1.0, layer.slope)
    width = np.where(unstable, high - low, 1.0)
    upper = np.where(unstable, (high - layer.slope * low) / width, exact)
    # The line through 0 that leaves the smaller area.
    lower = np.where(unstable & (high <= -low), layer.slope, exact)
    return Lines(low, high, unstable, lower, upper, np.where(unstable, (1 - upper) * high, 0.0))
