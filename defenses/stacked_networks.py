"""Nonexpansive networks, many at once."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from defenses.architectures import Shape
from defenses.stacked import Conv, Flatten, Linear, NormPool, TwoSided, Weighted


class Stack(nn.Sequential):
    """Layers of k networks each, from (1 or k, n, ...) to (k, n, ...).

    Where the images are few all networks run at once, and where they are many one by one.
    """

    few = 16

    def forward(self, x: Tensor) -> Tensor:
        stack = max(layer.stack for layer in self if isinstance(layer, Weighted))
        if x.shape[1] <= self.few or stack == 1:
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        parts = [layer.parts() if isinstance(layer, Weighted) else None for layer in self]
        outputs = list[Tensor]()
        for y in x.split(1) if len(x) > 1 else [x] * stack:
            for layer, own in zip(self, parts, strict=True):
                y = layer(y) if own is None else layer.run(y, *next(own))
            outputs.append(y)
        return torch.cat(outputs)


def build_stack(
    arch: str,
    shape: Shape,
    stack: int,
    outputs: int = 1,
    widen: float = 1.0,
    scaling: str = "cayley",
) -> nn.Module:
    """`stack` networks (L2NNN) as one, from images (1 or stack, n, channels, height, width) of
    `shape` (channels, height, width) to (stack, n, outputs).

    arch      "mlp": hidden layers of 256, 128 and 64 units, none wider than the image.
              "conv": convolutions, norm-pooling, convolutions, norm-pooling, fully connected.
    widen     multiplies filters and hidden units.
    scaling   of the weights, a name in `defenses.nonexpansive.SCALINGS`.

    Raises ValueError for an unknown name, widen not above 0, or images too small for convolutions.
    """
    if not widen > 0:
        raise ValueError(f"widen must be above 0, not {widen}")
    if arch == "mlp":
        inputs = math.prod(shape)
        hidden = [min(round(units * widen) or 1, inputs) for units in (256, 128, 64)]
        return Stack(Flatten(), *_dense(stack, inputs, hidden, outputs, scaling))
    if arch == "conv":
        return Stack(*_convolutional(shape, stack, outputs, widen, scaling))
    raise ValueError(f"unknown stacked architecture {arch!r}: use mlp or conv")


def _dense(
    stack: int, inputs: int, hidden: list[int], outputs: int, scaling: str
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [Linear(stack, inputs, units, scaling), TwoSided()]
        inputs = 2 * units
    return [*layers, Linear(stack, inputs, outputs, scaling)]


def _convolutional(
    shape: Shape, stack: int, outputs: int, widen: float, scaling: str
) -> list[nn.Module]:
    channels, height, width = shape
    if min(height, width) < 4:
        raise ValueError(f"images of {height}x{width} are too small for convolutions: use mlp")
    first, second, *hidden = (
        round(count * widen) or 1 for count in (4 * channels, 32 * channels, 128, 64)
    )
    sides = [-(-(-(-(side - 1) // 2) - 1) // 2) for side in (height, width)]
    layers: list[nn.Module] = [
        Conv(stack, channels, first, 2, scaling=scaling),
        TwoSided(),
        NormPool(2),
        Conv(stack, 2 * first, second, 2, scaling=scaling),
        TwoSided(),
        NormPool(2),
        Flatten(),
    ]
    inputs = 2 * second * math.prod(sides)
    return [*layers, *_dense(stack, inputs, hidden, outputs, scaling)]
