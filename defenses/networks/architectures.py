"""Networks, each from images (n, channels, height, width) in [0, 1] to logits (n, classes); "mlp"
also from rows (n, features).

`widen` multiplies channels and hidden units, all but those of a wide ResNet's stem. LeNet5, CNN2
and Myrtle raise ValueError for images with a side under 4 pixels.
"""

import math
from collections.abc import Callable

from torch import nn

from defenses.networks.residual import BasicBlock, Bottleneck, ResNet, WideResNet

# Of an image, (channels, height, width), or of a row of a table, (features,).
Shape = tuple[int, ...]


def scaled_widths(widen: float, *units: int) -> list[int]:
    """The numbers of channels or hidden units, each times `widen` and at least 1. Raises ValueError
    for widen not above 0."""
    if not widen > 0:
        raise ValueError(f"widen must be above 0, not {widen}")
    return [max(1, round(count * widen)) for count in units]


def check_images(what: str, shape: Shape, instead: str = "use mlp") -> None:
    """Raises ValueError, with what to do instead, unless `shape` is that of images."""
    if len(shape) != 3:
        features = math.prod(shape)
        raise ValueError(f"{what} is for images, not for rows of {features} features: {instead}")


def _quarter(shape: Shape) -> int:
    """How many pixels a channel has left after both sides were halved twice. Raises ValueError for
    images that are too small."""
    _, height, width = shape
    if min(height, width) < 4:
        raise ValueError(f"images of {height}x{width} are too small for convolutions: use mlp")
    return (height // 4) * (width // 4)


class LeNet5(nn.Sequential):
    """The LeNet-5 of Ding et al. (2019), "On the Sensitivity of Adversarial Robustness to Input
    Data Distributions", appendix B.1: two convolutions with max pooling, then 1024 units.

    Unstated there: the kernels, here 5x5 and padded to keep the size, as in Madry et al. (2018).
    """

    def __init__(self, shape: Shape, classes: int, widen: float = 1.0) -> None:
        first, second, units = scaled_widths(widen, 32, 64, 1024)
        super().__init__(
            nn.Conv2d(shape[0], first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * _quarter(shape), units),
            nn.ReLU(),
            nn.Linear(units, classes),
        )


class CNN2(nn.Sequential):
    """The two-layer CNN of RoBin (section 5).

    Unstated there: all sizes. These are of the small MNIST network of Wong and Kolter (2018), much
    used since: 16 and 32 channels of 4x4 kernels with stride 2, then 100 units.
    """

    def __init__(self, shape: Shape, classes: int, widen: float = 1.0) -> None:
        first, second, units = scaled_widths(widen, 16, 32, 100)
        super().__init__(
            nn.Conv2d(shape[0], first, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(second * _quarter(shape), units),
            nn.ReLU(),
            nn.Linear(units, classes),
        )


class Myrtle(nn.Sequential):
    """The Myrtle CNN, the plain part of a network of Page (2018), as Nakkiran et al. (2019), "Deep
    Double Descent", appendix, have it: four 3x3 convolutions with batch norm, ReLU and max pooling.

    Unstated in RoBin, which names it only: all sizes. These are 64, 128, 256 and 512 channels, and
    pooling by 1, 2, 2 and, over all that is left, 8 pixels of 32x32.

    Differs from the source: the convolutions have no biases, which batch norm would cancel.
    """

    def __init__(self, shape: Shape, classes: int, widen: float = 1.0) -> None:
        _quarter(shape)
        channels, height, width = shape
        first, second, third, last = scaled_widths(widen, 64, 128, 256, 512)
        super().__init__(
            *_normalised(channels, first),
            *_normalised(first, second),
            nn.MaxPool2d(2),
            *_normalised(second, third),
            nn.MaxPool2d(2),
            *_normalised(third, last),
            nn.MaxPool2d((height // 4, width // 4)),
            nn.Flatten(),
            nn.Linear(last, classes),
        )


def _normalised(inputs: int, outputs: int) -> list[nn.Module]:
    """A 3x3 convolution with batch norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def resnet18(shape: Shape, classes: int, widen: float = 1.0) -> ResNet:
    """The ResNet-18 of robustness papers; `widen` multiplies its 64 base channels."""
    (base,) = scaled_widths(widen, 64)
    return ResNet(shape[0], classes, base, BasicBlock, (2, 2, 2, 2))


def resnet50(shape: Shape, classes: int, widen: float = 1.0) -> ResNet:
    """The ResNet-50 of robustness papers, which has bottlenecks; `widen` as in `resnet18`."""
    (base,) = scaled_widths(widen, 64)
    return ResNet(shape[0], classes, base, Bottleneck, (3, 4, 6, 3))


def wideresnet28(shape: Shape, classes: int, widen: float = 1.0) -> WideResNet:
    """WRN-28-k, where `widen` is k."""
    return WideResNet(shape[0], classes, scaled_widths(widen, 16, 32, 64), depth=28)


class MLP(nn.Sequential):
    """A fully connected network with two hidden layers of 128 units, for small images such as
    digits and for rows of tables."""

    def __init__(self, shape: Shape, classes: int, widen: float = 1.0) -> None:
        (units,) = scaled_widths(widen, 128)
        super().__init__(
            nn.Flatten(),
            nn.Linear(math.prod(shape), units),
            nn.ReLU(),
            nn.Linear(units, units),
            nn.ReLU(),
            nn.Linear(units, classes),
        )


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet5,
    "cnn2": CNN2,
    "mlp": MLP,
    "myrtle": Myrtle,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "wideresnet28": wideresnet28,
}


def build_architecture(name: str, shape: Shape, classes: int, **options: object) -> nn.Module:
    """The named network for images of `shape` (channels, height, width), or for rows (features,).

    "default" is mlp for rows and for images with a side under 16 pixels, and lenet5 for others.
    Raises ValueError for an unknown name, and for rows where the network is for images.
    """
    if name == "default":
        name = "mlp" if len(shape) != 3 or min(shape[1:]) < 16 else "lenet5"
    if name not in ARCHITECTURES:
        choices = ", ".join(["default", *ARCHITECTURES])
        raise ValueError(f"unknown architecture {name!r}: use one of {choices}")
    if name != "mlp":
        check_images(name, shape)
    return ARCHITECTURES[name](shape, classes, **options)
