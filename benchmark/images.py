"""Samples that are too many to keep as floats: they stay as they were stored, until they are read.

50,000 images of 3 x 224 x 224 pixels are 30 GB of float32, 7.5 GB as they are stored, and less in
files that are read when they are needed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.int64]

# What takes more bytes than this, as float32, is not kept as a tensor.
MOST_BYTES = 2**30

# Images whose largest value is a smaller part of what they are divided by than this were divided by
# too much.
_DARKEST = 0.02

# How many samples are read at once, where all of them are looked at.
BLOCK = 256


def too_dark(most: float, scale: float) -> str:
    """Why images up to `most` cannot be meant to be divided by `scale`; empty where they may be."""
    if not 0 < most < _DARKEST * scale:
        return ""
    return f"the largest value is {most:g}, of {scale:g}: is scale what white is in these images?"


@dataclass(frozen=True, eq=False)
class Images:
    """Samples (n, *shape) that are read when they are asked for, as rows of a tensor are.

    read   gives the samples in some rows (k,), int64, as (k, *sample_shape), always the same.
    rows   (n,), which of those that can be read there are, and in what order.
    sample_shape  of one of them.
    dtype  of what is read.

    `x[:5]`, `x[rows]` with rows as a tensor or an array, and `x.split(size)` read what they name;
    `x.to(device)` reads all. `only` and `changed` read nothing.

    >>> images = Images(lambda rows: torch.from_numpy(rows)[:, None] / 10, np.arange(4), (1,))
    >>> len(images), images.shape, images.only(np.array([3, 1]))[:].flatten()
    (4, torch.Size([4, 1]), tensor([0.3000, 0.1000]))
    """

    read: Callable[[Rows], Tensor]
    rows: Rows
    sample_shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """The shape (n, *shape) of all of them."""
        return torch.Size((len(self.rows), *self.sample_shape))

    def __getitem__(self, rows: Any) -> Tensor:
        """Those in some rows, as a tensor: a slice, or numbers or booleans for them."""
        chosen = self.rows[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        samples = self.read(np.atleast_1d(chosen))
        return samples if np.ndim(chosen) else samples[0]

    def split(self, size: int) -> Iterator[Tensor]:
        """All of them, `size` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, *how: Any) -> Tensor:
        """All of them, as a tensor on another device or of another dtype."""
        return self[:].to(*how)

    def only(self, rows: Any) -> "Images":
        """Those in some rows, which are not read yet."""
        chosen = self.rows[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        return Images(self.read, chosen, self.sample_shape, self.dtype)

    def changed(
        self, function: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32
    ) -> "Images":
        """What a function makes of each block of samples, once that is read."""
        return Images(partial(_changed, function, self.read), self.rows, self.sample_shape, dtype)


def _changed(
    function: Callable[[Tensor], Tensor], read: Callable[[Rows], Tensor], rows: Rows
) -> Tensor:
    return function(read(rows))


def kept(read: Callable[[Rows], Tensor], rows: Rows, shape: tuple[int, ...]) -> Tensor | Images:
    """The samples in some rows: a tensor if that takes at most `MOST_BYTES`, else as they are."""
    images = Images(read, rows, shape)
    return images[:] if images.shape.numel() * 4 <= MOST_BYTES else images


def only(x: Tensor | Images, rows: Any) -> Tensor | Images:
    """Samples in some rows, which are not read."""
    return x.only(rows) if isinstance(x, Images) else x[rows]


def changed(
    x: Tensor | Images, function: Callable[[Tensor], Tensor], block: int
) -> Tensor | Images:
    """What a function makes of samples, `block` at a time, as float32."""
    if isinstance(x, Images):
        return x.changed(function)
    return torch.cat([function(samples) for samples in x.split(block)])
