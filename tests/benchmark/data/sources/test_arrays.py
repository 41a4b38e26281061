"""Arrays of NumPy's files: which become images, and what is said of those that cannot."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmark.data.files import DataError
from benchmark.data.sets import load_dataset
from tests.benchmark.data.splits import refusal

Y = [0, 1, 2, 1]
BYTES = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), np.uint8)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _saved(**arrays: Any) -> None:
    np.savez("a.npz", **arrays)


@pytest.mark.parametrize("packed", [True, False])
def test_colour_images_become_channels_first_and_are_divided(packed: bool) -> None:
    (np.savez_compressed if packed else np.savez)("a.npz", x=BYTES, y=np.array(Y))
    dataset = load_dataset("npz=a.npz/scale=255")
    assert torch.equal(dataset.test.x, torch.tensor(BYTES).permute(0, 3, 1, 2) / 255)
    assert (dataset.labels, dataset.test.y.tolist()) == (("0", "1", "2"), Y)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((4, 5, 6), "n1hw"),
        ((4, 5, 6, 1), "nhwc"),
        ((4, 5, 6, 4), "nhwc"),
        ((4, 1, 5, 6), "nchw"),
        ((4, 3, 5, 4), "nchw"),
        ((4, 3, 3, 3), "nchw"),  # either, and channels come first
        ((4, 4, 4, 1), "nhwc"),
        ((4, 1, 4, 4), "nchw"),
        ((4, 13, 16, 16), "nchw"),
        ((4, 9), "nf"),
    ],
)
def test_where_channels_are_is_told_by_the_shape(shape: tuple[int, ...], axes: str) -> None:
    x = np.random.default_rng(0).random(shape)
    _saved(x=x, y=Y)
    dataset = load_dataset("npz=a.npz")
    want = torch.tensor(x).float()
    want = want.movedim(3, 1) if axes == "nhwc" else want[:, None] if axes == "n1hw" else want
    assert dataset.shape == want.shape[1:]
    assert torch.equal(dataset.test.x[:], want)


def test_a_split_alone_and_channels_in_an_odd_place_are_refused() -> None:
    _saved(x_train=np.zeros((4, 2, 2)), y_train=Y)
    with pytest.raises(DataError, match="has the arrays of train alone: add those of the other"):
        load_dataset("npz=a.npz")
    _saved(x=np.zeros((4, 8, 8, 2)), y=Y)
    with pytest.raises(DataError, match="put channels other than 1, 3 or 4 second"):
        load_dataset("npz=a.npz")
    _saved(x=np.zeros((4, 2, 2)), y=np.array(Y, float))
    assert load_dataset("npz=a.npz").test.y.tolist() == list(Y)


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("train_images", "train_labels", "val_images", "val_labels"),
        ("data_training", "targets_training", "data_valid", "targets_valid"),
    ],
)
def test_the_splits_that_a_file_has_are_taken(names: tuple[str, ...]) -> None:
    x = np.random.default_rng(0).random((6, 2, 2))
    arrays: dict[str, Any] = dict(zip(names, (x[:4], Y, x[4:], [[2], [0]]), strict=True))
    _saved(**arrays)
    dataset = load_dataset("npz=a.npz")
    assert torch.equal(dataset.train.x[:, 0], torch.tensor(x[:4]).float())
    assert torch.equal(dataset.test.x[:, 0], torch.tensor(x[4:]).float())
    assert dataset.test.y.tolist() == [2, 0]
    told = refusal(lambda: load_dataset("npz=a.npz/split=0.5"))
    assert told == "npz=a.npz has a train and a test split already: leave split=0.5 out"


def test_test_comes_before_val() -> None:
    x = np.zeros((4, 2, 2))
    _saved(x_train=x, y_train=Y, x_val=x + 0.5, y_val=Y, x_test=x + 1, y_test=Y)
    assert float(load_dataset("npz=a.npz").test.x.min()) == 1


@pytest.mark.parametrize(
    ("y", "names", "labels", "numbers"),
    [
        (["dog", "cat", "dog", "cat"], None, ("cat", "dog"), [1, 0, 1, 0]),
        ([b"dog", b"cat", b"dog", b"cat"], None, ("cat", "dog"), [1, 0, 1, 0]),
        (Y, ["a", "b", "c", "d"], ("a", "b", "c", "d"), Y),
        (np.eye(3)[Y], None, ("0", "1", "2"), Y),
        (np.array(Y, np.uint64)[:, None], None, ("0", "1", "2"), Y),
    ],
)
def test_labels_are_numbers_or_names(
    y: Any, names: list[str] | None, labels: tuple[str, ...], numbers: list[int]
) -> None:
    _saved(x=np.zeros((4, 2, 2)), y=y, **({} if names is None else {"class_names": names}))
    dataset = load_dataset("npz=a.npz")
    assert (dataset.labels, dataset.test.y.tolist()) == (labels, numbers)


def test_labels_may_be_in_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save("x.npy", BYTES)
    np.save("in/y.npy", Y)
    _saved(x=BYTES)
    for name in ("npy=x.npy/labels=in/y.npy/scale=255", "npz=a.npz/scale=255/labels=in/y.npy"):
        dataset = load_dataset(f"{name}/pair=1-2")
        assert dataset.test.y.tolist() == [0, 1, 0]
        assert dataset.name.endswith("/scale=255/labels=y.npy/pair=1-2")


ZEROS = np.zeros((4, 2, 2))


def test_a_scale_far_above_the_largest_value_is_refused() -> None:
    _saved(x=BYTES // 255, y=Y)
    line = refusal(lambda: load_dataset("npz=a.npz/scale=255"))
    assert line.endswith("the largest value is 1, of 255: is scale what white is in these images?")


def _with(value: float) -> NDArray[np.float64]:
    x = ZEROS.copy()
    x[2, 1, 1] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": BYTES, "y": Y}, "images are whole numbers, uint8, up to 255: add scale=255"),
        ({"x": _with(2), "y": Y}, "images go from 0 to 2, not from 0 to 1: add the largest value"),
        ({"x": _with(-1), "y": Y}, "images go from -1 to 0"),
        ({"x": _with(np.inf), "y": Y}, "images go from 0 to inf"),
        ({"x": _with(np.nan), "y": Y}, "1 of 4 images hold NaN"),
        ({"x": ZEROS + 1j, "y": Y}, "images must be numbers, not complex128"),
        ({"x": np.full((4, 2, 2), "a"), "y": Y}, "images must be numbers"),
        ({"x": np.zeros(4), "y": Y}, "images must be (n, H, W), (n, H, W, C) or (n, C, H, W)"),
        ({"x": np.zeros((4, 2, 2, 2, 2)), "y": Y}, "not (4, 2, 2, 2, 2)"),
        ({"x": np.zeros((4, 0, 2)), "y": Y}, "holds no images: one of its arrays is empty"),
        ({"x": np.zeros((0, 2, 2)), "y": np.array([], int)}, "one of its arrays is empty"),
        ({"x": ZEROS, "y": Y[:3]}, "has (4, 2, 2) images and 3 labels: one for each"),
        ({"x": ZEROS}, "has images and no labels: add an array y, or write labels=FILE.npy"),
        ({"x_train": ZEROS, "y_train": Y, "x_test": ZEROS}, "add an array y_test"),
        ({"a": ZEROS, "b": Y}, "a.npz holds a, b: call its arrays x and y, or x_train, y_train"),
        ({}, "holds nothing"),
        ({"x": ZEROS, "y": [0, 1, 3, 1]}, "labels go up to 3, and none is 2: number the classes"),
        ({"x": ZEROS, "y": [0, -1, 1, 1]}, "labels are numbered from 0, and one is -1"),
        ({"x": ZEROS, "y": [0, 0, 0, 0]}, "all samples are of one class, '0'"),
        ({"x": ZEROS, "y": ["a", "a", "a", "a"]}, "all samples are of one class, 'a'"),
        ({"x": ZEROS, "y": ["a", "b", "", "a"]}, "the label in row 3 is missing"),
        ({"x": ZEROS, "y": ["a", "b", "c", "d"]}, "4 different labels for 4 samples"),
        ({"x": ZEROS, "y": [0.0, 1.0, 0.5, 1.0]}, "whole numbers or texts, not float64"),
        ({"x": ZEROS, "y": np.ones((4, 3))}, "neither numbers nor one-hot rows"),
        ({"x": ZEROS, "y": np.zeros((4, 1, 1), int)}, "labels must be (n,)"),
        ({"x": ZEROS, "y": Y, "class_names": ["a", "b"]}, "a label is 2, and there are 2 class"),
        ({"x": ZEROS, "y": Y, "class_names": ["a", "b", "a"]}, "two classes are called 'a'"),
        (
            {"x_train": ZEROS, "y_train": Y, "x_test": np.zeros((4, 3, 2)), "y_test": Y},
            "images to train on are (1, 2, 2), and to test (1, 3, 2)",
        ),
        (
            {"x": np.array([{}, {}, {}, {}]), "y": Y},
            "holds Python objects, which are not loaded, since they may run code",
        ),
    ],
)
def test_arrays_that_cannot_be_used_are_refused_in_one_line(
    arrays: dict[str, Any], told: str
) -> None:
    _saved(**arrays)
    message = refusal(lambda: load_dataset("npz=a.npz"))
    assert told in message
    assert "a.npz" in message


@pytest.mark.parametrize("keep", [0, 10, 300])
def test_a_damaged_file_is_named(keep: int) -> None:
    _saved(x=ZEROS, y=Y)
    content = Path("a.npz").read_bytes()
    Path("a.npz").write_bytes(content[:keep])
    assert "a.npz is damaged, or no file of NumPy" in refusal(lambda: load_dataset("npz=a.npz"))


def test_a_file_of_the_other_kind_is_told() -> None:
    np.save("x.npy", ZEROS)
    _saved(x=ZEROS, y=Y)
    assert "write npy=x.npy/labels=FILE.npy" in refusal(lambda: load_dataset("npz=x.npy"))
    assert "write npz=a.npz" in refusal(lambda: load_dataset("npy=a.npz"))
    assert "x.npy has no labels: write npy=x.npy/labels" in refusal(
        lambda: load_dataset("npy=x.npy")
    )
    told = refusal(lambda: load_dataset("npy=x.npy/labels=a.npz"))
    assert "a.npz holds several arrays: labels must be one" in told


def test_one_word_arrays_count_beside_those_of_one_split() -> None:
    """A file with images of a split and those of none is read by the split's, where it has both."""
    _saved(x=ZEROS + 1, y=Y, x_train=ZEROS, y_train=Y, x_test=ZEROS, y_test=Y)
    assert float(load_dataset("npz=a.npz").test.x.max()) == 0


def test_images_and_labels_are_of_the_same_split() -> None:
    whole = {"x_train": BYTES, "y_train": Y, "x_val": BYTES, "y_val": Y}
    _saved(**whole, x_test=255 - BYTES)  # whose labels are kept back
    found = load_dataset("npz=a.npz/scale=255").test.x[:]
    _saved(x=BYTES, y=Y)
    assert found.equal(load_dataset("npz=a.npz/scale=255").test.x[:])
    _saved(x=BYTES, X=BYTES, y=Y)
    with pytest.raises(DataError, match="of which some differ in case alone"):
        load_dataset("npz=a.npz/scale=255")


@pytest.mark.parametrize("old", [b"}", b"'", b"("])
def test_damaged_headers_get_one_line(old: bytes) -> None:
    np.save("x.npy", BYTES)
    np.save("y.npy", Y)
    content = Path("x.npy").read_bytes()
    Path("x.npy").write_bytes(content.replace(old, b" ", 1))
    with pytest.raises(DataError, match="is damaged, or no file of NumPy"):
        load_dataset("npy=x.npy/labels=y.npy/scale=255")
