"""Networks in ONNX files."""

from pathlib import Path

import torch
from torch import Tensor, nn

from defenses.foreign.adapting.in_parts import InParts, said
from defenses.foreign.onnx_graphs.onnx_file import OnnxFile
from defenses.foreign.sources import Asked, Brought, OfFile


class Onnx(OfFile):
    """An ONNX file, converted to torch and checked against onnxruntime. Images are flattened, or
    their channels put last, where the network takes them so."""

    def bring(self, name: str, asked: Asked) -> Brought:
        file = OnnxFile(Path(name))
        module = file.module()
        model = _taking(module, tuple(asked.shape), file.input_shape)
        model = Named(model, file.outputs) if len(file.outputs) > 1 else model
        return Brought(model, note=said(module.size) if isinstance(module, InParts) else "")


class Named(nn.Module):
    """A network of several outputs, by their names."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.model(x), strict=True))


class Reshaped(nn.Module):
    """A network that takes images in another layout: flat, or with channels last."""

    def __init__(self, model: nn.Module, channels_last: bool, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.channels_last, self.shape = model, channels_last, shape

    def forward(self, x: Tensor) -> object:
        x = x.movedim(1, -1) if self.channels_last else x
        return self.model(x.reshape(len(x), *self.shape))


def _taking(model: nn.Module, shape: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Module:
    """The network as it takes images of a shape. Raises ValueError where it cannot."""
    if shape == wanted:
        return model
    if len(shape) == 3 and (*shape[1:], shape[0]) == wanted:
        return Reshaped(model, True, wanted)
    size = torch.Size(shape).numel()
    if size == torch.Size(wanted).numel() and (len(wanted) == 1 or 1 in wanted):
        return Reshaped(model, False, wanted)
    raise ValueError(f"takes images of shape {wanted}, not {shape}")
