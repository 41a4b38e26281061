"""Variants of data sets whose images are changed and whose meaning is not (Ding et al. 2019, "On
the Sensitivity of Adversarial Robustness to Input Data Distributions", below).

Each function maps images (n, C, H, W), float32 in [0, 1], to as many of the same shape.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from benchmark.data.dataset import Dataset, Split
from benchmark.data.files import DataError
from benchmark.spec.run_spec import Part

# Images that are changed at once: in float64, a whole training set would take gigabytes.
_BLOCK = 4096

Variant = Callable[[Dataset, str], Dataset]


def binarize(x: Tensor) -> Tensor:
    """Each value rounded to 0 or 1, one half to 1 (section 2)."""
    return (x >= 0.5).to(x.dtype)


def smooth(x: Tensor, rows: int, columns: int) -> Tensor:
    """The larger, at each pixel, of the image and its mean over rows x columns pixels around it
    (section 3.1, "average filter").

    Unstated there: the mean is over those pixels that lie inside the image, and an even window
    reaches one pixel further down and right. The source's text has one size; its log volumes (table
    6) and inter-class distances (table 1) are, to a percent, those of that many rows and a single
    column.
    """
    around = [(columns - 1) // 2, columns // 2, (rows - 1) // 2, rows // 2]
    total, inside = (
        avg_pool2d(pad(image, around), (rows, columns), stride=1)
        for image in (x.double(), torch.ones_like(x[:1], dtype=torch.float64))
    )
    return x.maximum((total / inside).to(x.dtype))


def saturate(x: Tensor, level: float) -> Tensor:
    """sign(2v - 1) |2v - 1|^(2 / level) / 2 + 1/2 for each value v (section 3.1).

    Level 2 changes nothing, one below pulls to 1/2, one above pushes to 0 and 1; infinity leaves
    only these, and 1/2 where it was.
    """
    signed = 2 * x.double() - 1
    return (signed.sign() * signed.abs() ** (2 / level) / 2 + 0.5).to(x.dtype)


def gamma(x: Tensor, exponent: float) -> Tensor:
    """v^exponent for each value v (section 4.1): brighter below 1, darker above."""
    return (x.double() ** exponent).to(x.dtype)


def scale(x: Tensor, factor: float) -> Tensor:
    """factor * (v - 1/2) + 1/2 for each value v (section 5.2)."""
    return (factor * (x.double() - 0.5) + 0.5).to(x.dtype)


def edge(x: Tensor) -> Tensor:
    """1 on the edges that Canny's detector finds with sigma 1, 0 elsewhere (section 4.2).

    Unstated there: the thresholds, here scikit-image's own. Colour channels are taken one by one.
    """
    from skimage.feature import canny

    found = [canny(channel, sigma=1) for channel in x.flatten(0, 1).numpy()]
    return torch.from_numpy(np.stack(found)).view(x.shape).to(x.dtype)


def _plain(name: str, function: Callable[[Tensor], Tensor]) -> Variant:
    """The variant of that name, which takes no value."""

    def variant(dataset: Dataset, value: str) -> Dataset:
        if value:
            raise DataError(f"{dataset.name}: {name} takes no value, not {value!r}")
        return _changed(dataset, name, function)

    return variant


def _valued(
    name: str,
    function: Callable[..., Tensor],
    fits: Callable[[float], bool],
    kind: str,
    example: str,
) -> Variant:
    """The variant of that name, which takes a number that `fits`: `kind` says which do."""

    def variant(dataset: Dataset, value: str) -> Dataset:
        number = to_number(value)
        if not fits(number):
            raise DataError(
                f"{dataset.name}: {name} needs {kind}, as in {name}={example}, not {value!r}"
            )
        number = int(number) if number.is_integer() else number
        return _changed(dataset, f"{name}={number}", lambda x: function(x, number))

    return variant


def _smooth(dataset: Dataset, value: str) -> Dataset:
    """The variant smooth=K, of K x K pixels, or smooth=RxC, of R rows and C columns."""
    sizes = [int(one) if one.isdecimal() else 0 for one in value.split("x")]
    if len(sizes) > 2 or min(sizes) < 1:
        raise DataError(
            f"{dataset.name}: smooth needs a size or rows x columns, as in smooth=3 or "
            f"smooth=3x1, not {value!r}"
        )
    rows, columns = sizes[0], sizes[-1]
    name = f"smooth={rows}" if rows == columns else f"smooth={rows}x{columns}"
    return _changed(dataset, name, lambda x: smooth(x, rows, columns))


def to_number(text: str) -> float:
    """The number that a user wrote, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _changed(dataset: Dataset, variant: str, function: Callable[[Tensor], Tensor]) -> Dataset:
    return replace(
        dataset,
        name=f"{dataset.name}/{variant}",
        load=partial(_load_changed, dataset.load, function),
    )


def _load_changed(
    load: Callable[[Part], Split], function: Callable[[Tensor], Tensor], part: Part
) -> Split:
    split = load(part)
    return Split(torch.cat([function(x) for x in split.x.split(_BLOCK)]), split.y)


TRANSFORMS: dict[str, Variant] = {
    "binarize": _plain("binarize", binarize),
    "smooth": _smooth,
    "saturate": _valued("saturate", saturate, lambda n: n > 0, "a number above 0, or inf", "16"),
    "gamma": _valued("gamma", gamma, lambda n: 0 < n < math.inf, "a number above 0", "0.7"),
    "scale": _valued("scale", scale, lambda n: 0 < n <= 1, "a number above 0, up to 1", "0.8"),
    "edge": _plain("edge", edge),
}
