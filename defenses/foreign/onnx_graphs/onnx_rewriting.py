"""ONNX graphs rewritten so that a converter of earlier operator sets understands them, and so that
they take any number of images."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defenses.foreign.onnx_graphs.onnx_operators import DOMAIN, OURS

# What ONNX calls its own domain.
_DOMAINS = ("", "ai.onnx")

# Operators of which onnx2torch wants to know the shape of the input.
_SHAPED = (
    "AveragePool", "MaxPool", "BatchNormalization", "InstanceNormalization", "LayerNormalization",
)  # fmt: skip

# How deep functions are made of functions.
_DEPTH = 6


def understood(model: Any) -> Any:
    """A network as onnx2torch understands it, which knows few operators from opset 18 on.

    Functions become what they are made of. Defaults that were added are left out, and the converter
    of an operator's older version takes a newer one that differs in nothing else.
    """
    from onnx import helper, inliner

    model = inliner.inline_local_functions(model)
    opset = _opset(model)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    for _ in range(_DEPTH):
        _simplify(model, opset)
        unknown = {node.op_type for node in _own(model) if not _is_known(node, opset)}
        functions = [name for name in sorted(unknown) if _is_function(name, opset)]
        if not functions:
            break
        model = inliner.inline_selected_functions(
            model, [("", name) for name in functions], inline_schema_functions=True
        )
    _add_shapes(model)
    for node in _own(model):
        if node.op_type in OURS:
            node.domain = DOMAIN
    return model


def without_batch(model: Any, count: int) -> Any:
    """A network that was exported for `count` images with a free number of them: where constant
    shapes begin with it, they get 0, which copies the number that there is, and inputs and outputs
    lose theirs."""
    import onnx

    free = onnx.ModelProto()
    free.CopyFrom(model)
    for value in (*free.graph.input, *free.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "n"
    for value in free.graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value == count:
                dim.dim_param = "n"
    shapes = {node.input[1] for node in free.graph.node if node.op_type == "Reshape"}
    for name, tensor in _constants(free).items():
        if name in shapes:
            _replace(tensor, lambda shape: _freed(shape, count))
    return free


def _freed(shape: NDArray[Any], count: int) -> NDArray[Any]:
    if shape.ndim == 1 and len(shape) > 1 and shape[0] == count:
        shape[0] = 0
    return shape


def _simplify(model: Any, opset: int) -> None:
    """Leave out attributes that say what an older version did."""
    from onnx import numpy_helper

    constants = _constants(model)
    for node in _own(model):
        older = _older(node.op_type, opset)
        schema = _schema(node.op_type, opset)
        if older is None or schema is None:
            continue
        known = older.attributes
        for attribute in list(node.attribute):
            if node.op_type == "Reshape" and attribute.name == "allowzero":
                shape = constants.get(node.input[1])
                if shape is not None and numpy_helper.to_array(shape).all():
                    attribute.i = 0
            if attribute.name not in known and _is_default(attribute, schema):
                node.attribute.remove(attribute)


def _add_shapes(model: Any) -> None:
    """Add the shapes of values that ONNX's inference does not find: onnx2torch asks for them where
    it pools and normalises. They are those of a run on two images, or as many as it takes."""
    from onnx import helper, shape_inference

    known = shape_inference.infer_shapes(model, data_prop=True).graph
    ranked = {
        value.name for value in (*known.value_info, *known.input, *known.output)
        if value.type.tensor_type.HasField("shape")
    }  # fmt: skip
    constants = {tensor.name for tensor in model.graph.initializer}
    wanted = {node.input[0] for node in _own(model) if node.op_type in _SHAPED}
    if wanted <= ranked | constants:
        return
    for name, kind, shape in _run(model):
        model.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))


def _run(model: Any) -> Iterator[tuple[str, int, list[int | str]]]:
    """The name, the type and the shape of each value in a run; sizes that follow the number of
    images are called n."""
    import onnx
    import onnxruntime
    from onnx import helper

    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    there = {value.name for value in whole.graph.output}
    for name in dict.fromkeys(name for node in whole.graph.node for name in node.output if name):
        if name not in there:
            whole.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        whole.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    images = session.get_inputs()[0]
    names = [output.name for output in session.get_outputs()]
    dtype = helper.tensor_dtype_to_np_dtype(
        next(
            value for value in model.graph.input if value.name == images.name
        ).type.tensor_type.elem_type
    )
    runs = []
    for count in (2, 3) if not isinstance(images.shape[0], int) else (images.shape[0],):
        x = np.zeros([count, *images.shape[1:]], dtype)
        runs.append(session.run(names, {images.name: x}))
    for name, first, last in zip(names, runs[0], runs[-1], strict=True):
        if isinstance(first, np.ndarray):
            sizes = zip(first.shape, last.shape, strict=True)
            shape: list[int | str] = [one if one == other else "n" for one, other in sizes]
            yield name, helper.np_dtype_to_tensor_dtype(first.dtype), shape


def _is_default(attribute: Any, schema: Any) -> bool:
    """Whether an attribute says what an operator does without it."""
    if attribute.name == "dilations":
        return set(attribute.ints) == {1}
    declared = schema.attributes.get(attribute.name)
    if declared is None:
        return False
    given: bool = attribute.SerializeToString() == declared.default_value.SerializeToString()
    return given


def _is_known(node: Any, opset: int) -> bool:
    """Whether the converter knows an operator at an opset, by an older version where need be."""
    from onnx2torch.node_converters.registry import add_converter, get_converter

    try:
        get_converter(node.op_type, opset)
        return True
    except NotImplementedError:
        pass
    older = _older(node.op_type, opset)
    schema = _schema(node.op_type, opset)
    if older is None or schema is None or len(node.input) > older.max_input:
        return False
    if any(attribute.name not in older.attributes for attribute in node.attribute):
        return False
    converter = get_converter(node.op_type, older.since_version)
    add_converter(node.op_type, schema.since_version)(converter)
    return True


def _older(name: str, opset: int) -> Any:
    """The schema of the newest version of an operator, up to an opset, that the converter knows."""
    from onnx2torch.node_converters.registry import get_converter

    for version in range(opset, 0, -1):
        try:
            get_converter(name, version)
        except NotImplementedError:
            continue
        return _schema(name, version)
    return None


def _schema(name: str, opset: int) -> Any:
    from onnx import defs

    try:
        return defs.get_schema(name, max_inclusive_version=opset)
    except defs.SchemaError:
        return None


def _is_function(name: str, opset: int) -> bool:
    schema = _schema(name, opset)
    if schema is None:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _opset(model: Any) -> int:
    return next((one.version for one in model.opset_import if one.domain in _DOMAINS), 1)


def _own(model: Any) -> Iterable[Any]:
    """The nodes of ONNX's own domain."""
    return [node for node in model.graph.node if node.domain in _DOMAINS]


def _constants(model: Any) -> dict[str, Any]:
    """The tensors of initializers and of constant nodes, by the names of their values."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = attribute.t
    return constants


def _replace(tensor: Any, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Change the values of a tensor in place."""
    from onnx import numpy_helper

    values = change(np.array(numpy_helper.to_array(tensor)))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
