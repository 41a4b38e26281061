"""Images and labels as users hand them over, as tensors."""

import math
from collections.abc import Iterable, Iterator, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from attacks.messages import described, one_line
from benchmark.data.dataset import Split
from benchmark.errors import UserError
from benchmark.images import BLOCK, MOST_BYTES, Images, too_dark

# How many images of a Dataset are put together at a time.
_AT_ONCE = 256


def read_given(x: Any, y: Any, scale: float | None) -> tuple[Tensor | Images, Tensor]:
    """Images (n, *shape), floats, and labels (n,), int64, from what a user handed over.

    x      a tensor, an array, a data frame or nested lists; or, without y, a Dataset or DataLoader
           of images with their labels, an iterable of such batches, or a `Split`.
    y      labels as integers of any width (n,) or (n, 1), or as one-hot rows (n, classes).
    scale  what images are divided by; integer images need one.

    Raises UserError, in one line with the fix, for what cannot be evaluated.
    """
    if y is None:
        x, y = (x.x, x.y) if isinstance(x, Split) else _joined(x)
    elif isinstance(x, Split):
        raise UserError("x holds its labels: leave y out, or pass x.x and y")
    elif isinstance(x, Dataset | DataLoader | Iterator):
        raise UserError(
            f"x is a {type(x).__name__}, whose batches hold the labels: leave y out, as in "
            "evaluate(model, x, eps=...)"
        )
    images = x if isinstance(x, Images) else _tensor(x, "x")
    if not images.shape.numel():
        raise UserError(f"x holds no images: its shape is {tuple(images.shape)}")
    labels = _labels(y)
    if not len(images.shape) > 1:
        raise UserError(f"x must hold one row or image per sample, not {tuple(images.shape)}")
    if len(images) != len(labels):
        raise UserError(
            f"y must hold one label per image: x {tuple(images.shape)}, y {tuple(labels.shape)}"
        )
    if scale is not None and (not isinstance(scale, int | float) or not 0 < scale < math.inf):
        raise UserError(f"scale must be a number above 0, not {scale!r}")
    if isinstance(images, Tensor):
        images = _floats(images, scale)
    elif scale is not None:
        images = images.changed(lambda block: block / scale, images.dtype)
    return images, labels


def _floats(images: Tensor, scale: float | None) -> Tensor | Images:
    """Images (n, *shape) as floats. Many that are kept in fewer bytes stay so."""
    if images.is_complex() or images.dtype == torch.bool:
        raise UserError(f"x must hold real numbers, not {images.dtype}")
    if images.is_floating_point() and images.dtype.itemsize == 1:
        images = images.float()  # torch computes nothing in it
    if images.is_floating_point():
        count = sum(int(block.isnan().flatten(1).any(1).sum()) for block in images.split(BLOCK))
        if count:
            raise UserError(
                f"x holds NaN in {count} of {len(images)} samples: replace it, or leave them out"
            )
    elif scale is None:
        raise UserError(
            f"x must hold floats in [0, 1], not {images.dtype}: pass scale=255 for images that go "
            "up to 255"
        )
    if scale is None:
        return images

    if wrong := too_dark(float(images.max()), scale):
        raise UserError(f"x: {wrong}")

    def scaled(block: Tensor) -> Tensor:
        return (block if block.dtype == torch.float64 else block.float()) / scale

    if images.dtype == torch.float64 or images.numel() * 4 <= MOST_BYTES:
        return scaled(images)
    rows = np.arange(len(images))
    return Images(lambda some: images[torch.from_numpy(some)], rows, images.shape[1:]).changed(
        scaled
    )


