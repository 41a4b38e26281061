"""Variants of data sets that change images and not what they show.

Each function maps images (n, C, H, W), float32 in [0, 1], to as many of the same shape; those of
both splits are changed. A variant is added here alone: a function, and a line in TRANSFORMS. The
first paragraph of the function's docstring is what `bestattack list datasets` says of it.

Source: "On the Sensitivity of Adversarial Robustness to Input Data Distributions" (Ding et al.
2019), to whose sections the functions refer.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from benchmark.data.dataset import Dataset, Split, Variant
from benchmark.data.files import DataError
from benchmark.images import changed
from benchmark.spec.run_spec import Part

# Images that are changed at once: in float64, a whole training set would take gigabytes.
_BLOCK = 4096


def binarize(x: Tensor) -> Tensor:
    """Round each value to 0 or 1, and one half to 1.

    Source: section 2.
    """
    return (x >= 0.5).to(x.dtype)


def smooth(x: Tensor, rows: int, columns: int) -> Tensor:
    """Take, at each pixel, the larger of the image and its mean over K x K pixels around it;
    smooth=RxC, over R rows and C columns.

    Source: section 3.1, "average filter". Unstated there: the mean is over those pixels that lie
    inside the image, and an even window reaches one pixel further down and right. The source's text
    has one size; its log volumes (table 6) and inter-class distances (table 1) are, to a percent,
    those of that many rows and a single column.
    """
    around = [(columns - 1) // 2, columns // 2, (rows - 1) // 2, rows // 2]
    total, inside = (
        avg_pool2d(pad(image, around), (rows, columns), stride=1)
        for image in (x.double(), torch.ones_like(x[:1], dtype=torch.float64))
    )
    return x.maximum((total / inside).to(x.dtype))


def saturate(x: Tensor, level: float) -> Tensor:
    """Push values to 0 and 1 for P above 2, and to 1/2 for P below 2; saturate=inf leaves 0 and 1
    alone.

    Each value v becomes sign(2v - 1) |2v - 1|^(2 / level) / 2 + 1/2. At an infinite level, a value
    of 1/2 stays what it is. Source: section 3.1.
    """
    signed = 2 * x.double() - 1
    return (signed.sign() * signed.abs() ** (2 / level) / 2 + 0.5).to(x.dtype)


def gamma(x: Tensor, exponent: float) -> Tensor:
    """Raise each value to the power G: images become brighter for G below 1, and darker above.

    Source: section 4.1.
    """
    return (x.double() ** exponent).to(x.dtype)


def scale(x: Tensor, factor: float) -> Tensor:
    """Move each value v to 1/2: A * (v - 1/2) + 1/2.

    Source: section 5.2.
    """
    return (factor * (x.double() - 0.5) + 0.5).to(x.dtype)


def edge(x: Tensor) -> Tensor:
    """Leave Canny's edges: 1 on those that the detector finds with sigma 1, and 0 elsewhere.

    Source: section 4.2. Unstated there: the thresholds, here scikit-image's own. Colour channels
    are taken one by one.
    """
    from skimage.feature import canny

    edges = [canny(channel, sigma=1) for channel in x.flatten(0, 1).numpy()]
    return torch.from_numpy(np.stack(edges)).view(x.shape).to(x.dtype)


def _plain(name: str, function: Callable[[Tensor], Tensor], needs_images: bool = False) -> Variant:
    """A variant of that name which takes no value."""

    def make(dataset: Dataset, value: str) -> Dataset:
        if value:
            raise DataError(f"{dataset.name}: {name} takes no value, not {value!r}")
        if needs_images:
            _check_images(dataset, name)
        return _changed(dataset, name, function)

    return Variant.of(name, make, function)


def _valued(
    form: str,
    function: Callable[[Tensor, float], Tensor],
    fits: Callable[[float], bool],
    kind: str,
    example: str,
) -> Variant:
    """A variant which takes a number that `fits`: `kind` says in words which numbers do."""
    name = form.partition("=")[0]

    def make(dataset: Dataset, value: str) -> Dataset:
        number = to_number(value)
        if not fits(number):
            raise DataError(
                f"{dataset.name}: {name} needs {kind}, as in {name}={example}, not {value!r}"
            )
        number = int(number) if number.is_integer() else number
        return _changed(dataset, f"{name}={number}", lambda x: function(x, number))

    return Variant.of(form, make, function)


def _smooth(dataset: Dataset, value: str) -> Dataset:
    """The variant smooth=K, of K x K pixels, or smooth=RxC, of R rows and C columns."""
    _check_images(dataset, "smooth")
    sizes = [int(size) if size.isdecimal() else 0 for size in value.split("x")]
    if len(sizes) > 2 or min(sizes) < 1:
        raise DataError(
            f"{dataset.name}: smooth needs a size or rows x columns, as in smooth=3 or "
            f"smooth=3x1, not {value!r}"
        )
    rows, columns = sizes[0], sizes[-1]
    name = f"smooth={rows}" if rows == columns else f"smooth={rows}x{columns}"
    return _changed(dataset, name, lambda x: smooth(x, rows, columns))


def _check_images(dataset: Dataset, name: str) -> None:
    """Raises DataError where a variant of that name is asked for rows of a table."""
    if len(dataset.shape) != 3:
        raise DataError(
            f"{dataset.name}: {name} is for images, not for rows of {dataset.shape[0]} features"
        )


def to_number(text: str) -> float:
    """The number that a user wrote; NaN where the text is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _changed(dataset: Dataset, variant: str, function: Callable[[Tensor], Tensor]) -> Dataset:
    """The data set with its images changed by a function, named after the variant."""
    return replace(
        dataset,
        name=f"{dataset.name}/{variant}",
        features=(),  # whose bounds are those of other values
        load=partial(_load_changed, dataset.load, function),
    )


def _load_changed(
    load: Callable[[Part], Split], function: Callable[[Tensor], Tensor], part: Part
) -> Split:
    split = load(part)
    return Split(changed(split.x, function, _BLOCK), split.y)


TRANSFORMS = (
    _plain("binarize", binarize),
    Variant.of("smooth=K", _smooth, smooth),
    _valued("saturate=P", saturate, lambda n: n > 0, "a number above 0, or inf", "16"),
    _valued("gamma=G", gamma, lambda n: 0 < n < math.inf, "a number above 0", "0.7"),
    _valued("scale=A", scale, lambda n: 0 < n <= 1, "a number above 0, up to 1", "0.8"),
    _plain("edge", edge, needs_images=True),
)
