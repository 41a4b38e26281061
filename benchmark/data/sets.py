"""The data sets to measure on, by name: `base/key=value/...`, read from left to right.

Bases: digits, mnist, fashion-mnist and cifar10, those of `benchmark.data.photographs`, those that
others register, and KIND=PATH for data in files (`benchmark.data.sources.kinds`). Variants are in
`benchmark.data.variants.VARIANTS`, and `bestattack list datasets` says what each does. All of them
act on both splits, but scramble and train: mnist/binarize/scale=0.809/train=1000.

Labels of fashion-mnist: t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag,
ankle-boot. Labels of cifar10: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmark.data.dataset import Dataset, Split
from benchmark.data.files import DataError, read_cifar10, read_idx
from benchmark.data.sources.kinds import load_source, suggestion
from benchmark.data.variants import VARIANTS, hint
from benchmark.errors import UserError
from benchmark.spec.registry import DATASETS
from benchmark.spec.run_spec import Part
from benchmark.spec.source_names import is_source

_TEN = tuple("0123456789")
_FASHION = "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot"
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"


def load_dataset(name: str, root: str | Path | None = None) -> Dataset:
    """The data set of a name such as "mnist", or of data in files, "npz=images.npz/scale=255", with
    variants: "mnist/pair=4-9".

    root  where the files of data sets are sought first.

    The files of MNIST and its like are read, and missing ones downloaded, when a split is first
    asked for. Raises UserError, in one line, for a name that is unknown, and DataError, which is
    one, for an unknown option, variant or label, and for files that cannot be used.

    >>> dataset = load_dataset("digits/pair=4-9")
    >>> dataset.labels, dataset.shape
    (('4', '9'), (1, 8, 8))
    >>> tuple(dataset.test.x.shape)
    (72, 1, 8, 8)
    >>> load_dataset("digits/pear=4-9")
    Traceback (most recent call last):
    benchmark.data.files.DataError: digits/pear=4-9: unknown variant 'pear'...
    """
    folder = None if root is None else Path(root)
    if is_source(name):
        dataset, variants = load_source(name, folder)
    else:
        base, *variants = name.split("/")
        dataset = _registered(name, base)(folder)
    for variant in variants:
        key, _, value = variant.partition("=")
        if key not in VARIANTS:
            raise DataError(f"{name}: unknown variant {key!r}{hint(key, VARIANTS)}")
        dataset = VARIANTS[key](dataset, value)
    return dataset


def _registered(name: str, base: str) -> Callable[[Path | None], Dataset]:
    """What makes the data set that is registered as `base`. Raises UserError, which says what to
    write where the name is a path."""
    try:
        make: Callable[[Path | None], Dataset] = DATASETS.get(base)
    except UserError as error:
        if hint := suggestion(name):
            raise DataError(hint) from error
        raise
    return make


def digits(root: Path | None) -> Dataset:
    """Scikit-learn's 1797 handwritten digits of 8 x 8 pixels, without files (`root` is not used).

    Every fifth image of each class is in the test split: 355 images, and 1442 to train on.
    """
    return Dataset("digits", _TEN, (1, 8, 8), _load_digits)


def mnist(root: Path | None) -> Dataset:
    """MNIST: 60000 and 10000 handwritten digits of 28 x 28 pixels."""
    return Dataset("mnist", _TEN, (1, 28, 28), partial(_load_idx, "mnist", root))


def fashion_mnist(root: Path | None) -> Dataset:
    """Fashion-MNIST: 60000 and 10000 pieces of clothing of 28 x 28 pixels."""
    load = partial(_load_idx, "fashion-mnist", root)
    return Dataset("fashion-mnist", tuple(_FASHION.split()), (1, 28, 28), load)


def cifar10(root: Path | None) -> Dataset:
    """CIFAR-10: 50000 and 10000 colour photographs of 32 x 32 pixels."""
    load = partial(_load_cifar10, root)
    return Dataset("cifar10", tuple(_CIFAR10.split()), (3, 32, 32), load)


def _load_digits(part: Part) -> Split:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits needs scikit-learn: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    split = Split.scaled(images.reshape(-1, 1, 8, 8), 16, labels)
    # By a rule, since a random draw could change with a library's version.
    nth = (split.y[:, None] == torch.arange(10)).cumsum(0).gather(1, split.y[:, None])[:, 0]
    keep = (nth % 5 == 0) == (part == "test")
    return Split(split.x[keep], split.y[keep])


def _load_idx(base: str, root: Path | None, part: Part) -> Split:
    images, labels = read_idx(base, part, root)
    return Split.scaled(images, 255, labels)


def _load_cifar10(root: Path | None, part: Part) -> Split:
    images, labels = read_cifar10(part, root)
    return Split.scaled(images, 255, labels)
