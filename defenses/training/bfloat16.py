"""Networks that compute in bfloat16 while they are trained, where their recipe says so."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def is_fast(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16. Without them it computes the same, but more
    slowly than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch tells of Intel's and AMD's processors alone.
    of_processor = torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported
    return device.type == "cpu" and any(has() for has in of_processor)


@contextmanager
def in_bfloat16(network: nn.Module) -> Iterator[None]:
    """What the network computes inside, gradients too, is in bfloat16 as far as
    `torch.autocast` holds that safe, and the weights of its convolutions are laid out channels
    last, which is faster.

    Its weights, batch statistics and outputs keep their precision, so that losses and steps are
    computed in float32. After it, the weights are contiguous again.
    """
    forward, own = network.forward, vars(network).get("forward")

    def rounded(x: Tensor, *given: Any, **named: Any) -> Any:
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        # Nothing is cached: a weight is used once in a pass, and changes between steps.
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            outputs = forward(x, *given, **named)
        return outputs.to(x.dtype)

    _lay_out(network, lambda weight: weight.movedim(-3, -1).contiguous().movedim(-1, -3))
    network.forward = rounded
    try:
        yield
    finally:
        del network.forward
        if own is not None:
            network.forward = own
        _lay_out(network, Tensor.contiguous)


def _lay_out(network: nn.Module, arranged: Callable[[Tensor], Tensor]) -> None:
    """Change how the weights of convolutions, of one network or of several, lie in memory."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            for weight in layer.parameters(recurse=False):
                if weight.dim() >= 4:
                    weight.data = arranged(weight.data)
