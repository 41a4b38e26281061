"""Folders of images: which become tensors, and what is said of those that cannot."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmark.data.sets import load_dataset
from tests.benchmark.data.splits import refusal

Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _pixels(seed: int, height: int = 6, width: int = 6, channels: int = 3) -> Pixels:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return pixels[:, :, 0] if channels == 1 else pixels


def _put(name: str, pixels: Pixels | None = None) -> Pixels:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = _pixels(sum(name.encode())) if pixels is None else pixels
    Image.fromarray(pixels).save(path)
    return pixels


def _pets(root: str = "pets", count: int = 2) -> list[Pixels]:
    return [_put(f"{root}/{name}/{i}.png") for name in ("cat", "dog") for i in range(count)]


def test_a_folder_for_each_class_is_read_exactly_and_in_order() -> None:
    pixels = _pets()
    for name in (".DS_Store", "pets/cat/Thumbs.db", "pets/readme.txt", "pets/.git/x.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"no image")
    dataset = load_dataset("folder=pets")
    assert (dataset.name, dataset.labels, dataset.shape) == (
        "folder=pets",
        ("cat", "dog"),
        (3, 6, 6),
    )
    want = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    assert torch.equal(dataset.test.x, want)
    assert dataset.test.y.tolist() == [0, 0, 1, 1]
    assert load_dataset("folder=pets/pair=dog-cat").test.y.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_folders_of_splits_are_taken(name: str) -> None:
    train, test = _pets("pets/train", 3), _pets(f"pets/{name}", 1)
    dataset = load_dataset("folder=pets")
    assert (len(dataset.train.y), len(dataset.test.y)) == (len(train), len(test))
    assert torch.equal(dataset.test.x[0], torch.tensor(test[0]).permute(2, 0, 1) / 255)
    told = refusal(lambda: load_dataset("folder=pets/split=0.5"))
    assert "has a train and a test split already: leave split=0.5 out" in told


def test_a_class_may_be_missing_in_one_split() -> None:
    _pets("pets/train")
    _put("pets/test/dog/a.png")
    assert load_dataset("folder=pets").test.y.tolist() == [1]


def test_names_and_labels_may_be_in_a_table() -> None:
    pixels = [_put(f"faces/{name}") for name in ("b.png", "a.png", "in/c.png")]
    Path("who.csv").write_text("file,age\nb.png,10\na.png,9\nin/c.png,10\n")
    dataset = load_dataset("folder=faces/labels=who.csv")
    assert dataset.name == "folder=faces/labels=who.csv"
    assert dataset.labels == ("9", "10")
    assert dataset.test.y.tolist() == [1, 0, 1]
    assert torch.equal(dataset.test.x[2], torch.tensor(pixels[2]).permute(2, 0, 1) / 255)
    Path("who.csv").write_text("file,who\nb.png,Bo\na.png,Al\nin/c.png,Bo\n")
    assert load_dataset("folder=faces/labels=who.csv").labels == ("Al", "Bo")


def test_all_grey_stays_grey_and_any_colour_makes_all_coloured() -> None:
    grey = _put("pets/cat/a.png", _pixels(0, channels=1))
    _put("pets/dog/b.png", _pixels(1, channels=1))
    dataset = load_dataset("folder=pets")
    assert dataset.shape == (1, 6, 6)
    assert torch.equal(dataset.test.x[0, 0], torch.tensor(grey) / 255)
    _put("pets/dog/c.png", _pixels(2, channels=4))
    coloured = load_dataset("folder=pets")
    assert coloured.shape == (3, 6, 6)
    assert torch.equal(coloured.test.x[0], (torch.tensor(grey) / 255).expand(3, 6, 6))
    assert torch.equal(
        coloured.test.x[2], torch.tensor(_pixels(2, channels=4)[:, :, :3]).permute(2, 0, 1) / 255
    )


def test_crop_cuts_the_middle_out() -> None:
    tall, wide = _put("pets/cat/a.png", _pixels(0, 9, 6)), _put("pets/dog/b.png", _pixels(1, 4, 8))
    x = load_dataset("folder=pets/crop=4").test.x
    assert torch.equal(x[0], torch.tensor(tall[2:6, 1:5]).permute(2, 0, 1) / 255)
    assert torch.equal(x[1], torch.tensor(wide[:, 2:6]).permute(2, 0, 1) / 255)


def test_size_resizes_the_shorter_side_as_torchvision_does() -> None:
    pixels = _put("pets/cat/a.png", _pixels(0, 20, 31))
    _put("pets/dog/b.png", _pixels(1, 25, 10))
    dataset = load_dataset("folder=pets/size=8/crop=6")
    assert (dataset.name, dataset.shape) == ("folder=pets/size=8/crop=6", (3, 6, 6))
    resized = Image.fromarray(pixels).resize((12, 8), Image.Resampling.BILINEAR)  # 31 * 8 / 20
    want = torch.tensor(np.asarray(resized)[1:7, 3:9]).permute(2, 0, 1) / 255
    assert torch.equal(dataset.test.x[0], want)
    assert load_dataset("folder=pets/size=8").shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("files", "name", "told"),
    [
        ({}, "folder=pets", "pets has no folders, one for each class: make them, or write labels="),
        ({"pets/a.png": 6}, "folder=pets", "pets has no folders, one for each class"),
        ({"pets/cat/a.png": 6}, "folder=pets", "all samples are of one class, 'cat'"),
        (
            {"pets/cat/a.png": 6, "pets/dog/a.txt": 0},
            "folder=pets",
            "pets/dog holds no images: fill or delete it",
        ),
        (
            {"pets/train/cat/a.png": 6, "pets/train/dog/a.png": 6},
            "folder=pets",
            "pets has train/ alone, and not both train/ and test/: write folder=pets/train",
        ),
        (
            {"pets/train/cat/a.png": 6, "pets/train/dog/a.png": 6, "pets/test/a.png": 6},
            "folder=pets",
            "pets/test holds no images",
        ),
        (
            {"pets/cat/a.png": 6, "pets/dog/a.png": 8},
            "folder=pets",
            "pets/cat/a.png has 6x6 pixels and pets/dog/a.png 8x8: add size=6 to the name",
        ),
        (
            {"pets/cat/a.png": 6, "pets/dog/a.png": 8},
            "folder=pets/crop=7",
            "pets/cat/a.png has 6x6 pixels, of which crop=7 cannot be cut out: add size=7",
        ),
        (
            {"pets/cat/a.png": 6, "pets/dog/a.png": 0},
            "folder=pets",
            "pets/dog/a.png cannot be read",
        ),
        ({"pets/a.png": 6, "t.csv": 0}, "folder=pets/labels=t.csv", "t.csv is no table"),
        ({"pets/a.png": 6}, "folder=pets/labels=t.csv", "labels=t.csv is not a file"),
    ],
)
def test_folders_that_cannot_be_used_are_refused_in_one_line(
    files: dict[str, int], name: str, told: str
) -> None:
    Path("pets").mkdir()
    for file, side in files.items():
        if side:
            _put(file, _pixels(0, side, side))
        else:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).touch()
    assert told in refusal(lambda: load_dataset(name))


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("file,label\na.png,x\nb.png,y\nc.png,x\n", "names 'c.png', which is not in faces (1 of 3"),
        ("file,label\na.png,x\nb.png,\n", "the label in row 2 is missing"),
        ("file,label\na.png,x\nb.png,x\n", "all samples are of one class, 'x'"),
        ("file\na.png\n", "needs a header, and two columns"),
        ("file,label\n", "needs a header, and two columns"),
        ('file,label\na.png,"x\n', "is no table"),
    ],
)
def test_tables_of_labels_that_cannot_be_used_are_refused(table: str, told: str) -> None:
    _put("faces/a.png")
    _put("faces/b.png")
    Path("t.csv").write_text(table)
    assert told in refusal(lambda: load_dataset("folder=faces/labels=t.csv"))


def test_a_truncated_image_and_one_of_16_bits_are_named() -> None:
    _pets()
    content = Path("pets/dog/1.png").read_bytes()
    Path("pets/dog/1.png").write_bytes(content[:60])
    message = refusal(lambda: load_dataset("folder=pets").test)
    assert "pets/dog/1.png cannot be read" in message
    Image.fromarray(np.zeros((6, 6), np.uint16)).save("pets/dog/1.png")
    assert "pets/dog/1.png has more than 8 bits" in refusal(lambda: load_dataset("folder=pets"))
