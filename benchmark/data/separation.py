"""How far apart the classes of a data set are, and how much room a threat leaves around an image.

Images x (n, *shape) come with labels y (n,), on one device. Distances are L2, from products of
matrices in float64: in float32, |a|^2 + |b|^2 - 2ab would lose what sets near duplicates apart.
Both searches go through pairs of blocks, so that memory grows with n, not with its square.
"""

import math

import torch
from torch import Tensor

from attacks.threat import ThreatModel

# Images on either side of a block of distances.
_BLOCK = 512


def oracle_radii(x: Tensor, y: Tensor) -> Tensor:
    """Half the distance of each image from the nearest image with another label: (n,), float64; inf
    where all labels are the same, 0 for an image that occurs with two labels.

    No classifier can withstand more than half their distance on both of two images whose labels
    differ. Source: "Robustness via fractal divide and fractal aggregation" (Qian 2021), section 2.
    """
    nearest = torch.full(y.shape, math.inf, dtype=torch.float64, device=x.device)
    neighbour = torch.arange(len(y), device=y.device)
    # Find the nearest image of another label, through all pairs of blocks of different labels.
    blocks = [block for of_class in _classes(y) for block in of_class.split(_BLOCK)]
    for number, first in enumerate(blocks):
        points = _rows(x, first)
        for second in blocks[number + 1 :]:
            if y[first[0]] == y[second[0]]:
                continue
            distances = torch.cdist(points, _rows(x, second))
            for images, others, side in ((first, second, 1), (second, first, 0)):
                least, place = distances.min(side)
                closer = least < nearest[images]
                nearest[images] = torch.where(closer, least, nearest[images])
                neighbour[images] = torch.where(closer, others[place], neighbour[images])
    # Measure it anew, pixel by pixel: the product leaves an error of some 1e-7 near distance 0.
    everything = torch.arange(len(y), device=y.device).split(_BLOCK)
    exact = [(_rows(x, images) - _rows(x, neighbour[images])).norm(dim=1) for images in everything]
    return torch.where(nearest.isfinite(), torch.cat(exact) / 2, math.inf)


def inter_class_distance(x: Tensor, y: Tensor) -> float:
    """The mean distance of the classes from the rest; inf where there is only one class.

    An image is as far from the other classes as the mean of its distances from the nearest 10% of
    their images; a class as the mean of the least 10% of this over its own images. 10% is rounded
    up. Source: Ding et al. 2019, "On the Sensitivity of Adversarial Robustness to Input Data
    Distributions", appendix D.2.1, figure 5.
    """
    classes = []
    for images in _classes(y):
        others = (y != y[images[0]]).nonzero()[:, 0]
        if not len(others):
            return math.inf
        margins = [_nearest_tenth(_from(x, block, others)) for block in images.split(_BLOCK)]
        classes.append(_nearest_tenth(torch.cat(margins)))
    return float(torch.stack(classes).mean())


def log_volumes(x: Tensor, threat: ThreatModel) -> Tensor:
    """The volume of what the threat lets each image become, in bits, log2: (n,), float64.

    Source: Ding et al. 2019, appendix D.1. Raises ValueError unless the norm is linf.
    """
    if threat.norm != "linf":
        raise ValueError(f"a volume is known for linf alone, not for {threat.norm}")
    return torch.cat([_log_volumes(block.flatten(1).double(), threat) for block in x.split(_BLOCK)])


def _log_volumes(x: Tensor, threat: ThreatModel) -> Tensor:
    sides = threat.clamp(x + threat.eps) - threat.clamp(x - threat.eps)
    return sides.log2().sum(1)


def _classes(y: Tensor) -> list[Tensor]:
    """The places of the images of each label that occurs."""
    return [(y == label).nonzero()[:, 0] for label in y.unique()]


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """Some of the images, as vectors of float64."""
    return x[places].flatten(1).double()


def _from(x: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """The distances of some images from others, (images, others), in float32: that halves memory,
    and is enough for means."""
    points = _rows(x, images)
    blocks = [torch.cdist(points, _rows(x, block)).float() for block in others.split(_BLOCK)]
    return torch.cat(blocks, 1)


def _nearest_tenth(distances: Tensor) -> Tensor:
    """The mean of the least 10%, rounded up, along the last dimension, float64."""
    count = math.ceil(distances.shape[-1] / 10)
    return distances.topk(count, largest=False, sorted=False).values.double().mean(-1)
