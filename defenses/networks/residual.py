"""Residual networks for small images (n, channels, height, width), of any size.

Their modules are named as in the code of TRADES and of most published robust models, so that such
weights fit. Nothing works in place, and the mean over pixels is one sum: its gradient has the same
bits each time.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded to keep the size where the stride is 1."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Around a block: nothing where it keeps the shape, else a 1x1 convolution."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _stage(
    block: Callable[[int, int, int], nn.Module], count: int, inputs: int, outputs: int, stride: int
) -> nn.Sequential:
    """A number of blocks, the first of which changes the shape."""
    rest = (block(outputs, outputs, 1) for _ in range(count - 1))
    return nn.Sequential(block(inputs, outputs, stride), *rest)


def _initialise(model: nn.Module) -> None:
    """Draw the convolutions as He et al. (2015), "Delving Deep into Rectifiers", equation 14."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """A residual block of two 3x3 convolutions (He et al. 2016, figure 5, left)."""

    expansion: ClassVar = 1

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """A residual block with a 3x3 convolution between two of 1x1, on a quarter of the channels (He
    et al. 2016, figure 5, right).

    Differs from the source: the stride is that of the 3x3 convolution, as in all common code.
    """

    expansion: ClassVar = 4

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // self.expansion
        self.conv1 = _conv(inputs, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _conv(inner, inner, 3, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = _conv(inner, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """The residual networks of He et al. (2016), "Deep Residual Learning for Image Recognition",
    table 1, from images (n, channels, height, width) to logits (n, classes).

    base      channels of the stem; the four stages' blocks have 1, 2, 4 and 8 times as many inside.
    counts    blocks of each stage.

    Differs from the source: made for 32x32, as robustness papers have it: the stem is 3x3 with
    stride 1 and no pooling follows it; shortcuts that change the shape are 1x1 convolutions.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        base: int,
        block: type[BasicBlock] | type[Bottleneck],
        counts: tuple[int, int, int, int],
    ) -> None:
        super().__init__()
        first, second, third, last = (base * block.expansion * scale for scale in (1, 2, 4, 8))
        self.conv1 = _conv(channels, base, 3)
        self.bn1 = nn.BatchNorm2d(base)
        self.layer1 = _stage(block, counts[0], base, first, 1)
        self.layer2 = _stage(block, counts[1], first, second, 2)
        self.layer3 = _stage(block, counts[2], second, third, 2)
        self.layer4 = _stage(block, counts[3], third, last, 2)
        self.linear = nn.Linear(last, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.layer4(self.layer3(self.layer2(self.layer1(y))))
        logits: Tensor = self.linear(y.mean((2, 3)))
        return logits


class PreActivated(nn.Module):
    """A residual block with batch norm and ReLU before each of its two 3x3 convolutions and, where
    the shape changes, before that of its shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        same = stride == 1 and inputs == outputs
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3)
        self.convShortcut = None if same else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(x))
        kept: Tensor = x if self.convShortcut is None else self.convShortcut(y)
        y = torch.relu(self.bn2(self.conv1(y)))
        return torch.add(kept, self.conv2(y))


class WideResNet(nn.Module):
    """The networks of Zagoruyko and Komodakis (2016), "Wide Residual Networks", table 1, without
    dropout, from images (n, channels, height, width) to logits (n, classes).

    widths    channels of the three stages, which follow a stem of 16; 16k, 32k and 64k in
              WRN-depth-k.
    depth     10 or more. Raises ValueError unless 6 divides depth - 4.
    """

    def __init__(self, channels: int, classes: int, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        count, rest = divmod(depth - 4, 6)
        if rest or count < 1:
            raise ValueError(f"a wide ResNet has 10, 16, 22, 28, ... layers, not {depth}")
        first, second, third = widths

        def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            stage = _stage(PreActivated, count, inputs, outputs, stride)
            return nn.Sequential(OrderedDict(layer=stage))

        self.conv1 = _conv(channels, 16, 3)
        self.block1 = block(16, first, 1)
        self.block2 = block(first, second, 2)
        self.block3 = block(second, third, 2)
        self.bn1 = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(torch.relu(self.bn1(y)).mean((2, 3)))
        return logits
