import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark import data_files
from benchmark.data import VARIANTS, DataError, Dataset, Split, fingerprint, load_dataset
from benchmark.errors import UserError

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


def _refusal(load: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _same(a: Split, b: Split) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def _rows(x: Tensor, y: Tensor) -> Counter[bytes]:
    rows = zip(x, y, strict=True)
    return Counter(image.numpy().tobytes() + bytes([int(label)]) for image, label in rows)


# Digits and the pair variant


def test_digits_is_split_without_overlap_and_by_class() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    everything = _rows(torch.tensor(images / 16).float(), torch.tensor(labels))
    digits = load_dataset("digits")
    train, test = digits.train, digits.test
    assert _rows(train.x, train.y) + _rows(test.x, test.y) == everything
    assert (len(train.x), len(test.x)) == (1442, 355)
    assert torch.equal(test.y.bincount(), torch.tensor(labels).bincount() // 5)


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_first_images_are_those_in_front(part: data_files.Part) -> None:
    dataset = load_dataset("digits")
    whole = getattr(dataset, part)
    assert _same(dataset.first(part), whole)
    assert _same(dataset.first(part, 7), Split(whole.x[:7], whole.y[:7]))
    n = len(whole.y)
    assert _same(dataset.first(part, n), whole)
    with pytest.raises(DataError, match=f"digits has {n} {part} images, not {n + 1}: lower"):
        dataset.first(part, n + 1)


def test_digits_is_the_same_everywhere() -> None:
    test = load_dataset("digits").test
    want = "c5a04adc96d16164246beca29963372e540f9a7d2b6cfa7c5787753403a5d601"
    assert fingerprint(test.x, test.y) == want


@pytest.mark.parametrize("part", ["train", "test"])
def test_pair_keeps_two_labels_and_their_order_decides(part: str) -> None:
    base = getattr(load_dataset("digits"), part)
    split = getattr(load_dataset("digits/pair=9-4"), part)
    kept = (base.y == 9) | (base.y == 4)
    assert torch.equal(split.x, base.x[kept])
    assert torch.equal(split.y, torch.where(base.y[kept] == 9, 0, 1))
    assert torch.equal(getattr(load_dataset("digits/pair=4-9"), part).y, 1 - split.y)


def test_variants_compose_from_left_to_right() -> None:
    twice = load_dataset("digits/pair=4-9/pair=9-4")
    assert _same(twice.test, load_dataset("digits/pair=9-4").test)


@pytest.mark.parametrize(
    ("name", "full", "labels"),
    [
        ("mnist/pair=4-9", "mnist/pair=4-9", ("4", "9")),
        ("cifar10/pair=5-3", "cifar10/pair=dog-cat", ("dog", "cat")),
        ("fashion-mnist/pair=2-4", "fashion-mnist/pair=pullover-coat", ("pullover", "coat")),
        ("fashion-mnist/pair=6-0", "fashion-mnist/pair=shirt-t-shirt", ("shirt", "t-shirt")),
        (
            "fashion-mnist/pair=0-9",
            "fashion-mnist/pair=t-shirt-ankle-boot",
            ("t-shirt", "ankle-boot"),
        ),
    ],
)
def test_labels_go_by_number_and_by_name(name: str, full: str, labels: tuple[str, ...]) -> None:
    by_number, by_name = load_dataset(name), load_dataset(full)
    assert by_number.name == by_name.name == full
    assert by_number.labels == by_name.labels == labels
    assert by_number.classes == 2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("digits/pear=4-9", "'pear': did you mean 'pair'?"),
        ("digits/", "unknown variant ''"),
        ("digits/pair", "two labels"),
        ("digits/pair=4", "two labels"),
        ("digits/pair=4-4", "differ"),
        ("digits/pair=4-10", "unknown label '10'"),
        ("digits/pair=4--9", "unknown label"),
        ("fashion-mnist/pair=pulover-coat", "'pulover': did you mean 'pullover'?"),
        ("fashion-mnist/pair=t-shirt-trousers", "'trousers': did you mean 'trouser'?"),
        ("cifar10/pair=Cat-dog", "'Cat': did you mean 'cat'?"),
    ],
)
def test_an_unknown_variant_or_label_is_refused_with_advice(name: str, told: str) -> None:
    assert told in _refusal(lambda: load_dataset(name))


