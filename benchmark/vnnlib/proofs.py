"""Proofs that a property has no counterexample, by the exact solver for small ReLU networks."""

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from attacks import ThreatModel
from benchmark.vnnlib.boxes import Box
from benchmark.vnnlib.properties import Case, Row
from defenses.foreign.onnx_graphs.onnx_file import OnnxFile
from defenses.verification.milp import ExactResult, exact

# Layers of converted networks that are affine in their one input that is no constant. Those of a
# division are by a constant.
_AFFINE = (
    "AvgPool1d", "AvgPool2d", "BatchNorm1d", "BatchNorm2d", "Conv1d", "Conv2d", "Dropout",
    "Flatten", "Identity", "Linear", "OnnxBinaryMathOperation", "OnnxFlatten", "OnnxGemm",
    "OnnxMatMul", "OnnxNeg", "OnnxReshape", "OnnxTranspose",
)  # fmt: skip

# Entries of the matrix of a layer, at most: far more is beyond the solver anyway.
_LARGEST = 2**25

# Unit vectors that are forwarded at once; and points on which what was read is compared with
# onnxruntime, and how far it may differ, as a part of the largest output.
_BLOCK, _POINTS, _TOLERANCE = 256, 8, 1e-3

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Chain:
    """A network as matrices (outputs, inputs) and offsets (outputs,) in float64, and what comes
    between them: the slope of each rectifier for what is below 0."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    slopes: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """The outputs (n, m) at inputs (n, d)."""
        for (weight, offset), slope in zip(self.layers, (*self.slopes, None), strict=True):
            x = x @ weight.T + offset
            x = x if slope is None else nn.functional.leaky_relu(x, slope)
        return x


def read_chain(file: OnnxFile, network: nn.Module) -> Chain:
    """Read a converted network that is a chain of affine layers and ReLU or leaky ReLU.

    Raises ValueError, in one line, for any other, and where what was read is not the function that
    onnxruntime computes.
    """
    inner = next((part for part in network.modules() if isinstance(part, fx.GraphModule)), None)
    if inner is None:
        raise ValueError("it is no graph of layers")
    layers: list[tuple[Tensor, Tensor]] = []
    slopes: list[float] = []
    segment: list[Apply] = []
    shape = file.input_shape
    for layer, apply in _steps(copy.deepcopy(inner).double()):
        if not isinstance(layer, nn.ReLU | nn.LeakyReLU):
            segment.append(apply)
            continue
        slope = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
        if not 0 <= slope <= 1:
            raise ValueError(f"it has a leaky ReLU of slope {slope:g}, which is not in [0, 1]")
        weight, offset, shape = _matrix(segment, shape)
        layers.append((weight, offset))
        slopes.append(slope)
        segment = []
    layers.append(_matrix(segment, shape)[:2])
    chain = Chain(tuple(layers), tuple(slopes))
    _check(chain, file)
    return chain


def prove(chain: Chain, box: Box, case: Case, start: Tensor | None, limit_s: float) -> ExactResult:
    """Ask the solver whether a case of a property has a counterexample, for so many seconds.

    start  a point (*shape) where it looks first; None: the middle of the box.

    "robust" is a proof, up to the tolerances of `exact`, that there is none. The point of "broken"
    is in the network's own units. Raises ValueError as `exact` does.
    """
    low = torch.tensor([float(interval.lower) for interval in box.intervals], dtype=torch.float64)
    high = torch.tensor([float(interval.upper) for interval in box.intervals], dtype=torch.float64)
    width = high - low
    # From shares of the way through the box to the logits 0 and the slack of each way.
    layers, slopes = list(chain.layers), list(chain.slopes)
    weight, offset = layers[0]
    layers[0] = weight * width, weight @ low + offset
    weight, offset = layers.pop()
    rows, bounds = _slacks(case.ways, len(offset))
    layers.append((rows @ weight, rows @ offset + bounds))
    modules: list[nn.Module] = []
    for layer, slope in zip(layers, (*slopes, None), strict=True):
        modules += [_linear(*layer)] if slope is None else [_linear(*layer), nn.LeakyReLU(slope)]
    modules += _knockouts([len(way) for way in case.ways])
    shares = torch.full_like(low, 0.5)
    if start is not None:
        shares = ((start.double().flatten() - low) / width).nan_to_num(0, 0, 0).clamp(0, 1)
    # The ball around the start is the whole box.
    label, threat = torch.zeros(1, dtype=torch.long), ThreatModel("linf", 1.0)
    result = next(exact(nn.Sequential(*modules), shares[None], label, threat, limit_s))
    if result.point is None:
        return result
    point = torch.lerp(low, high, result.point).view_as(box.low).to(box.low.dtype)
    return ExactResult(result.status, point.clamp(box.low, box.high), result.seconds)


def _steps(network: fx.GraphModule) -> Iterator[tuple[nn.Module, Apply]]:
    """The layers of a chain, each with what it does to what the one before gives."""
    current: fx.Node | None = None
    constants: dict[fx.Node, Tensor] = {}
    for node in network.graph.nodes:
        if node.op == "placeholder":
            current = node
        elif node.op == "get_attr":
            constants[node] = operator.attrgetter(node.target)(network)
        elif node.op == "call_module":
            layer = network.get_submodule(node.target)
            kind = type(layer).__name__
            if kind == "OnnxConstant":
                constants[node] = layer()
                continue
            inputs = [constants.get(value, value) for value in node.args]
            known = isinstance(layer, nn.ReLU | nn.LeakyReLU) or kind in _AFFINE
            if not known or node.kwargs or _divides(layer, inputs, current):
                raise ValueError(f"its layer {node.name} ({kind}) is not supported")
            others = [value for value in inputs if value is not current]
            if len(others) + 1 != len(inputs) or any(isinstance(o, fx.Node) for o in others):
                raise ValueError(f"it is no plain chain of layers: see {node.name}")
            yield layer, _applied(layer, inputs, inputs.index(current))
            current = node
        elif node.op != "output" or node.args[0] is not current:
            raise ValueError(f"it is no plain chain of layers: see {node.name}")


def _divides(layer: nn.Module, inputs: Sequence[object], current: fx.Node | None) -> bool:
    """Whether a layer divides by what is no constant."""
    function = getattr(getattr(layer, "math_op_function", None), "__name__", "")
    return "div" in function and inputs[1] is current


def _applied(layer: nn.Module, inputs: list[object], place: int) -> Apply:
    return lambda x: layer(*inputs[:place], x, *inputs[place + 1 :])


@torch.no_grad()
def _matrix(
    segment: Sequence[Apply], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """The matrix (outputs, inputs), the offset (outputs,) and the output shape of affine layers."""

    def forward(x: Tensor) -> Tensor:
        for apply in segment:
            x = apply(x)
        return x

    inputs = torch.Size(shape).numel()
    try:
        zero = forward(torch.zeros(1, *shape, dtype=torch.float64))
        if zero.numel() * inputs > _LARGEST:
            raise ValueError("it is too large")
        columns = []
        for places in torch.arange(inputs).split(_BLOCK):
            units = nn.functional.one_hot(places, inputs).double().view(-1, *shape)
            columns.append((forward(units) - zero).flatten(1))
    except RuntimeError as error:
        raise ValueError(
            f"its layers do not run in float64: {str(error).splitlines()[0]}"
        ) from error
    return torch.cat(columns).T, zero.flatten(), tuple(zero.shape[1:])


def _check(chain: Chain, file: OnnxFile) -> None:
    """Compare what was read with onnxruntime on random images."""
    x = torch.rand(_POINTS, *file.input_shape, generator=torch.Generator().manual_seed(0))
    expected = file.run(x)[0].flatten(1).double()
    found = chain(x.to(file.takes).double().flatten(1))
    if found.shape != expected.shape or not bool(
        (found - expected).abs().max() <= _TOLERANCE * expected.abs().max()
    ):
        raise ValueError("it was not read as the function that onnxruntime computes")


def _slacks(ways: Sequence[Sequence[Row]], outputs: int) -> tuple[Tensor, Tensor]:
    """The matrix (k, outputs) and offset (k,) that give 0 and, row by row, by how much outputs are
    below the bound."""
    rows = [row for way in ways for row in way]
    weight = torch.zeros(1 + len(rows), outputs, dtype=torch.float64)
    for place, row in enumerate(rows, 1):
        for output, factor in row.weights:
            weight[place, output] = -float(factor)
    return weight, torch.tensor([0.0, *(float(row.bound) for row in rows)], dtype=torch.float64)


def _knockouts(counts: Sequence[int]) -> list[nn.Module]:
    """Layers from 0 and groups of numbers to 0 and the least of each group, round by round: the
    lesser of a and b is a - ReLU(a - b), and a itself is ReLU(a) - ReLU(-a)."""
    modules: list[nn.Module] = []
    while max(counts) > 1:
        unit = torch.eye(1 + sum(counts), dtype=torch.float64)
        before: list[Tensor] = []
        after: list[list[int]] = [[]]  # the signed units, from 1, that make each number
        place = 1
        for count in counts:
            for first in range(place, place + count, 2):
                before += [unit[first], -unit[first]]
                after.append([len(before) - 1, -len(before)])
                if first + 1 < place + count:
                    before.append(unit[first] - unit[first + 1])
                    after[-1].append(-len(before))
            place += count
        added = torch.zeros(len(after), len(before), dtype=torch.float64)
        for number, units in enumerate(after):
            for signed in units:
                added[number, abs(signed) - 1] = 1 if signed > 0 else -1
        zero = torch.zeros(len(before) + len(after), dtype=torch.float64)
        modules += [_linear(torch.stack(before), zero[: len(before)]), nn.ReLU()]
        modules.append(_linear(added, zero[: len(after)]))
        counts = [(count + 1) // 2 for count in counts]
    return modules


def _linear(weight: Tensor, offset: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=True, device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(offset)
    return layer
