"""The options of data in files, as a user gave them, such as scale=255 and split=0.8."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmark.data.files import DataError
from benchmark.data.transforms import to_number


@dataclass(frozen=True)
class Given:
    """What a name says of data in files, besides variants.

    kind     what stands before the "=" of the name.
    path     of the file or folder; None for data that is sought elsewhere, by its name `place`.
    options  the values of options, by their names.
    files    the files that options name.

    What its methods do not understand, they refuse with DataError, in one line.
    """

    kind: str
    place: str
    path: Path | None
    options: Mapping[str, str]
    files: Mapping[str, Path]

    @property
    def at(self) -> Path:
        """The path of data that must have one."""
        assert self.path is not None  # `load_source` has refused it otherwise
        return self.path

    @property
    def base(self) -> str:
        """The name of the data alone. The folders around it do not belong to it: data that was
        moved is the same."""
        return f"{self.kind}={self.place if self.path is None else self.path.absolute().name}"

    def name(self, **settled: object) -> str:
        """The full name of the data set: the base with those options whose value is not None."""
        words = [f"{key}={value}" for key, value in settled.items() if value is not None]
        return "/".join([self.base, *words])

    def share(self) -> float | None:
        """What part of the samples is for training: split."""
        value = self.options.get("split")
        if value is None:
            return None
        share = to_number(value)
        if not 0 < share < 1:
            raise DataError(
                f"{self.base}: split needs the share to train on, between 0 and 1, as in "
                f"split=0.8, not {value!r}"
            )
        return share

    def scale(self) -> float | None:
        """What values are divided by: scale."""
        value = self.options.get("scale")
        if value is None:
            return None
        scale = to_number(value)
        if not 1 <= scale < math.inf:
            raise DataError(
                f"{self.base}: scale needs the largest value that there can be, as in scale=255, "
                f"not {value!r}"
            )
        return int(scale) if scale.is_integer() else scale

    def pixels(self, key: str) -> int | None:
        """A number of pixels, such as that of size."""
        value = self.options.get(key)
        if value is None:
            return None
        if not (value.isascii() and value.isdecimal() and int(value) > 0):
            raise DataError(
                f"{self.base}: {key} needs a number of pixels, as in {key}=64, not {value!r}"
            )
        return int(value)

    def file(self, key: str) -> Path | None:
        """A file that an option names."""
        value = self.options.get(key)
        if value is None:
            return None
        if key not in self.files or not self.files[key].is_file():
            raise DataError(f"{self.base}: {key}={value} is not a file")
        return self.files[key]