# The variants order and other


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("seed", [0, 1, 20])
def test_order_moves_labels_with_their_names(part: str, seed: int) -> None:
    base, moved = load_dataset("digits"), load_dataset(f"digits/order={seed}")
    assert moved.name == f"digits/order={seed}"
    assert sorted(moved.labels) == sorted(base.labels) != list(moved.labels)
    before, after = getattr(base, part), getattr(moved, part)
    assert torch.equal(after.x, before.x)
    assert [moved.labels[y] for y in after.y.tolist()] == [base.labels[y] for y in before.y]


def test_orders_are_the_same_everywhere_and_differ() -> None:
    assert "".join(load_dataset("digits/order=0").labels) == "6421750893"
    assert "".join(load_dataset("digits/order=3").labels) == "9715460238"
    assert load_dataset("cifar10/order=3").labels[:3] == ("truck", "horse", "automobile")
    assert len({load_dataset(f"digits/order={seed}").labels for seed in range(50)}) == 50
    assert load_dataset("digits/order=003").name == "digits/order=3"


@pytest.mark.parametrize("count", [2, 4, 9])
def test_other_merges_the_last_classes(count: int) -> None:
    base, merged = load_dataset("digits"), load_dataset(f"digits/other={count}")
    assert merged.name == f"digits/other={count}"
    assert merged.labels == (*base.labels[: count - 1], "other")
    assert merged.classes == count
    assert torch.equal(merged.test.x, base.test.x)
    assert torch.equal(merged.test.y, base.test.y.clamp_max(count - 1))


def test_merging_the_last_class_alone_leaves_all_as_it_is() -> None:
    base, merged = load_dataset("digits"), load_dataset("digits/other=10")
    assert (merged.name, merged.labels) == (base.name, base.labels)
    assert _same(merged.test, base.test)


def test_order_and_other_and_pair_compose() -> None:
    moved = load_dataset("digits/order=3")
    merged = load_dataset("digits/order=3/other=4")
    assert merged.labels == ("9", "7", "1", "other")
    assert torch.equal(merged.test.y, moved.test.y.clamp_max(3))
    alone = load_dataset("digits/order=3/other=4/pair=other-7")
    assert alone.labels == ("other", "7")
    assert alone.test.y.bincount().tolist() == merged.test.y.bincount()[[3, 1]].tolist()
    # The names that moved, not the places.
    pair = load_dataset("digits/order=3/pair=4-9")
    assert _same(pair.test, load_dataset("digits/pair=4-9").test)
    assert load_dataset("digits/pair=4-9/order=2").classes == 2
    twice = load_dataset("digits/other=5/other=3")
    assert twice.labels == ("0", "1", "other")
    assert _same(twice.test, load_dataset("digits/other=3").test)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("digits/order", "order needs an integer of at least 0"),
        ("digits/order=-1", "not '-1'"),
        ("digits/order=1.5", "not '1.5'"),
        ("digits/order=\u00b2", "order needs"),
        ("digits/ordre=1", "did you mean 'order'?"),
        ("digits/other", "from 2 to 10"),
        ("digits/other=1", "from 2 to 10"),
        ("digits/other=11", "from 2 to 10"),
        ("digits/other=four", "not 'four'"),
        ("digits/pair=4-9/other=3", "digits/pair=4-9: other needs a number of classes from 2 to 2"),
        ("digits/other=4/order=7/other=3", "already a class that is called 'other'"),
    ],
)
def test_orders_and_merges_that_make_no_sense_are_refused(name: str, told: str) -> None:
    assert told in _refusal(lambda: load_dataset(name))


def test_labels_out_of_range_do_not_become_those_of_another_class() -> None:
    bad = Split(torch.zeros(2, 1, 2, 2), torch.tensor([0, -1]))
    theirs = Dataset("theirs", ("a", "b", "c"), (1, 2, 2), lambda part: bad)
    for variant, value in (("order", "1"), ("other", "2")):
        varied = VARIANTS[variant](theirs, value)
        assert "labels are not int64 from 0 to 2" in _refusal(lambda varied=varied: varied.test)


def test_an_unknown_base_is_refused_with_advice() -> None:
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        load_dataset("mnits/pair=4-9")


