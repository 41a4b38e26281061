import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
import torch
from numpy.typing import NDArray

from benchmark.data import files as data_files
from benchmark.data.sets import load_dataset
from tests.benchmark.data.splits import refusal, same

REAL = os.environ.get("BESTATTACK_DATA")
Images = NDArray[np.uint8]
MNIST_TEST = ("mnist/t10k-images-idx3-ubyte", "mnist/t10k-labels-idx1-ubyte")
CIFAR_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")


@pytest.fixture(autouse=True)
def _nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BESTATTACK_DATA", raising=False)
    monkeypatch.setattr(data_files, "user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setattr(data_files, "_SYSTEM", tmp_path / "system")
    monkeypatch.setattr(data_files, "MD5", dict(data_files.MD5))
    _serve(monkeypatch, lambda url: pytest.fail(f"a download of {url}"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def _serve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], bytes]) -> None:
    """Pooch is left as it is, but for the network under it."""

    def download(self: Any, url: str, output_file: str, pooch: Any) -> None:
        Path(output_file).write_bytes(answer(url))

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)


def _files(folder: Path) -> list[str]:
    """What a folder holds, but for the lock that downloads leave in it."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def _no_network(url: str) -> bytes:
    raise ConnectionError("no\nnetwork")


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _put(path: Path, content: bytes, official: bool = True) -> None:
    """Write a file; the official one is from now on the one that is expected there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if official:
        plain = gzip.decompress(content) if path.suffix == ".gz" else content
        key = f"{path.parent.name}/{path.name.removesuffix('.gz')}"
        data_files.MD5[key] = _md5(plain)


def _random(*shape: int) -> Images:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def _idx(array: Images) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _put_mnist(root: Path, packed: bool = True, official: bool = True) -> Images:
    images, labels = _random(3, 28, 28), np.array([4, 9, 0], np.uint8)
    for name, array in zip(MNIST_TEST, (images, labels), strict=True):
        content = gzip.compress(_idx(array)) if packed else _idx(array)
        _put(root / (name + ".gz" * packed), content, official)
    return images


def _pickled(images: Images, labels: Images) -> bytes:
    """What Python 2 wrote into CIFAR-10's python release: text and bytes alike are BINSTRING."""

    def string(raw: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(raw)) + raw

    shape = struct.pack("<cicic", b"J", len(images), b"J", 3072, pickle.TUPLE2)
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\0K\1\x87R"
    dtype += b"(K\3" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + string(b"b")
    array += b"\x87R(K\1" + shape + dtype + b"\x89" + string(images.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels.tolist()) + b"e"
    return b"\x80\2}(" + string(b"data") + array + string(b"labels") + numbers + b"u."


def _cifar(batch: int) -> tuple[Images, Images]:
    return _random(2 + batch, 3, 32, 32), _random(2 + batch) % 10


def _put_cifar(folder: Path, release: str) -> None:
    for i, name in enumerate((*CIFAR_BATCHES, "test_batch")):
        images, labels = _cifar(i)
        if release == "py":
            _put(folder / "cifar-10-batches-py" / name, _pickled(images, labels))
        else:
            rows = np.concatenate([labels[:, None], images.reshape(len(images), -1)], 1)
            _put(folder / "cifar-10-batches-bin" / f"{name}.bin", rows.tobytes())


# Files


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_exactly(root: Path, packed: bool) -> None:
    images = _put_mnist(root, packed)
    test = load_dataset("mnist", root).test
    assert torch.equal(test.x, torch.tensor(images)[:, None] / 255)
    assert test.y.tolist() == [4, 9, 0]


