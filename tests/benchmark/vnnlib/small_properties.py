"""Tiny networks as ONNX files, properties of them, and how counterexamples are read back."""

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defenses.foreign.extras import installed

# Not by importing them: onnx2torch would import torchvision, which takes seconds.
NEEDS_ONNX = pytest.mark.skipif(
    not all(map(installed, ("onnx", "onnx2torch", "onnxruntime"))),
    reason="needs onnx, onnx2torch and onnxruntime",
)

Layer = tuple[Sequence[Sequence[float]], Sequence[float]]

# Two inputs, two outputs: their sum, and their difference.
SUM_AND_DIFFERENCE: Layer = [[1, 1], [1, -1]], [0, 0]


def write_network(path: Path, layers: Sequence[Layer], dtype: Any = np.float32) -> Path:
    """A file of linear layers, weight (outputs, inputs) and bias, with ReLU between them."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    kind = {np.float32: TensorProto.FLOAT, np.float64: TensorProto.DOUBLE}[dtype]
    nodes, constants, name = [], [], "x"
    for place, layer in enumerate(layers):
        for letter, values in zip("wb", layer, strict=True):
            array = np.array(values, dtype)
            constants.append(numpy_helper.from_array(array, f"{letter}{place}"))
        if place:
            nodes.append(helper.make_node("Relu", [name], [f"r{place}"]))
            name = f"r{place}"
        inputs = [name, f"w{place}", f"b{place}"]
        name = f"z{place}"
        nodes.append(helper.make_node("Gemm", inputs, [name], transB=1))
    sizes = len(layers[0][0][0]), len(layers[-1][1])
    ends = [
        helper.make_tensor_value_info(end, kind, ["n", size])
        for end, size in zip(("x", name), sizes, strict=True)
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    checker.check_model(model)
    save(model, str(path))
    return path


def property_text(box: Sequence[tuple[str, str]], outputs: int, *asserts: str) -> str:
    """The text of a property: the bounds of the inputs, and what is asserted besides."""
    lines = [f"(declare-const X_{i} Real)" for i in range(len(box))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    for i, (low, high) in enumerate(box):
        lines += [f"(assert (>= X_{i} {low}))", f"(assert (<= X_{i} {high}))"]
    return "\n".join([*lines, *(f"(assert {formula})" for formula in asserts), ""])


def write_property(path: Path, box: Sequence[tuple[str, str]], outputs: int, *asserts: str) -> Path:
    path.write_text(property_text(box, outputs, *asserts))
    return path


def read_back(text: str) -> tuple[list[str], list[str]]:
    """The inputs and outputs of a counterexample in the competition's format."""
    verdict, _, model = text.partition("\n")
    assert verdict == "sat"
    assert re.fullmatch(r"\((\([XY]_\d+ \S+\)\s*)+\)\s*", model)
    pairs = re.findall(r"\(([XY])_(\d+) ([^\s()]+)\)", model)
    values = {kind: [value for of, _, value in pairs if of == kind] for kind in "XY"}
    for kind in "XY":
        assert [int(i) for of, i, _ in pairs if of == kind] == list(range(len(values[kind])))
    return values["X"], values["Y"]


def replayed(network: Path, inputs: Sequence[str], dtype: Any = np.float32) -> list[float]:
    """What onnxruntime gives for inputs that are written so."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    (shape,) = (value.shape[1:] for value in session.get_inputs())
    x = np.array([[dtype(value) for value in inputs]], dtype).reshape(1, *shape)
    found: list[float] = session.run(None, {session.get_inputs()[0].name: x})[0].ravel().tolist()
    return found


def assert_in_box(inputs: Sequence[str], box: Sequence[tuple[str, str]]) -> None:
    for value, (low, high) in zip(inputs, box, strict=True):
        assert Fraction(low) <= Fraction(value) <= Fraction(high)
