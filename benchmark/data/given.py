"""Images and labels as users hand them over, as tensors."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from attacks.messages import described
from benchmark.errors import UserError

# How many images of a Dataset are put together at a time.
_AT_ONCE = 256


def read_given(x: Any, y: Any, scale: float | None) -> tuple[Tensor, Tensor]:
    """Images (n, *shape), floats, and labels (n,), int64, from what a user handed over.

    x      a tensor, an array, a data frame or nested lists; or, without y, a Dataset or DataLoader
           of images with their labels, or an iterable of such batches.
    y      labels as integers of any width (n,) or (n, 1), or as one-hot rows (n, classes).
    scale  what images are divided by; integer images need one.

    Raises UserError, in one line with the fix, for what cannot be evaluated.
    """
    if y is None:
        x, y = _joined(x)
    images, labels = _tensor(x, "x"), _labels(_tensor(y, "y"))
    if not images.dim() > 1:
        raise UserError(f"x must hold one row or image per sample, not {tuple(images.shape)}")
    if len(images) != len(labels) or not len(images):
        raise UserError(
            f"y must hold one label per image: x {tuple(images.shape)}, y {tuple(labels.shape)}"
        )
    if images.is_complex() or images.dtype == torch.bool:
        raise UserError(f"x must hold real numbers, not {images.dtype}")
    if images.is_floating_point() and images.dtype.itemsize == 1:
        images = images.float()  # torch computes nothing in it
    if scale is not None:
        if not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise UserError(f"scale must be a number above 0, not {scale!r}")
        wide = images if images.dtype == torch.float64 else images.float()
        return wide / scale, labels
    if not images.is_floating_point():
        raise UserError(
            f"x must hold floats in [0, 1], not {images.dtype}: pass scale=255 for images that go "
            "up to 255"
        )
    return images, labels


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
        # A copy, so that nothing can reach what the user holds, and strides may be negative.
        return torch.from_numpy(np.array(array))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{name} must hold numbers: {described(error)}") from error


def _labels(y: Tensor) -> Tensor:
    """Labels (n,) of integers (n,) or (n, 1), or one-hot rows (n, classes)."""
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
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise UserError(f"y must hold integer labels, not {y.dtype}: pass y.long()")
    return y.to(torch.int64)