@pytest.mark.parametrize("release", ["py", "bin"])
@pytest.mark.parametrize("folder", ["cifar10", ""])
def test_both_releases_of_cifar10_are_read_exactly(root: Path, release: str, folder: str) -> None:
    _put_cifar(root / folder, release)
    dataset = load_dataset("cifar10", str(root))
    images, labels = zip(*(_cifar(i) for i in range(6)), strict=True)
    assert torch.equal(dataset.train.x, torch.tensor(np.concatenate(images[:5])) / 255)
    assert dataset.train.y.tolist() == np.concatenate(labels[:5]).tolist()
    assert torch.equal(dataset.test.x, torch.tensor(images[5]) / 255)
    assert dataset.test.y.tolist() == labels[5].tolist()


def test_each_split_is_read_alone_and_once(root: Path) -> None:
    dataset = load_dataset("mnist/pair=4-9", root)
    _put_mnist(root)  # no training files: reading them would be a download, which fails the test
    first = dataset.test
    (root / f"{MNIST_TEST[0]}.gz").unlink()
    assert dataset.test is first
    assert first.y.tolist() == [0, 1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:4],
        lambda content: b"",
        lambda content: b"<html>404</html>",
        lambda content: content[:-8] + b"\0" * 8,
        lambda content: content[:100] + bytes([content[100] ^ 255]) + content[101:],
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_file_is_named(
    root: Path, packed: bool, damage: Callable[[bytes], bytes]
) -> None:
    _put_mnist(root, packed)
    path = root / (MNIST_TEST[0] + ".gz" * packed)
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in refusal(lambda: load_dataset("mnist", root).test)


def test_another_file_of_the_right_form_is_refused(root: Path) -> None:
    _put_mnist(root, official=False)
    assert "not the official file" in refusal(lambda: load_dataset("mnist", root).test)


@pytest.mark.parametrize("place", [f"{MNIST_TEST[0]}.gz", "cifar10/cifar-10-batches-py/test_batch"])
@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03", b"\0\0\x08\x01\0\0\0\x09abc", b"(]}."])
def test_a_file_that_cannot_be_parsed_is_named(root: Path, place: str, content: bytes) -> None:
    _put_mnist(root)
    path = root / place
    _put(path, gzip.compress(content) if path.suffix == ".gz" else content)
    assert str(path) in refusal(lambda: load_dataset(place.split("/")[0], root).test)


def test_a_file_that_may_not_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    _put_mnist(root)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    message = refusal(lambda: load_dataset("mnist", root).test)
    assert message == f"cannot read {root / MNIST_TEST[0]}.gz: Permission denied"


class _Malice:
    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


def test_a_pickle_that_runs_code_is_refused(root: Path, tmp_path: Path) -> None:
    path = root / "cifar-10-batches-py" / "test_batch"
    content = pickle.dumps({b"data": _Malice(tmp_path / "owned"), b"labels": [0]}, protocol=4)
    _put(path, content)
    assert "mkdir" in refusal(lambda: load_dataset("cifar10", root).test)
    assert not (tmp_path / "owned").exists()


# Where files are sought, and what is done where there are none


@pytest.mark.parametrize("holder", range(4))
def test_roots_are_searched_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: int
) -> None:
    roots = [tmp_path / "given", tmp_path / "env", tmp_path / "cache" / "data", tmp_path / "system"]
    monkeypatch.setenv("BESTATTACK_DATA", str(roots[1]))
    _put_mnist(roots[holder])
    for later in roots[holder + 1 :]:
        _put(later / f"{MNIST_TEST[0]}.gz", b"", official=False)
    assert len(load_dataset("mnist", roots[0]).test.y) == 3
    for earlier in roots[:holder]:
        _put(earlier / f"{MNIST_TEST[0]}.gz", b"", official=False)
        assert str(earlier) in refusal(lambda: load_dataset("mnist", roots[0]).test)
        (earlier / f"{MNIST_TEST[0]}.gz").unlink()


def _mnist_mirror(tmp_path: Path) -> dict[str, bytes]:
    _put_mnist(tmp_path / "mirror")
    files = {f"{name}.gz": (tmp_path / "mirror" / f"{name}.gz").read_bytes() for name in MNIST_TEST}
    data_files.MD5.update({name: _md5(content) for name, content in files.items()})
    return {name.split("/")[1]: content for name, content in files.items()}


