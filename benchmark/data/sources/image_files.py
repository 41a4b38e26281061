"""Images in files such as .png and .jpg: which can be read, and how they become tensors of one
shape."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from attacks.messages import described
from benchmark.data.files import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# The ends of names of files that are images. Others are left alone.
SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
# The modes, as Pillow names them, of images that are grey, and of those that have colours. All have
# 8 bits for a channel at most.
_GREY, _COLOURED = (
    ("1", "L", "LA"),
    ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "RGBX", "La", "RGBa"),
)

Size = tuple[int, int]


@dataclass(frozen=True)
class Picture:
    """An image that is not read yet: its name, in messages, and what gives its file or content."""

    name: str
    content: Callable[[], Path | bytes]


@dataclass(frozen=True)
class Cut:
    """How images get one size.

    size  of the shorter side, to which they are resized first; None: they are not.
    crop  the side of the square that is then cut out of the middle; None: `size`, where there is
          one.

    Both are done as torchvision's Resize and CenterCrop do them.
    """

    size: int | None
    crop: int | None

    @property
    def side(self) -> int | None:
        """The side of the square that is cut out."""
        return self.crop or self.size

    def resized(self, size: Size) -> Size:
        """The width and height of an image after it was resized."""
        if self.size is None:
            return size
        shorter, longer = min(size), max(size)
        along = int(self.size * longer / shorter)
        return (self.size, along) if size[0] <= size[1] else (along, self.size)

    def final(self, size: Size) -> Size:
        """The width and height that come of those of an image. Raises ValueError where there is
        less than what is cut out."""
        width, height = self.resized(size)
        if self.side is None:
            return width, height
        if min(width, height) < self.side:
            raise ValueError(
                f"{width}x{height} pixels, of which crop={self.side} cannot be cut out"
            )
        return self.side, self.side

    def __call__(self, image: "Image") -> "Image":
        """The image, resized and cut."""
        from PIL.Image import Resampling

        if self.size is not None:
            image = image.resize(self.resized(image.size), Resampling.BILINEAR)
        width, height = self.final(image.size)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))


def shape_of(pictures: Sequence[Picture], cut: Cut) -> tuple[int, int, int]:
    """The shape (C, H, W) of all of the pictures, of which only the beginnings are read: 3 channels
    where any is coloured. Raises DataError where one cannot be read or they differ in size."""
    first: tuple[str, Size] | None = None
    is_coloured = False
    for picture in pictures:
        with _opened(picture) as image:
            if image.mode not in (*_GREY, *_COLOURED):
                raise DataError(
                    f"{picture.name} has more than 8 bits for a channel ({image.mode}): save it "
                    "with 8, or give arrays, as npz=FILE"
                )
            is_coloured |= image.mode in _COLOURED
            try:
                size = cut.final(image.size)
            except ValueError as error:
                raise DataError(f"{picture.name} has {error}: add size={cut.side}") from error
        if first is None:
            first = picture.name, size
        elif first[1] != size:
            raise DataError(
                f"{first[0]} has {first[1][0]}x{first[1][1]} pixels and {picture.name} "
                f"{size[0]}x{size[1]}: add size={min(*first[1], *size)} to the name, to resize and "
                "cut them"
            )
    assert first is not None  # nobody asks for the shape of no pictures
    return 3 if is_coloured else 1, first[1][1], first[1][0]


def read_pictures(pictures: Sequence[Picture], cut: Cut, shape: tuple[int, int, int]) -> Tensor:
    """The pictures as (n, *shape), float32 in [0, 1]. Raises DataError where one cannot be read."""
    channels, height, width = shape
    pixels = np.empty((len(pictures), height, width, channels), np.uint8)
    for row, picture in enumerate(pictures):
        with _opened(picture) as image:
            converted = cut(image.convert("L" if channels == 1 else "RGB"))
            pixels[row] = np.asarray(converted, np.uint8).reshape(height, width, channels)
    channels_first = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return torch.from_numpy(np.divide(channels_first, 255, dtype=np.float32))


@contextmanager
def _opened(picture: Picture) -> "Iterator[Image]":
    """The image of a picture, while the context lasts. Raises DataError where it cannot be read,
    also where that is noticed in the context."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images in files need pillow: pip install pillow") from error
    try:
        content = picture.content()
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            yield image
    except DataError:
        raise
    except Exception as error:  # decoders raise anything
        raise DataError(f"{picture.name} cannot be read: {described(error)}") from error
