"""Classifiers of L2-nonexpansive networks (Qian and Wegman 2019, "L2-nonexpansive neural networks",
L2NNN below)."""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from defenses.networks.architectures import Shape, check_images, scaled_widths
from defenses.nonexpansive.appendix import BoundedScale, Residual, ScaledSigmoid, SubtractMean
from defenses.nonexpansive.layers import Conv, Flatten, Linear, NormPool, TwoSided, weighted
from defenses.nonexpansive.stacks import STACKS, build_stack


def confidence_gap(logits: Tensor) -> Tensor:
    """The largest logit less the second largest: (n, classes) to (n,) (L2NNN, section 1)."""
    first, second = logits.topk(2, dim=1).values.unbind(1)
    return first - second


class L2NonexpansiveClassifier(nn.Module):
    """A classifier of nonexpansive networks (L2NNN, section 2.4), from images (n, *shape) in [0, 1]
    to logits (n, classes).

    shape    of the images: (channels, height, width).
    arch     "mlp", "deep" or "conv": see `build_stack`.
             "paper": convolution, two-sided ReLU and 2x2 norm-pooling, twice; then fully connected
             layers, first shared and then one stack per label, all with two-sided ReLU.
             "residual": the same with the components of appendix A. Each convolution is followed by
             subtraction of the mean and bounded scaling (A.5), and by a skip around two more (A.3)
             with a two-sided scaled sigmoid between them (A.2).
    multi    True: one network for each label; they share all but the last layers. False: a single
             network, whose vector of logits is nonexpansive.
    widen    multiplies filters and hidden units.
    scaling  of the weights, a name in `defenses.nonexpansive.scalings.SCALINGS`.
    v        of equation (5); None to train it. Like u of (4), it is not used for logits: it is here
             so that it is trained and saved with the rest.

    Raises ValueError for an unknown name, widen not above 0, or images too small.

    Unstated in the source: which of its networks, if any, has the components of appendix A, and how
    they are put together; the sizes of "paper" and "residual", here 5x5 and 3x3 kernels, 16 and 32
    filters, 128 shared units and 32 for each label. In "residual" the mean is that of all features
    of an image, and the scaled sigmoid has one t for all pixels of a filter.
    """

    def __init__(
        self,
        arch: str,
        shape: Shape,
        classes: int,
        *,
        multi: bool = False,
        widen: float = 1.0,
        scaling: str = "cayley",
        v: float | None = None,
    ) -> None:
        super().__init__()
        self.multi = multi
        self.u = nn.Parameter(torch.ones(classes))
        self.v = nn.Parameter(torch.tensor(1.0 if v is None else v), requires_grad=v is None)
        stack, outputs = (classes, 1) if multi else (1, classes)
        if arch in _ARCHS:
            self.networks = _convolutional(arch, shape, stack, outputs, widen, scaling)
            return
        if arch not in STACKS:
            known = ", ".join([*STACKS, *_ARCHS])
            raise ValueError(f"unknown architecture {arch!r}: use one of {known}")
        *shared, last = cast(nn.Sequential, build_stack(arch, shape, 1, outputs, widen, scaling))
        inputs = cast(Linear, last).weight.shape[2]
        self.networks = nn.Sequential(*shared, Linear(stack, inputs, outputs, scaling))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.networks(x[None])
        return logits[..., 0].T if self.multi else logits[0]

    def confidence_gap(self, x: Tensor) -> Tensor:
        """The largest logit less the second largest, (n,)."""
        return confidence_gap(self(x))

    def radius(self, gap: Tensor) -> Tensor:
        """The L2 distance within which no difference of two logits changes by more than `gap`
        (L2NNN, lemmas 1 and 6)."""
        return gap / (2 if self.multi else math.sqrt(2))

    def certified_radius(self, x: Tensor) -> Tensor:
        """The L2 distance (n,) within which the predicted class of images (n, *shape) does not
        change (L2NNN, lemmas 1 and 6); 0 while weights are not strict."""
        strict = all(layer.strict for layer in weighted(self))
        return self.radius(self.confidence_gap(x)) * strict


def _convolutional(
    arch: str, shape: Shape, stack: int, outputs: int, widen: float, scaling: str
) -> nn.Sequential:
    """The architecture "paper" or "residual", of which `stack` networks share all but the last two
    linear layers."""
    check_images(arch, shape)
    channels, height, width = shape
    first, second, shared, own = scaled_widths(widen, 16, 32, 128, 32)
    convolution = _ARCHS[arch]
    # Pooling windows reach over the edge of an odd side.
    pixels = math.ceil(height / 4) * math.ceil(width / 4)
    return nn.Sequential(
        *convolution(channels, first, scaling),
        TwoSided(),
        NormPool(2),
        *convolution(2 * first, second, scaling),
        TwoSided(),
        NormPool(2),
        Flatten(),
        Linear(1, 2 * second * pixels, shared, scaling),
        TwoSided(),
        Linear(stack, 2 * shared, own, scaling),
        TwoSided(),
        Linear(stack, 2 * own, outputs, scaling),
    )


def _plain(channels: int, filters: int, scaling: str) -> list[nn.Module]:
    return [Conv(1, channels, filters, 5, padding=2, scaling=scaling)]


def _skipped(channels: int, filters: int, scaling: str) -> list[nn.Module]:
    """A convolution, normalisation, and two more convolutions with a skip around them."""
    branch = nn.Sequential(
        Conv(1, filters, filters, 3, padding=1, scaling=scaling),
        TwoSided(ScaledSigmoid(1, filters, 1, 1)),
        Conv(1, 2 * filters, filters, 3, padding=1, scaling=scaling),
    )
    return [
        Conv(1, channels, filters, 3, padding=1, scaling=scaling),
        SubtractMean((2, 3, 4)),
        BoundedScale(1, filters),
        Residual(1, branch),
    ]


# What comes before a nonlinearity with pooling: from channels, filters and the scaling of weights.
_ARCHS: dict[str, Callable[[int, int, str], list[nn.Module]]] = {
    "paper": _plain,
    "residual": _skipped,
}
