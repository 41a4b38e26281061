"""What tests of data sets ask of splits."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmark.data.dataset import Split
from benchmark.data.files import DataError


def refusal(load: Callable[[], object]) -> str:
    """What is said of data that cannot be loaded, in one line."""
    with pytest.raises(DataError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(a: Split, b: Split) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def rows(x: Tensor, y: Tensor) -> Counter[bytes]:
    """How often each image is there with each label."""
    pairs = zip(x, y, strict=True)
    return Counter(image.numpy().tobytes() + bytes([int(label)]) for image, label in pairs)