# The contract that any data set is held to


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (torch.full((2, 1, 2, 2), 255.0), torch.tensor([0, 1]), "[0, 1]"),
        (torch.full((2, 1, 2, 2), -0.1), torch.tensor([0, 1]), "[0, 1]"),
        (torch.full((2, 1, 2, 2), torch.nan), torch.tensor([0, 1]), "[0, 1]"),
        (torch.zeros(2, 1, 2, 2).double(), torch.tensor([0, 1]), "float32"),
        (torch.zeros(2, 2, 2, 1), torch.tensor([0, 1]), "(2, 2, 2, 1)"),
        (torch.zeros(3, 1, 2, 2), torch.tensor([0, 1]), "(3, 1, 2, 2)"),
        (torch.zeros(0, 1, 2, 2), torch.tensor([]).long(), "(0, 1, 2, 2)"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0, 2]), "labels"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0.0, 1.0]), "labels"),
    ],
)
def test_a_split_out_of_contract_is_refused(x: Tensor, y: Tensor, told: str) -> None:
    dataset = Dataset("theirs", ("a", "b"), (1, 2, 2), lambda part: Split(x, y))
    message = _refusal(lambda: dataset.test)
    assert "theirs" in message
    assert told in message


def test_fingerprint_sees_values_labels_shape_and_dtype_but_not_layout() -> None:
    x, y = torch.rand(4, 1, 2, 3), torch.tensor([0, 1, 1, 0])
    other = x.clone()
    other[3, 0, 1, 2] += 1e-6
    prints = [
        fingerprint(x, y),
        fingerprint(other, y),
        fingerprint(x, 1 - y),
        fingerprint(x.view(4, 1, 3, 2), y),
        fingerprint(x.view(torch.int32), y),
        fingerprint(x[:2], y[:2]),
        fingerprint(x[:0], y[:0]),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(x.repeat(2, 1, 1, 1)[::2], y) == fingerprint(x[[0, 2, 0, 2]], y)


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
    assert str(path) in _refusal(lambda: load_dataset("mnist", root).test)


def test_another_file_of_the_right_form_is_refused(root: Path) -> None:
    _put_mnist(root, official=False)
    assert "not the official file" in _refusal(lambda: load_dataset("mnist", root).test)


@pytest.mark.parametrize("place", [f"{MNIST_TEST[0]}.gz", "cifar10/cifar-10-batches-py/test_batch"])
@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03", b"\0\0\x08\x01\0\0\0\x09abc", b"(]}."])
def test_a_file_that_cannot_be_parsed_is_named(root: Path, place: str, content: bytes) -> None:
    _put_mnist(root)
    path = root / place
    _put(path, gzip.compress(content) if path.suffix == ".gz" else content)
    assert str(path) in _refusal(lambda: load_dataset(place.split("/")[0], root).test)


def test_a_file_that_may_not_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    _put_mnist(root)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    message = _refusal(lambda: load_dataset("mnist", root).test)
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
    assert "mkdir" in _refusal(lambda: load_dataset("cifar10", root).test)
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
        assert str(earlier) in _refusal(lambda: load_dataset("mnist", roots[0]).test)
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
    assert _same(first, load_dataset("mnist", root).test)
    assert [url.rsplit("/", 1)[1] for url in asked] == list(mirror)
    assert sorted(path.name for path in (root / "mnist").iterdir()) == sorted(mirror)


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
    assert sorted(path.name for path in (home / "mnist").iterdir()) == sorted(mirror)


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
    assert _same(test, load_dataset("cifar10", tmp_path / "mirror").test)
    assert len(dataset.train.y) == sum(len(_cifar(i)[1]) for i in range(5))
    assert [path.name for path in (root / "cifar10").iterdir()] == ["cifar-10-batches-py"]


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
    message = _refusal(lambda: load_dataset(base, root).test)
    for part in (base, str(root), reason, "BESTATTACK_DATA"):
        assert part in message
    assert not [path for path in root.rglob("*") if path.is_file()]
    assert [path.name for path in root.iterdir()] == [base]


def test_no_folder_to_download_to_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").touch()
    assert "writable" in _refusal(lambda: load_dataset("mnist").test)


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
