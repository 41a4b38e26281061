"""ONNX files as torch modules, which are checked against onnxruntime before they are used."""

import gzip
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defenses.foreign.adapting.in_parts import InParts
from defenses.foreign.adapting.in_precision import InPrecision
from defenses.foreign.extras import need
from defenses.foreign.onnx_graphs.onnx_operators import register
from defenses.foreign.onnx_graphs.onnx_rewriting import understood, without_batch

# Images on which the two are compared, and how far outputs may differ, as a part of the largest.
_IMAGES, _TOLERANCE = 4, 1e-3

_DTYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64}


class OnnxFile:
    """An ONNX network of one input, read from a file, which may be packed by gzip.

    input_shape  of one image.
    outputs      the names of its outputs.
    takes        the dtype of its images.
    fixed        how many images it was exported for; None if that is free.

    Raises ValueError, in one line, for a file that holds no such network, and where onnx,
    onnx2torch or onnxruntime are missing.
    """

    def __init__(self, path: Path) -> None:
        need("onnx", "onnx", "onnx2torch", "onnxruntime")
        import onnx

        if not path.is_file():
            raise ValueError("there is no such file")
        try:
            if path.suffix == ".gz":
                self.model = onnx.load_from_string(gzip.decompress(path.read_bytes()))
            else:
                self.model = onnx.load(str(path))
            onnx.checker.check_model(self.model)
        except Exception as error:
            raise ValueError(f"is no whole ONNX file: {_first(error)}") from error
        graph = self.model.graph
        constants = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in constants]
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs) or "none"
            raise ValueError(f"has {len(inputs)} inputs ({names}), not one for images")
        kind = inputs[0].type.tensor_type
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        if len(sizes) < 2 or any(not size for size in sizes[1:]):
            raise ValueError(f"takes inputs of shape {_text(sizes)}, not (n, ...) of known sizes")
        if kind.elem_type not in _DTYPES:
            name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
            raise ValueError(f"takes images of {name}, not of floats: export it for floats")
        self.name, self.takes = inputs[0].name, _DTYPES[kind.elem_type]
        self.fixed: int | None = sizes[0] or None
        self.input_shape: tuple[int, ...] = tuple(size for size in sizes[1:] if size)
        self.outputs = [value.name for value in graph.output]
        self._session: Any = None

    def run(self, x: Tensor) -> list[Tensor]:
        """The outputs at images x (n, *input_shape) by onnxruntime, in the file's own precision."""
        import onnxruntime

        if self._session is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
            self._session = onnxruntime.InferenceSession(
                self.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        images = x.detach().cpu().to(self.takes).numpy()
        size = self.fixed or len(images)
        parts = [self._run(images[begin : begin + size], size) for begin in range(0, len(x), size)]
        return [torch.from_numpy(np.concatenate(of_each)) for of_each in zip(*parts, strict=True)]

    def _run(self, images: NDArray[Any], size: int) -> list[NDArray[Any]]:
        """The outputs at no more images than the network takes at once, which gets so many."""
        missing = size - len(images)
        padded = np.concatenate([images, images[-1:].repeat(missing, 0)]) if missing else images
        found = self._session.run(None, {self.name: padded})
        return [output[: len(images)] for output in found]

    def module(self) -> nn.Module:
        """The network as a torch module from images (n, *input_shape) to its outputs: a tensor, or
        a list where there are several.

        It takes any number of images, also where the file is for a certain number: by rewritten
        shapes where that can be had, else in parts. Raises ValueError where an operator cannot be
        converted, or the module's outputs are not those of onnxruntime.
        """
        converted: nn.Module | None = None
        if self.fixed is not None:
            converted = self._for_any_number(self.fixed)
        if converted is None:
            converted = self._convert(self._understood())
            self._check(converted, self.fixed or _IMAGES)
            if self.fixed is not None:
                return InParts(converted, self.fixed)
        return converted

    def _for_any_number(self, count: int) -> nn.Module | None:
        """The network, exported for `count` images, with its shapes rewritten; None where it does
        not work so."""
        try:
            rewritten = self._convert(without_batch(self._understood(), count))
            self._check(rewritten, count + _IMAGES)
        except ValueError:
            return None
        return rewritten

    def _convert(self, model: Any) -> nn.Module:
        with _no_torchvision():
            from onnx2torch import convert
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the converter's own code
                module: nn.Module = convert(model)
        except Exception as error:
            raise ValueError(f"cannot be converted: {_first(error)}") from error
        # The weights do not tell the precision: a network that takes float32 may have float16.
        return InPrecision(OnnxNetwork(module), self.takes).eval()

    def _understood(self) -> Any:
        with _no_torchvision():
            register()
        try:
            return understood(self.model)
        except Exception as error:
            raise ValueError(f"cannot be converted: {_first(error)}") from error

    def _check(self, module: nn.Module, count: int) -> None:
        """Compare a converted network with onnxruntime on random images, in [0, 1] and
        normalised."""
        generator = torch.Generator().manual_seed(0)
        shape = (count, *self.input_shape)
        self._compare(module, torch.rand(shape, generator=generator).to(self.takes))
        self._compare(module, 2 * torch.randn(shape, generator=generator).to(self.takes))

    def _compare(self, module: nn.Module, x: Tensor) -> None:
        try:
            expected = self.run(x)
        except Exception as error:
            raise ValueError(f"does not run by onnxruntime: {_first(error)}") from error
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the converter's own code
                found = module(x)
        except Exception as error:
            raise ValueError(f"does not run when it is converted: {_first(error)}") from error
        found = [found] if isinstance(found, Tensor) else list(found)
        for name, ours, theirs in zip(self.outputs, found, expected, strict=True):
            if not theirs.is_floating_point():
                continue
            # Some functions are not defined everywhere, such as a logarithm.
            undefined = theirs.isnan()
            if ours.shape == theirs.shape:
                ours, theirs = ours.masked_fill(undefined, 0), theirs.masked_fill(undefined, 0)
            largest = theirs.abs().max().clamp_min(1e-30)
            off = float(((ours - theirs).abs().max() / largest).nan_to_num(1.0))
            if ours.shape != theirs.shape or off > _TOLERANCE:
                raise ValueError(
                    f"is another function when it is converted: output {name!r} differs by "
                    f"{off:.1%} of its largest value from onnxruntime's on random images"
                )
            if theirs.dim() == 2 and not torch.equal(ours.argmax(1), theirs.argmax(1)):
                gaps = theirs.topk(min(2, theirs.shape[1]), 1).values.diff(dim=1).abs()
                if bool((gaps > _TOLERANCE * largest).any()):
                    raise ValueError(f"gives other classes when it is converted: output {name!r}")


class OnnxNetwork(nn.Module):
    """A converted network, whose only output is given alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        outputs = self.network(x)
        single = isinstance(outputs, tuple | list) and len(outputs) == 1
        return outputs[0] if single else outputs


@contextmanager
def _no_torchvision() -> Iterator[None]:
    """A stand-in for torchvision while the converter is imported, which needs it for two operators
    of detectors. Importing it takes seconds, and fails beside some builds of torch."""
    names = [name for name in ("torchvision", "torchvision.ops") if name not in sys.modules]
    for name in names:
        sys.modules[name] = _Absent(name)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


class _Absent(ModuleType):
    """A module whose functions refuse to be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: object, **__: object) -> None:
            raise ValueError(f"{self.__name__}.{name} is not supported: it is of detectors")

        return refuse


def _text(sizes: list[int | None]) -> str:
    return "(" + ", ".join("n" if size is None else str(size) for size in sizes) + ")"


def _first(error: object) -> str:
    """The first line of what a library raised."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
