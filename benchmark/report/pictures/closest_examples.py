"""The closest adversarial examples of what was measured, beside the images that they were made of;
and these as a picture."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples
from benchmark.judge.records import IntArray
from benchmark.report.measurements import Closest, Measurements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# How far a distance and its record may be apart, by rounding.
_ROUNDING = 1e-4


class OtherImagesError(ValueError):
    """Some samples are not those that a report is on."""


@dataclass(frozen=True, eq=False)
class Example:
    """The closest adversarial example of one sample.

    attack    the one that found it.
    number    of the image in its data set; label and predicted, its class and that of the point.
    distance  in the norm of the threat.
    clean     (*shape) the image, and point (*shape), as the threat measures them.
    """

    attack: str
    number: int
    label: int
    predicted: int
    distance: float
    clean: NDArray[np.floating]
    point: NDArray[np.floating]


def closest_examples(report: Measurements, samples: Samples, most: int) -> Iterator[Example]:
    """At most so many of the closest adversarial examples of a report, of as many classes and
    attacks as can be. Raises OtherImagesError where the samples are not those that it is on, which
    distances tell."""
    closest = report.closest(report.measured, broken=True)
    chosen = _spread(report.labels, closest)[:most]
    for attack in dict.fromkeys(closest.label[chosen]):
        places = chosen[closest.label[chosen] == attack]
        frame, found = report.frames[attack].set_index("index"), report.judged(attack, places)
        points = dict(zip(found.index.tolist(), found.points, strict=True))
        for place, clean in zip(places.tolist(), samples.at(places).x.numpy(), strict=True):
            if place not in points:
                continue
            distance = float(closest.distance[place])
            if not _is_of(clean, points[place], distance, report):
                raise OtherImagesError("the examples are not of these images")
            label, predicted = (int(frame[column][place]) for column in ("label", "predicted"))
            number = int(samples.number[place])
            yield Example(attack, number, label, predicted, distance, clean, points[place])


def _is_of(
    clean: NDArray[np.floating], point: NDArray[np.floating], distance: float, report: Measurements
) -> bool:
    """Whether an example is of an image, from which it was recorded to be so far."""
    if point.shape != clean.shape:
        return False
    moved, origin = (torch.from_numpy(image.astype(np.float64))[None] for image in (point, clean))
    found = float(report.threat.distance(moved, origin))
    return abs(found - distance) <= _ROUNDING * (1 + distance)


def _spread(labels: IntArray, closest: Closest) -> IntArray:
    """The places of samples that were broken, in an order that goes through classes and attacks in
    turn, each time with the closest example that is left."""
    found = np.flatnonzero(closest.label != "")
    order = found[np.argsort(closest.distance[found], kind="stable")]
    turn: Counter[tuple[int, str]] = Counter()
    turns = []
    for place in order.tolist():
        kind = int(labels[place]), str(closest.label[place])
        turns.append(turn[kind])
        turn[kind] += 1
    return order[np.argsort(turns, kind="stable")]


def tiles_of(example: Example, report: Measurements) -> list[NDArray[np.float64]]:
    """An image, what was changed in it, at full contrast with grey where nothing was, and the
    adversarial image, each (*shape) in [0, 1]."""
    scale = 1.0 if report.scale is None else report.scale
    clean, point = (image.astype(np.float64) * scale for image in (example.clean, example.point))
    low = float((torch.as_tensor(report.threat.lower).numpy() * scale).min())
    high = float((torch.as_tensor(report.threat.upper).numpy() * scale).max())
    if not np.isfinite([low, high]).all():
        low, high = float(min(clean.min(), point.min())), float(max(clean.max(), point.max()))
    change = point - clean
    contrast = 0.5 / max(float(np.abs(change).max()), 1e-12)
    tiles = [(clean - low) / (high - low), 0.5 + contrast * change, (point - low) / (high - low)]
    return [np.clip(tile, 0, 1) for tile in tiles]


def is_image(shape: Sequence[int]) -> bool:
    """Whether samples of a shape can be shown as grey or coloured images."""
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) > 1


def as_pixels(tile: NDArray[np.generic]) -> NDArray[np.generic]:
    """An image (C, H, W) as (H, W) or (H, W, 3)."""
    return tile[0] if len(tile) == 1 else np.moveaxis(tile, 0, -1)


def class_names(labels: Sequence[str] | None, classes: Sequence[int]) -> list[str]:
    """What readers are told some classes are: by the names that the data set has for them."""
    return [labels[each] if labels and 0 <= each < len(labels) else str(each) for each in classes]


def plot_examples(
    report: Measurements, samples: Samples, labels: Sequence[str] | None, most: int
) -> "Figure":
    """A figure of Matplotlib with a row for each of the closest adversarial examples: the image,
    what was changed, and the adversarial image. Raises UserError where there is none to show."""
    if not is_image(samples.x.shape[1:]):
        raise UserError(f"samples of shape {tuple(samples.x.shape[1:])} cannot be shown as images")
    try:
        examples = list(closest_examples(report, samples, most))
    except OtherImagesError as error:
        raise UserError("the data set at hand is not that of the run") from error
    if not examples:
        raise UserError("no attack broke anything: there is no example to show")
    from matplotlib import pyplot

    rows = len(examples)
    figure, grid = pyplot.subplots(
        rows, 3, figsize=(6, 2 * rows), squeeze=False, layout="constrained"
    )
    for line, example in zip(grid, examples, strict=True):
        label, predicted = class_names(labels, [example.label, example.predicted])
        said = (
            f"{label} (number {example.number})",
            f"{example.attack}, {example.distance:.3g}",
            f"taken for {predicted}",
        )
        for axes, tile, text in zip(line, tiles_of(example, report), said, strict=True):
            axes.imshow(as_pixels(tile), cmap="gray", vmin=0, vmax=1)
            axes.set_title(text, fontsize=9)
            axes.set_axis_off()
    return figure