def _joined(data: Any) -> tuple[Tensor, Tensor]:
    """All images and labels of a Dataset, a DataLoader or an iterable of batches."""
    if isinstance(data, Tensor | np.ndarray) or not isinstance(data, Iterable | Dataset):
        raise UserError("y is missing: pass labels, or a Dataset or DataLoader that holds them")
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=_AT_ONCE)
    images, labels = [], []
    generators = {
        generator: generator.get_state()
        for holder in (data, getattr(data, "sampler", None))
        if isinstance(generator := getattr(holder, "generator", None), torch.Generator)
    }
    try:
        for batch in data:
            if not isinstance(batch, Sequence) or len(batch) != 2:
                held = (
                    f"{len(batch)} parts" if isinstance(batch, Sequence) else type(batch).__name__
                )
                raise UserError(f"each batch must be (images, labels), not {held}")
            images.append(_tensor(batch[0], "x"))
            _refuse_names(batch[1])
            labels.append(_tensor(batch[1], "y"))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the data cannot be read: {described(error)}") from error
    finally:
        for generator, state in generators.items():
            generator.set_state(state)
    if not images:
        raise UserError("the data holds no batches")
    single = labels[0].dim() == 0  # an IterableDataset yields samples, not batches
    try:
        join = torch.stack if single else torch.cat
        return join(images), join(labels)
    except RuntimeError as error:
        raise UserError(f"batches do not fit together: {described(error)}") from error


def _tensor(values: Any, name: str) -> Tensor:
    """A tensor of what may be a tensor, an array, a data frame, a series, a number or lists."""
    if isinstance(values, Tensor):
        if values.layout != torch.strided or values.is_meta or values.is_quantized:
            raise UserError(f"{name} must be a dense tensor with values")
        if values.is_nested:
            raise UserError(f"{name} must hold samples of one shape, not a nested tensor")
        return values.detach()
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise UserError(f"{name} has masked entries: fill them, or leave their samples out")
    try:
        array = np.asarray(values)
        if array.dtype == object:
            array = array.astype(np.float64)  # columns of different numeric types
        if array.dtype.kind not in "biufc":
            raise UserError(
                f"{name} must hold numbers, not {array.dtype.type.__name__.rstrip('_')}"
            )
        if array.dtype in (np.uint16, np.uint32, np.uint64):
            array = array.astype(np.int64)  # torch knows few operations on these
        elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        # A copy where torch needs one: it has no negative strides, and warns of what is read-only.
        plain = array.flags.writeable and min(array.strides, default=0) >= 0
        return torch.from_numpy(array if plain else np.array(array))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{name} must hold numbers: {described(error)}") from error


def _labels(given: Any) -> Tensor:
    """Labels (n,) of integers (n,) or (n, 1), or one-hot rows (n, classes)."""
    _refuse_names(given)
    y = _tensor(given, "y")
    if y.dim() == 2 and y.shape[1] > 1:
        ones = (y == 1).sum(1)
        if not bool(((y == 0) | (y == 1)).all() and (ones == 1).all()):
            raise UserError(
                f"y must hold one label per image, or one-hot rows, not {tuple(y.shape)} numbers"
            )
        return y.to(torch.uint8).argmax(1)
    if y.dim() == 2:
        y = y[:, 0]
    if y.dim() not in (1, 2):
        raise UserError(f"y must hold one label per image, not {tuple(y.shape)}")
    if y.dtype == torch.bool and len(y):
        raise UserError(_names_line(bool(y[0])))
    if y.isnan().any():
        raise UserError(f"y holds no label for {int(y.isnan().sum())} of {len(y)} images")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        cast = "y.long()" if isinstance(given, Tensor) else "numpy.asarray(y).astype(int)"
        raise UserError(f"y must hold integer labels, not {y.dtype}: pass {cast}")
    return y.to(torch.int64, copy=True)  # which attacks may be able to reach


def _refuse_names(given: Any) -> None:
    """Raises UserError where labels are the names of classes, as text is, and not their numbers."""
    if isinstance(given, Tensor):
        return
    try:
        values = np.asarray(given).ravel()
    except (TypeError, ValueError, RuntimeError):
        return  # `_tensor` says what is wrong
    if values.dtype.kind in "biufc":
        return
    for value in values.tolist() if values.dtype.kind != "V" else ():
        if value is not None and not isinstance(value, Number | np.generic | Tensor):
            raise UserError(_names_line(value))


def _names_line(value: Any) -> str:
    """What to do about labels such as this one."""
    return (
        f"y holds {type(value).__name__} values such as {one_line(repr(value))}: number the "
        "classes from 0 to k-1 in the order of the model's logits; "
        "numpy.unique(y, return_inverse=True)[1] does so for classes that are sorted"
    )
