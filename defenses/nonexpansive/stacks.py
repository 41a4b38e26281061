"""Many nonexpansive networks in one module."""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from defenses.networks.architectures import Shape, check_images, scaled_widths
from defenses.networks.at_once import at_once, few_images
from defenses.nonexpansive.layers import Conv, Flatten, Linear, NormPool, TwoSided, Weighted

# Elements of one network's largest tensor up to which all networks run at once, see `few_images`.
# Measured on 2 CPU cores, 104 networks, forward and backward, how many times as fast as one by one:
# "mlp" (512 elements an image) 3.2 for 16 images, 2.1 for 64, 1.4 for 256; "conv" (10816) 1.4 for
# 4, 0.9 for 8, 0.5 for 16. It is not measured on a GPU.
_MOST = 2**16

# The hidden units of each architecture, behind its convolutions if it has any.
STACKS = {"mlp": (256, 128, 64), "deep": (256, 256, 256, 128, 64), "conv": (64, 32)}


class Stack(nn.Sequential):
    """k networks, whose layers follow each other, from (1 or k, n, ...) to (k, n, ...).

    All networks run at once on up to `few` images, and one by one on more. Layers that have
    parameters must be `Weighted`: ValueError otherwise.
    """

    def __init__(self, *layers: nn.Module, few: int = 1) -> None:
        super().__init__(*layers)
        for layer in layers:
            if not isinstance(layer, Weighted) and any(True for _ in layer.parameters()):
                raise ValueError(f"a stack's networks cannot be told apart in {layer}")
        self.few = few

    def forward(self, x: Tensor) -> Tensor:
        stack = max(layer.stack for layer in self if isinstance(layer, Weighted))
        if stack == 1 or at_once(x, self.few):
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        parts = [layer.parts() if isinstance(layer, Weighted) else None for layer in self]
        return torch.cat([self._one(y, parts) for y in (x.split(1) if len(x) > 1 else [x] * stack)])

    def some(self, x: Tensor, rows: slice) -> Tensor:
        """The outputs of some of the networks for shared images (1, n, ...), in eval mode."""
        step = rows.stop - rows.start if at_once(x, self.few) else 1
        outputs = []
        for start in range(rows.start, rows.stop, step):
            y, networks = x, slice(start, start + step)
            for layer in self:
                if isinstance(layer, Weighted):
                    y = layer.run(y, layer.effective()[networks], layer.bias[networks])
                else:
                    y = layer(y)
            outputs.append(y)
        return torch.cat(outputs)

    def _one(self, y: Tensor, parts: list[Iterator[tuple[Tensor, Tensor]] | None]) -> Tensor:
        """The outputs of the next network for its images, given each layer's `parts`."""
        for layer, weights in zip(self, parts, strict=True):
            y = layer(y) if weights is None else cast(Weighted, layer).run(y, *next(weights))
        return y


def build_stack(
    arch: str,
    shape: Shape,
    stack: int,
    outputs: int = 1,
    widen: float = 1.0,
    scaling: str = "cayley",
) -> nn.Module:
    """A module of `stack` nonexpansive networks, from images (1 or stack, n, channels, height,
    width) of `shape` (channels, height, width), or from rows of `shape` (features,), to (stack, n,
    outputs).

    arch      a name in STACKS. "mlp" and "deep": fully connected, no layer wider than the image.
              "conv": two 2x2 convolutions, each with norm-pooling behind it, then fully connected.
    widen     multiplies filters and hidden units.
    scaling   of the weights, a name in `defenses.nonexpansive.scalings.SCALINGS`.

    Raises ValueError for an unknown name, widen not above 0, or what is too small for convolutions.
    """
    if arch not in STACKS:
        raise ValueError(f"unknown stacked architecture {arch!r}: use one of {', '.join(STACKS)}")
    inputs, layers, widest = math.prod(shape), list[nn.Module](), 0
    hidden = [min(units, inputs) for units in scaled_widths(widen, *STACKS[arch])]
    if arch == "conv":
        check_images("conv", shape)
        channels, height, width = shape
        if min(height, width) < 4:
            raise ValueError(f"images of {height}x{width} are too small for convolutions: use mlp")
        # As many filters as a patch has entries, so that no distance is lost before the pooling.
        first, second = scaled_widths(widen, 4 * channels, 32 * channels)
        layers = [
            Conv(stack, channels, first, 2, scaling=scaling),
            TwoSided(),
            NormPool(2),
            Conv(stack, 2 * first, second, 2, scaling=scaling),
            TwoSided(),
            NormPool(2),
        ]
        # A convolution takes a pixel off a side, and pooling halves it, rounding up.
        halves = [side // 2 for side in (height, width)]
        inputs = 2 * second * math.prod(side // 2 for side in halves)
        widest = 2 * second * math.prod(side - 1 for side in halves)
    layers.append(Flatten())
    widest = max(widest, *(2 * units for units in hidden))
    for units in hidden:
        layers += [Linear(stack, inputs, units, scaling), TwoSided()]
        inputs = 2 * units
    return Stack(*layers, Linear(stack, inputs, outputs, scaling), few=few_images(widest, _MOST))
