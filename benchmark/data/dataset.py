"""What a data set is, named classes and two splits of labelled images or rows, and what a variant
is."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacks.messages import described
from benchmark.data.files import DataError
from benchmark.images import BLOCK, Images, only
from benchmark.spec.run_spec import Part


def fingerprint(*tensors: Tensor | Images) -> str:
    """The SHA-256, in hexadecimal, of shape, dtype and bytes of images, labels and so on."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        for block in tensor.split(BLOCK) if isinstance(tensor, Images) else (tensor,):
            # NumPy has no bfloat16, and float32 has all its numbers.
            plain = block.float() if block.dtype == torch.bfloat16 else block
            digest.update(plain.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Split:
    """Images `x`, float32 (n, C, H, W) in [0, 1], or rows of a table (n, features), and labels `y`,
    int64 (n,), on the CPU.

    Images that take more than a gigabyte as floats are no tensor but `Images`, of which `x[rows]`
    is a tensor.
    """

    x: Tensor | Images
    y: Tensor

    @classmethod
    def scaled(cls, x: NDArray[Any], white: float, y: NDArray[Any]) -> "Split":
        """From arrays: images (n, *shape) of numbers up to `white`, and labels (n,)."""
        divided = np.divide(x, white, dtype=np.float32)
        return cls(torch.from_numpy(divided), torch.from_numpy(y.astype(np.int64)))

    def only(self, rows: Any) -> "Split":
        """The samples in some rows."""
        return Split(only(self.x, rows), self.y[rows])


class Feature(NamedTuple):
    """A feature of a table: its name, and the values in its own units that become 0 and 1."""

    name: str
    lower: float
    upper: float


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set, whose splits are loaded when first asked for, each on its own.

    labels    the names of the classes.
    shape     (C, H, W) of an image, or (features,) of a row of a table.
    load      gives either split. `train` and `test` keep what it gave, and raise DataError where
              that is not what `Split` says.
    frozen    (*shape), bool, the features that attacks must not change; None: there are none.
    features  of a table, in the order of its columns: an eps is a share of the range of each.
              Empty for images, and where a variant changed the values.

    Raises DataError where `frozen` has another shape, or leaves nothing that can be attacked.

    >>> split = Split(torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]))
    >>> dataset = Dataset("noise", ("quiet", "loud"), (1, 2, 2), lambda part: split)
    >>> dataset.classes, len(dataset.first("test", 3).y)
    (2, 3)
    """

    name: str
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    load: Callable[[Part], Split]
    frozen: Tensor | None = None
    features: tuple[Feature, ...] = ()

    def __post_init__(self) -> None:
        if self.frozen is None:
            return
        if self.frozen.dtype != torch.bool or self.frozen.shape != self.shape:
            raise DataError(f"{self.name}: frozen must be bool {self.shape}, as a sample is")
        if bool(self.frozen.all()):
            raise DataError(
                f"{self.name}: all features are frozen, so that nothing can be attacked"
            )

    @property
    def noun(self) -> str:
        """What messages call its samples."""
        return "images" if len(self.shape) > 1 else "rows"

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.labels)

    @cached_property
    def train(self) -> Split:
        """The split to train on."""
        return self._checked("train")

    @cached_property
    def test(self) -> Split:
        """The split to measure on."""
        return self._checked("test")

    def split(self, part: Part) -> Split:
        """One of the two splits."""
        return self.train if part == "train" else self.test

    def fingerprint(self, part: Part) -> str:
        """A hash of the content of a split: see `fingerprint`."""
        return self._train_fingerprint if part == "train" else self._test_fingerprint

    @cached_property
    def _train_fingerprint(self) -> str:
        return fingerprint(self.train.x, self.train.y)

    @cached_property
    def _test_fingerprint(self) -> str:
        return fingerprint(self.test.x, self.test.y)

    def first(self, part: Part, count: int | None = None) -> Split:
        """The first `count` samples of a split, by default all. Raises DataError where there are
        fewer."""
        split = self.split(part)
        if count is not None and count > len(split.y):
            raise DataError(
                f"{self.name} has {len(split.y)} {part} {self.noun}, not {count}: lower samples"
            )
        return split.only(slice(count))

    def _checked(self, part: Part) -> Split:
        try:
            split = self.load(part)
        except DataError:
            raise
        except Exception as error:  # whatever a plugin raises
            raise DataError(f"{self.name}: {described(error)}") from error
        x, y, n = split.x, split.y, len(split.y)
        if n == 0 or x.shape != (n, *self.shape) or y.shape != (n,):
            got = f"{self.noun} {tuple(x.shape)} and labels {tuple(y.shape)}"
            raise DataError(f"{self.name}: the {part} split has {got}, not (n, *{self.shape})")
        if isinstance(x, Images):
            x = x.changed(partial(self._in_range, part))
        else:
            self._in_range(part, x)
        if y.dtype != torch.int64 or not (y.min() >= 0 and y.max() < self.classes):
            raise DataError(
                f"{self.name}: the {part} labels are not int64 from 0 to {self.classes - 1}"
            )
        return Split(x, y)

    def _in_range(self, part: Part, x: Tensor) -> Tensor:
        """Samples, as they are. Raises DataError where they are not what they must be."""
        if x.dtype != torch.float32 or not (x.min() >= 0 and x.max() <= 1):
            raise DataError(f"{self.name}: the {part} {self.noun} are not float32 in [0, 1]")
        return x


@dataclass(frozen=True)
class Variant:
    """A change that the name of a data set asks for after a slash, as in mnist/pair=4-9.

    form   how it is written: its name and, if it takes a value, "=" and what stands for it.
    make   gives the changed data set, from a data set and the text of the value. Raises DataError
           where that value makes no sense.
    about  what it does: the first paragraph of the docstring of `make`, or of another function.
    """

    form: str
    make: Callable[[Dataset, str], Dataset]
    about: str

    @classmethod
    def of(
        cls,
        form: str,
        make: Callable[[Dataset, str], Dataset],
        documented: Callable[..., object] | None = None,
    ) -> "Variant":
        """A variant that is described by the docstring of `make`, or of a function `documented`."""
        text = inspect.getdoc(documented or make) or ""
        return cls(form, make, text.partition("\n\n")[0].replace("\n", " "))

    @property
    def name(self) -> str:
        """What stands before its value."""
        return self.form.partition("=")[0]

    def __call__(self, dataset: Dataset, value: str) -> Dataset:
        """The changed data set. Raises DataError where the value makes no sense."""
        return self.make(dataset, value)
