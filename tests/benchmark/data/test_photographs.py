"""CIFAR-100, SVHN and Tiny ImageNet, from small stand-ins of their official files."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.data import files as data_files
from benchmark.data.sets import load_dataset
from benchmark.spec.registry import DATASETS
from benchmark.spec.run_spec import Part
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

PARTS: tuple[Part, ...] = ("train", "test")
TINY = "tiny-imagenet/tiny-imagenet-200.zip"


@pytest.fixture(autouse=True)
def _nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def _cifar(part: Part) -> tuple[Images, list[int]]:
    images = random_bytes(4 if part == "train" else 3, 3, 32, 32)
    return images, list(range(60, 60 + len(images)))


def _cifar_file(part: Part, release: str) -> bytes:
    images, fine = _cifar(part)
    coarse = [1] * len(fine)
    if release == "binary":
        labels = np.array([coarse, fine], np.uint8).T
        return np.concatenate([labels, images.reshape(len(images), -1)], 1).tobytes()
    return pickled(images, b"fine_labels", np.array(fine, np.uint8))


def _archive(release: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for part in PARTS:
            content = _cifar_file(part, release)
            name = f"cifar-100-{release}/{part}{'.bin' if release == 'binary' else ''}"
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _put_cifar(root: Path, form: str) -> None:
    if form.endswith(".tar.gz"):
        release = form.removeprefix("cifar-100-").removesuffix(".tar.gz")
        put(root / "cifar100" / form, _archive(release))
        return
    for part in PARTS:
        put(root / form / "cifar-100-python" / part, _cifar_file(part, "python"))


@pytest.mark.parametrize(
    "form", ["cifar100", "", "cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"]
)
def test_cifar100_is_read_exactly_and_has_the_fine_labels(root: Path, form: str) -> None:
    _put_cifar(root, form)
    dataset = load_dataset("cifar100", root)
    assert (dataset.classes, dataset.labels[0], dataset.labels[99]) == (100, "apple", "worm")
    for part in PARTS:
        images, labels = _cifar(part)
        assert torch.equal(dataset.split(part).x, torch.tensor(images) / 255)
        assert dataset.split(part).y.tolist() == labels
    assert load_dataset("cifar100/pair=plain-plate", root).test.y.tolist() == [0, 1]


def test_cifar100_is_downloaded_as_an_archive(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in PARTS:
        monkeypatch.setitem(
            data_files.MD5, f"cifar-100-python/{part}", md5(_cifar_file(part, "python"))
        )
    archive = _archive("python")
    monkeypatch.setitem(data_files.MD5, "cifar100/cifar-100-python.tar.gz", md5(archive))
    asked: list[str] = []
    serve(monkeypatch, lambda url: asked.append(url) or archive)  # type: ignore[func-returns-value]
    test = load_dataset("cifar100", root).test
    serve(monkeypatch, no_network)
    assert same(test, load_dataset("cifar100", root).test)
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"]
    assert listed(root / "cifar100") == ["cifar-100-python"]


def test_a_pickle_that_runs_code_is_refused(root: Path, tmp_path: Path) -> None:
    content = pickle.dumps({b"data": Malice(tmp_path / "owned"), b"fine_labels": [0]}, protocol=4)
    put(root / "cifar-100-python" / "test", content)
    assert "mkdir" in refusal(lambda: load_dataset("cifar100", root).test)
    assert not (tmp_path / "owned").exists()


def _svhn(part: Part) -> bytes:
    from scipy.io import savemat

    file = io.BytesIO()
    images = random_bytes(32, 32, 3, 4 if part == "train" else 3)
    savemat(file, {"X": images, "y": np.array([[10], [1], [9], [10]])[: images.shape[3]]})
    return file.getvalue()


def test_svhn_is_read_exactly_and_ten_is_zero(root: Path) -> None:
    for part in PARTS:
        put(root / "svhn" / f"{part}_32x32.mat", _svhn(part))
    dataset = load_dataset("svhn", root)
    images = random_bytes(32, 32, 3, 3)
    assert torch.equal(dataset.test.x, torch.tensor(images).permute(3, 2, 0, 1) / 255)
    assert dataset.test.y.tolist() == [0, 1, 9]
    assert dataset.train.y.tolist() == [0, 1, 9, 0]
    assert dataset.labels == tuple("0123456789")


def _jpeg(seed: int, mode: str = "RGB") -> bytes:
    channels = (3,) if mode == "RGB" else ()
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, *channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def _tiny(names: tuple[str, ...] = ("n01443537", "n12267677")) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        home = "tiny-imagenet-200"
        for name in names:
            for number in (0, 1, 10, 2):
                content = _jpeg(number, "L" if number == 1 else "RGB")
                archive.writestr(f"{home}/train/{name}/images/{name}_{number}.JPEG", content)
            archive.writestr(f"{home}/train/{name}/{name}_boxes.txt", "")
        lines = [f"val_{i}.JPEG\t{names[i % 2]}\t0\t0\t63\t63" for i in range(3)]
        archive.writestr(f"{home}/val/val_annotations.txt", "\n".join(lines) + "\n")
        for i in range(3):
            archive.writestr(f"{home}/val/images/val_{i}.JPEG", _jpeg(100 + i))
    return file.getvalue()


def test_tiny_imagenet_is_tested_on_val_and_its_classes_take_turns(root: Path) -> None:
    put(root / TINY, _tiny())
    dataset = load_dataset("tiny-imagenet", root)
    assert (dataset.classes, dataset.shape) == (200, (3, 64, 64))
    assert list(dataset.labels) == sorted(set(dataset.labels))
    assert dataset.test.y.tolist() == [0, 199, 0]
    pixels = np.asarray(Image.open(io.BytesIO(_jpeg(101))))
    assert torch.equal(dataset.test.x[1], torch.tensor(pixels).permute(2, 0, 1) / 255)
    assert dataset.train.y.tolist() == [0, 199] * 4
    last = np.asarray(Image.open(io.BytesIO(_jpeg(10))))
    assert torch.equal(dataset.train.x[-1], torch.tensor(last).permute(2, 0, 1) / 255)
    grey = dataset.train.x[2]
    assert torch.equal(grey[0], grey[1])
    pair = load_dataset("tiny-imagenet/pair=n12267677-n01443537", root)
    assert pair.test.y.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("svhn/test_32x32.mat", b""),
        ("svhn/test_32x32.mat", b"MATLAB 5.0 MAT-file" + b" " * 200),
        (TINY, b"PK\5\6" + b"\0" * 18),  # an archive of nothing
        (TINY, b"no archive"),
        (TINY, _tiny(("n01443537", "n00000000"))),
        ("cifar100/cifar-100-binary.tar.gz", b"no archive"),
        ("cifar100/cifar-100-python.tar.gz", b"\x1f\x8b" + b"\0" * 20),
    ],
)
def test_a_file_that_cannot_be_parsed_is_named(root: Path, place: str, content: bytes) -> None:
    put(root / place, content)
    message = refusal(lambda: load_dataset(place.split("/")[0], root).test)
    assert f"cannot parse {root / place}" in message


@pytest.mark.parametrize(
    "place",
    [
        *("svhn/test_32x32.mat", TINY, "cifar100/cifar-100-python/test"),
        "cifar100/cifar-100-binary.tar.gz",
    ],
)
def test_another_file_of_the_right_name_is_refused(root: Path, place: str) -> None:
    put(root / place, b"something else", official=False)
    message = refusal(lambda: load_dataset(place.split("/")[0], root).test)
    assert f"{root / place} is not the official file" in message


@pytest.mark.parametrize(
    ("base", "place"), [("svhn", "svhn/test_32x32.mat"), ("tiny-imagenet", TINY)]
)
def test_single_files_are_downloaded_once(
    root: Path, monkeypatch: pytest.MonkeyPatch, base: str, place: str
) -> None:
    content = _svhn("test") if base == "svhn" else _tiny()
    monkeypatch.setitem(data_files.MD5, place, md5(content))
    serve(monkeypatch, lambda url: content)
    first = load_dataset(base, root).test
    serve(monkeypatch, no_network)
    assert same(first, load_dataset(base, root).test)
    assert listed(root / base) == [place.split("/")[1]]


def test_they_come_with_the_program_and_are_in_a_mixed_order() -> None:
    assert all(DATASETS.is_built_in(name) for name in ("cifar100", "svhn", "tiny-imagenet"))
