import gzip
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

import numpy as np
import pytest
import torch

from benchmark.data import files as data_files
from benchmark.data.sets import load_dataset
from tests.benchmark.data.fake_files import (
    Images,
    isolate,
    listed,
    md5,
    no_network,
    pickled,
    put,
    random_bytes,
    serve,
)
from tests.benchmark.data.splits import refusal, same
from tests.malice import Malice

REAL = os.environ.get("BESTATTACK_DATA")
MNIST_TEST = ("mnist/t10k-images-idx3-ubyte", "mnist/t10k-labels-idx1-ubyte")
CIFAR_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")


@pytest.fixture(autouse=True)
def _nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def _idx(array: Images) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _put_mnist(root: Path, packed: bool = True, official: bool = True) -> Images:
    images, labels = random_bytes(3, 28, 28), np.array([4, 9, 0], np.uint8)
    for name, array in zip(MNIST_TEST, (images, labels), strict=True):
        content = gzip.compress(_idx(array)) if packed else _idx(array)
        put(root / (name + ".gz" * packed), content, official)
    return images


def _cifar(batch: int) -> tuple[Images, Images]:
    return random_bytes(2 + batch, 3, 32, 32), random_bytes(2 + batch) % 10


def _put_cifar(folder: Path, release: str) -> None:
    for i, name in enumerate((*CIFAR_BATCHES, "test_batch")):
        images, labels = _cifar(i)
        if release == "py":
            put(folder / "cifar-10-batches-py" / name, pickled(images, b"labels", labels))
        else:
            rows = np.concatenate([labels[:, None], images.reshape(len(images), -1)], 1)
            put(folder / "cifar-10-batches-bin" / f"{name}.bin", rows.tobytes())


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
    put(path, gzip.compress(content) if path.suffix == ".gz" else content)
    assert str(path) in refusal(lambda: load_dataset(place.split("/")[0], root).test)


def test_a_file_that_may_not_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    _put_mnist(root)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    message = refusal(lambda: load_dataset("mnist", root).test)
    assert message == f"cannot read {root / MNIST_TEST[0]}.gz: Permission denied"


def test_a_pickle_that_runs_code_is_refused(root: Path, tmp_path: Path) -> None:
    path = root / "cifar-10-batches-py" / "test_batch"
    content = pickle.dumps({b"data": Malice(tmp_path / "owned"), b"labels": [0]}, protocol=4)
    put(path, content)
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
        put(later / f"{MNIST_TEST[0]}.gz", b"", official=False)
    assert len(load_dataset("mnist", roots[0]).test.y) == 3
    for earlier in roots[:holder]:
        put(earlier / f"{MNIST_TEST[0]}.gz", b"", official=False)
        assert str(earlier) in refusal(lambda: load_dataset("mnist", roots[0]).test)
        (earlier / f"{MNIST_TEST[0]}.gz").unlink()


def _mnist_mirror(tmp_path: Path) -> dict[str, bytes]:
    _put_mnist(tmp_path / "mirror")
    files = {f"{name}.gz": (tmp_path / "mirror" / f"{name}.gz").read_bytes() for name in MNIST_TEST}
    data_files.MD5.update({name: md5(content) for name, content in files.items()})
    return {name.split("/")[1]: content for name, content in files.items()}


def test_missing_files_are_downloaded_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = _mnist_mirror(tmp_path)
    asked: list[str] = []

    def answer(url: str) -> bytes:
        asked.append(url)
        return mirror[url.rsplit("/", 1)[1]]

    serve(monkeypatch, answer)
    first = load_dataset("mnist", root).test
    assert same(first, load_dataset("mnist", root).test)
    assert [url.rsplit("/", 1)[1] for url in asked] == list(mirror)
    assert listed(root / "mnist") == sorted(mirror)


@pytest.mark.parametrize("given", [True, False])
def test_a_download_goes_to_the_first_root_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    mirror = _mnist_mirror(tmp_path)
    serve(monkeypatch, lambda url: mirror[url.rsplit("/", 1)[1]])
    (tmp_path / "file").touch()
    env = tmp_path / "env"
    monkeypatch.setenv("BESTATTACK_DATA", str(env if given else tmp_path / "file"))
    assert len(load_dataset("mnist", tmp_path / "file").test.y) == 3
    home = env if given else tmp_path / "cache" / "data"
    assert listed(home / "mnist") == sorted(mirror)


def test_cifar10_is_downloaded_as_an_archive(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put_cifar(tmp_path / "mirror", "py")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        tar.add(tmp_path / "mirror" / "cifar-10-batches-py", "cifar-10-batches-py")
    archive = file.getvalue()
    monkeypatch.setitem(data_files.MD5, "cifar10/cifar-10-python.tar.gz", md5(archive))
    serve(monkeypatch, lambda url: archive)
    dataset = load_dataset("cifar10", root)
    test = dataset.test
    serve(monkeypatch, no_network)
    assert same(test, load_dataset("cifar10", tmp_path / "mirror").test)
    assert len(dataset.train.y) == sum(len(_cifar(i)[1]) for i in range(5))
    assert listed(root / "cifar10") == ["cifar-10-batches-py"]


@pytest.mark.parametrize(
    "base", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "tiny-imagenet"]
)
@pytest.mark.parametrize(
    ("answer", "reason"),
    [(no_network, "ConnectionError"), (lambda url: b"half of it", "wrong checksum")],
)
def test_a_failed_download_says_what_to_do_and_leaves_nothing(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    answer: Callable[[str], bytes],
    reason: str,
) -> None:
    serve(monkeypatch, answer)
    message = refusal(lambda: load_dataset(base, root).test)
    for part in (base, str(root), reason, "BESTATTACK_DATA"):
        assert part in message
    assert [path.name for path in root.iterdir()] == [base]
    assert listed(root / base) == []


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

    serve(monkeypatch, answer)
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: load_dataset("mnist", root).test, range(4))
    assert all(same(first, other) for other in others)
    assert sorted(asked) == sorted(mirror)
    assert listed(root / "mnist") == sorted(mirror)


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
