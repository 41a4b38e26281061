"""Adversarial examples as small pictures: the image, what was changed, and what came of it."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmark.judge.evaluator import Samples
from benchmark.report.measurements import Measurements
from benchmark.report.pictures.closest_examples import (
    Example,
    as_pixels,
    class_names,
    closest_examples,
    is_image,
    tiles_of,
)

# How many examples a page holds, and a defense of it; and how many bytes its pictures take.
MOST, EACH, BYTES = 240, 48, 900_000

# Pictures have at most so many pixels a side; those below `_LOSSLESS` are kept exactly.
_SIDE, _LOSSLESS = 96, 40


@dataclass(frozen=True)
class Picture:
    """One adversarial example, as pages show it.

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

    shown: list[Picture]
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
    shown: list[Picture] = []
    broken, quota = 0, min(EACH, max(most // len(reports), 1))
    for report in reports:
        closest = report.closest(report.measured, broken=True)
        broken += int((closest.label != "").sum())
        try:
            shown += _examples(report, samples, names, quota, BYTES // len(reports))
        except ValueError:  # of other images, or the records are of other shapes: damaged
            return None
    return Gallery(shown, broken) if shown else None


def _examples(
    report: Measurements,
    samples: Samples,
    names: Sequence[str] | None,
    most: int,
    size: int,
) -> Iterator[Picture]:
    """At most so many of the closest examples of a report, in about so many bytes."""
    for example in closest_examples(report, samples, most):
        if size < 0:
            return
        picture = _side_by_side(example, report)
        size -= len(picture)
        label, predicted = class_names(names, [example.label, example.predicted])
        yield Picture(
            report.name, example.attack, example.number, label, predicted, example.distance, picture
        )


def _side_by_side(example: Example, report: Measurements) -> str:
    """The tiles of an example side by side, as a data URI."""
    from PIL import Image

    pixels = [(tile * 255).round().astype(np.uint8) for tile in tiles_of(example, report)]
    images = [Image.fromarray(as_pixels(tile)) for tile in pixels]
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