def test_missing_files_are_downloaded_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = _mnist_mirror(tmp_path)
    asked: list[str] = []

    def answer(url: str) -> bytes:
        asked.append(url)
        return mirror[url.rsplit("/", 1)[1]]

    _serve(monkeypatch, answer)
    first = load_dataset("mnist", root).test
    assert same(first, load_dataset("mnist", root).test)
    assert [url.rsplit("/", 1)[1] for url in asked] == list(mirror)
    assert _files(root / "mnist") == sorted(mirror)


@pytest.mark.parametrize("given", [True, False])
def test_a_download_goes_to_the_first_root_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    mirror = _mnist_mirror(tmp_path)
    _serve(monkeypatch, lambda url: mirror[url.rsplit("/", 1)[1]])
    (tmp_path / "file").touch()
    env = tmp_path / "env"
    monkeypatch.setenv("BESTATTACK_DATA", str(env if given else tmp_path / "file"))
    assert len(load_dataset("mnist", tmp_path / "file").test.y) == 3
    home = env if given else tmp_path / "cache" / "data"
    assert _files(home / "mnist") == sorted(mirror)


def test_cifar10_is_downloaded_as_an_archive(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put_cifar(tmp_path / "mirror", "py")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        tar.add(tmp_path / "mirror" / "cifar-10-batches-py", "cifar-10-batches-py")
    archive = file.getvalue()
    monkeypatch.setitem(data_files.MD5, "cifar10/cifar-10-python.tar.gz", _md5(archive))
    _serve(monkeypatch, lambda url: archive)
    dataset = load_dataset("cifar10", root)
    test = dataset.test
    _serve(monkeypatch, _no_network)
    assert same(test, load_dataset("cifar10", tmp_path / "mirror").test)
    assert len(dataset.train.y) == sum(len(_cifar(i)[1]) for i in range(5))
    assert _files(root / "cifar10") == ["cifar-10-batches-py"]


@pytest.mark.parametrize("base", ["mnist", "fashion-mnist", "cifar10"])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [(_no_network, "ConnectionError"), (lambda url: b"half of it", "wrong checksum")],
)
def test_a_failed_download_says_what_to_do_and_leaves_nothing(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    answer: Callable[[str], bytes],
    reason: str,
) -> None:
    _serve(monkeypatch, answer)
    message = refusal(lambda: load_dataset(base, root).test)
    for part in (base, str(root), reason, "BESTATTACK_DATA"):
        assert part in message
    assert [path.name for path in root.iterdir()] == [base]
    assert _files(root / base) == []


def test_downloads_at_once_do_not_disturb_each_other(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, asked = _mnist_mirror(tmp_path), []
    # What a process that was killed leaves.
    (root / "mnist" / ".download" / "new").mkdir(parents=True)

    def answer(url: str) -> bytes:
        asked.append(url.rsplit("/", 1)[1])
        time.sleep(0.05)
        return mirror[asked[-1]]

    _serve(monkeypatch, answer)
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: load_dataset("mnist", root).test, range(4))
    assert all(same(first, other) for other in others)
    assert sorted(asked) == sorted(mirror)
    assert _files(root / "mnist") == sorted(mirror)


def test_no_folder_to_download_to_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").touch()
    assert "writable" in refusal(lambda: load_dataset("mnist").test)


# The real files


@pytest.mark.skipif(REAL is None, reason="BESTATTACK_DATA is not set")
def test_real_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    load = partial(load_dataset, root=REAL)
    train, test = load("mnist").train, load("mnist").test
    assert (train.x.shape, test.x.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert train.y.bincount().tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert test.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert load("mnist/pair=4-9").test.y.bincount().tolist() == [982, 1009]
    # The first test image is the well-known 7.
    assert test.y[0] == 7
    assert test.x.max() == 1
