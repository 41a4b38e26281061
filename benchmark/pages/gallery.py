"""Adversarial examples as small pictures: the image, what was changed, and what came of it."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.judge.evaluator import Samples
from benchmark.judge.records import IntArray
from benchmark.pages.by_class import class_names, labels_of
from benchmark.report.measurements import Closest, Measurements

# How many examples a page holds, and a defense of it; and how many bytes its pictures take.
MOST, EACH, BYTES = 240, 48, 900_000

# How far a distance and its record may be apart, by rounding.
_ROUNDING = 1e-4

# Pictures have at most so many pixels a side; those below `_LOSSLESS` are kept exactly.
_SIDE, _LOSSLESS = 96, 40


@dataclass(frozen=True)
class Example:
    """One adversarial example.

    defense, attack  what it is of. The attack is the one that found the closest.
    number    of the image in its data set; label and predicted, by name.
    distance  in the norm of the threat.
    picture   the image, the perturbation and the adversarial image, side by side, as a data URI.
    """

    defense: str
    attack: str
    number: int
    label: str
    predicted: str
    distance: float
    picture: str


@dataclass(frozen=True)
class Gallery:
    """The examples that a page shows, and of how many."""

    shown: list[Example]
    of: int

    @property
    def defenses(self) -> list[str]:
        return list(dict.fromkeys(example.defense for example in self.shown))

    @property
    def attacks(self) -> list[str]:
        return sorted({example.attack for example in self.shown})

    @property
    def classes(self) -> list[str]:
        return sorted({example.label for example in self.shown})

    @property
    def farthest(self) -> float:
        return max(example.distance for example in self.shown)


def gallery(
    reports: Sequence[Measurements],
    samples: Samples,
    names: Sequence[str] | None,
    most: int = MOST,
) -> Gallery | None:
    """The closest adversarial examples of some reports, of as many classes and attacks as can be,
    and at most so many.

    None where the samples are not images, nothing was broken, or these are not the images that the
    reports are on, which distances tell.
    """
    if not is_image(samples.x.shape[1:]):
        return None
    shown: list[Example] = []
    broken, quota = 0, min(EACH, -(-most // len(reports)))
    for report in reports:
        closest = report.closest(report.measured, broken=True)
        broken += int((closest.label != "").sum())
        try:
            shown += _examples(report, closest, samples, names, quota, BYTES // len(reports))
        except (_OtherImagesError, ValueError):  # or the records are of other shapes: damaged
            return None
    return Gallery(shown, broken) if shown else None


class _OtherImagesError(Exception):
    """An example is not of the image that it should be of."""


def _examples(
    report: Measurements,
    closest: Closest,
    samples: Samples,
    names: Sequence[str] | None,
    most: int,
    size: int,
) -> list[Example]:
    """At most so many of the closest examples of a report, in about so many bytes."""
    chosen = _spread(labels_of(report), closest)[:most]
    shown: list[Example] = []
    for attack in dict.fromkeys(closest.label[chosen]):
        places = chosen[closest.label[chosen] == attack]
        frame, found = report.frames[attack].set_index("index"), report.examples(attack, places)
        points = dict(zip(found.index.tolist(), found.points, strict=True))
        for place, clean in zip(places.tolist(), samples.at(places).x.numpy(), strict=True):
            if place not in points or size < 0:
                continue
            distance = float(closest.distance[place])
            if not _is_of(clean, points[place], distance, report):
                raise _OtherImagesError
            picture = _side_by_side(clean, points[place], report)
            size -= len(picture)
            classes = [int(frame[column][place]) for column in ("label", "predicted")]
            label, predicted = class_names(names, classes)
            number = int(samples.number[place])
            shown.append(Example(report.name, attack, number, label, predicted, distance, picture))
    return shown


def is_image(shape: Sequence[int]) -> bool:
    """Whether samples of a shape can be shown as grey or coloured images."""
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) > 1


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


def _side_by_side(
    clean: NDArray[np.floating], point: NDArray[np.floating], report: Measurements
) -> str:
    """A picture of an image (C, H, W), of what was changed, at full contrast with grey where
    nothing was, and of the adversarial image, as a data URI."""
    from PIL import Image

    low = float(torch.as_tensor(report.threat.lower).min())
    high = float(torch.as_tensor(report.threat.upper).max())
    if not np.isfinite([low, high]).all():
        low, high = float(min(clean.min(), point.min())), float(max(clean.max(), point.max()))
    change = point.astype(np.float64) - clean
    contrast = 0.5 / max(float(np.abs(change).max()), 1e-12)
    tiles = [(clean - low) / (high - low), 0.5 + contrast * change, (point - low) / (high - low)]
    pixels = [(np.clip(tile, 0, 1) * 255).round().astype(np.uint8) for tile in tiles]
    images = [Image.fromarray(_pixels(tile)) for tile in pixels]
    side = max(images[0].size)
    if side > _SIDE:
        across, down = (max(1, round(length * _SIDE / side)) for length in images[0].size)
        images = [image.resize((across, down)) for image in images]
    width, height = images[0].size
    whole = Image.new(images[0].mode, (3 * width, height))
    for place, image in enumerate(images):
        whole.paste(image, (place * width, 0))
    kind, file = "png" if side <= _LOSSLESS else "jpeg", io.BytesIO()
    whole.save(file, kind, optimize=True, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _pixels(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image (C, H, W) as (H, W) or (H, W, 3)."""
    return tile[0] if len(tile) == 1 else np.moveaxis(tile, 0, -1)
