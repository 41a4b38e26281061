"""Models that take images of no precision but their own, which is not float32."""

from typing import Any

import torch
from torch import Tensor, nn

from defenses.networks.modes import evaluating


class InPrecision(nn.Module):
    """A model that is given images in the precision that it takes, and gives what it does."""

    taken: Tensor

    def __init__(self, model: nn.Module, takes: torch.dtype) -> None:
        super().__init__()
        self.model = model
        # A buffer, so that it is cast with the model to another precision.
        self.register_buffer("taken", torch.zeros((), dtype=takes), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.model(x.to(self.taken.dtype))


def taking_float32(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The model as it can be given images (n, *shape) of float32: itself, where it runs on them or
    on none."""
    if _runs(model, shape):
        return model
    tensors = (*model.parameters(), *model.buffers())
    own = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    for dtype in sorted(own - {torch.float32}, key=str):
        casting = InPrecision(model, dtype)
        if _runs(casting, shape):
            return casting
    return model


def _runs(model: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, *shape))
    except Exception:
        return False
    return True
