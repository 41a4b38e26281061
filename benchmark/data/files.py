"""The files of data sets: find, fetch and check them, and parse those of MNIST, Fashion-MNIST and
CIFAR-10; those of others are parsed in `benchmark.data.photographs`.

Under a root lie `mnist/*.gz`, `fashion-mnist/*.gz` (or the same files uncompressed) and
`cifar10/cifar-10-batches-py/` or `cifar10/cifar-10-batches-bin/` (or these two without `cifar10/`).
What is read is checked against the md5 of the official file before it is parsed.
"""

import gzip
import hashlib
import io
import math
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from attacks.messages import one_line
from benchmark.data.places import Places, data_roots, files_of, find
from benchmark.errors import UserError
from benchmark.spec.run_spec import Part

Bytes = NDArray[np.uint8]
T = TypeVar("T")

# The checksum of a name without .gz is that of the content, packed or not: repacked copies, such as
# Debian's, have another header. Those of .gz and .tar.gz are of the files that the mirrors send.
MD5 = {
    "mnist/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "mnist/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "mnist/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "mnist/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    "mnist/train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "mnist/train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "mnist/t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "mnist/t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "fashion-mnist/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "fashion-mnist/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "fashion-mnist/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "fashion-mnist/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    "fashion-mnist/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "fashion-mnist/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "fashion-mnist/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "fashion-mnist/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    "cifar-10-batches-bin/data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "cifar-10-batches-bin/data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "cifar-10-batches-bin/data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "cifar-10-batches-bin/data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "cifar-10-batches-bin/data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "cifar-10-batches-bin/test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar10/cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar100/cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "cifar100/cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    "svhn/train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "svhn/test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    "tiny-imagenet/tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de",
}
_MIRRORS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
    "cifar100": "https://www.cs.toronto.edu/~kriz/",
    "svhn": "http://ufldl.stanford.edu/housenumbers/",
    "tiny-imagenet": "http://cs231n.stanford.edu/",
}

_PICKLED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class DataError(UserError):
    """A data set cannot be had; the message is one line for the user."""


def read_idx(base: str, part: Part, root: Path | None) -> tuple[Bytes, Bytes]:
    """Images (n, 1, H, W) and labels (n,) of a split of MNIST or Fashion-MNIST.

    Raises DataError where a file is missing and cannot be downloaded, is damaged, or is another.
    """
    images, labels = (
        parsed(_parse_idx, *content_of(places, Path(places[0]).name, root))
        for places in files_of(base, part)
    )
    return images[:, None], labels


def read_cifar10(part: Part, root: Path | None) -> tuple[Bytes, Bytes]:
    """Images (n, 3, 32, 32) and labels (n,) of a split, from the python or the binary release.

    Raises DataError where a file is missing and cannot be downloaded, is damaged, or is another.
    """
    batches = []
    for places in files_of("cifar10", part):
        path, content = content_of(places, "cifar-10-python.tar.gz", root)
        parse = _parse_binary if path.suffix == ".bin" else _parse_pickle
        batches.append(parsed(parse, path, content))
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def content_of(places: Places, download: str, root: Path | None) -> tuple[Path, bytes]:
    """The path of the first of the places of a file that exists, and its checked content, which is
    unpacked where it is one file.

    Where none exists, the file `download` is fetched from the mirror, which makes places[0]. Raises
    DataError where that fails, and where the file is another or damaged.
    """
    if (there := find(places, root)) is not None:
        return there, _checked(there)
    try:
        path = _fetch(places[0], download, root) / places[0]
    except (OSError, ValueError, ImportError) as error:
        # Errors of the network are OSErrors; what remains is pooch's word on a wrong checksum.
        checksum = isinstance(error, ValueError) and not isinstance(error, OSError)
        reason = "wrong checksum" if checksum else type(error).__name__
        raise DataError(
            f"{places[0]} is not in {_list(data_roots(root))}, and downloading {download} failed "
            f"({reason}): put it there, or give --data-root or BESTATTACK_DATA, the folder with "
            f"{places[0]}"
        ) from error
    return path, _checked(path)


def _checked(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        if _is_packed(path):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or damaged: replace or delete it") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    got = hashlib.md5(content, usedforsecurity=False).hexdigest()
    want = MD5[
        f"{path.parent.name}/{path.name.removesuffix('.gz') if _is_packed(path) else path.name}"
    ]
    if got != want:
        raise DataError(f"{path} is not the official file (md5 {got}, not {want}): replace it")
    return content


def _is_packed(path: Path) -> bool:
    """Whether a file is one that is packed, and not an archive of several."""
    return path.suffix == ".gz" and not path.name.endswith(".tar.gz")


def _fetch(place: str, file: str, root: Path | None) -> Path:
    """Download the file that makes a place into the first root that can be written, and say which
    root that is.

    Everything happens in a scratch folder: whatever fails, no half file lies where one is sought.
    One process downloads at a time; one that waited for another finds what that downloaded.
    """
    import pooch

    base = place.split("/")[0]
    home = next((folder for folder in data_roots(root) if _writable(folder / base)), None)
    if home is None:
        raise DataError(f"cannot download {file}: none of {_list(data_roots(root))} is writable")
    with FileLock(home / base / ".lock"):
        if (home / place).is_file():
            return home
        scratch = home / base / ".download"
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        try:
            new = scratch / "new"
            packed = file.endswith(".tar.gz")
            pooch.retrieve(
                _MIRRORS[base] + file,
                known_hash=f"md5:{MD5[f'{base}/{file}']}",
                fname=file,
                path=scratch if packed else new,
                processor=pooch.Untar(extract_dir=new.name) if packed else None,
            )
            for path in list(new.rglob("*")):
                if path.is_file():
                    target = home / base / path.relative_to(new)
                    target.parent.mkdir(exist_ok=True)
                    path.replace(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return home


def _list(folders: list[Path]) -> str:
    return ", ".join(str(folder) for folder in folders)


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def parsed(parser: Callable[[bytes], T], path: Path, content: bytes) -> T:
    """What a parser makes of the content of a file. Raises DataError where it fails."""
    try:
        return parser(content)
    except Exception as error:  # a pickle can raise anything
        raise DataError(f"cannot parse {path}: {one_line(error)}") from error


def _parse_idx(content: bytes) -> Bytes:
    if content[:3] != b"\0\0\x08":
        raise ValueError("not an idx file of bytes")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{len(content) - start} bytes instead of {math.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _parse_binary(content: bytes) -> tuple[Bytes, Bytes]:
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLED:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")
        return super().find_class(module, name)


def _parse_pickle(content: bytes) -> tuple[Bytes, Bytes]:
    return pickled_images(content, b"labels")


def pickled_images(content: bytes, key: bytes) -> tuple[Bytes, Bytes]:
    """Images (n, 3, 32, 32) and labels (n,) of a python release of CIFAR, where `key` is what the
    labels are called. Raises UnpicklingError for a pickle that would run code."""
    batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    images = np.asarray(batch[b"data"], np.uint8)
    return images.reshape(-1, 3, 32, 32), np.array(batch[key], np.uint8)
