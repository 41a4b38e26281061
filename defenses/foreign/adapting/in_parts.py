"""Networks that were exported for a certain number of images at once."""

from typing import Any

import torch
from torch import Tensor, nn


class InParts(nn.Module):
    """A network that takes exactly `size` images at once, given any number of them.

    Its outputs are a tensor, or a tuple or list of tensors, with the images first.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x: Tensor) -> Any:
        parts = [self._part(part) for part in x.split(self.size)]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return [torch.cat(of_each) for of_each in zip(*parts, strict=True)]

    def _part(self, x: Tensor) -> Any:
        count = len(x)
        if count < self.size:
            x = torch.cat([x, x[-1:].expand(self.size - count, *x.shape[1:])])
        outputs = self.model(x)
        if isinstance(outputs, Tensor):
            return outputs[:count]
        return [output[:count] for output in outputs]


def said(size: int) -> str:
    """What readers of a table must know of such a network."""
    return f"it takes {size} {'image' if size == 1 else 'images'} at once, as it was exported"


def exported_size(model: nn.Module) -> int | None:
    """The number of images that an exported program was made for; None if that is free."""
    if not isinstance(model, torch.fx.GraphModule):
        return None
    for node in model.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor) and value.dim():
            return value.shape[0] if isinstance(value.shape[0], int) else None
    return None
