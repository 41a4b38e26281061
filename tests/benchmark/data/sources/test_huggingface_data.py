"""Data sets of Hugging Face, from folders and from the cache, and not from the network."""

import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.data.sets import load_dataset
from tests.benchmark.data.splits import refusal, same

Y = [0, 1, 0, 1, 1, 0]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), np.uint8)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, whose cache is in the test's folder, and which meets no network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def refuse(*args: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    yield datasets
    if not shown:
        datasets.enable_progress_bars()


def _table(datasets: Any, **changed: Any) -> Any:
    images = [Image.fromarray(pixels) for pixels in PIXELS]
    columns = {"image": images, "label": Y, "note": list("abcdef")} | changed
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "note": datasets.Value("string"),
    }
    features |= {name: datasets.Value("string") for name in changed if name not in features}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def test_a_saved_data_set_is_read_exactly(hub: Any) -> None:
    _table(hub).save_to_disk("pets")
    dataset = load_dataset("huggingface=pets")
    assert (dataset.name, dataset.labels) == ("huggingface=pets", ("cat", "dog"))
    assert torch.equal(dataset.test.x, torch.tensor(PIXELS).permute(0, 3, 1, 2) / 255)
    assert dataset.test.y.tolist() == Y
    halves = load_dataset("huggingface=pets/size=4/crop=3/split=0.5/pair=dog-cat")
    assert (halves.shape, len(halves.train.y)) == ((3, 3, 3), 4)


@pytest.mark.parametrize("test", ["test", "validation"])
def test_its_splits_are_taken(hub: Any, test: str) -> None:
    table = _table(hub)
    parts = {"train": table.select([0, 1, 2, 3]), test: table.select([4, 5])}
    hub.DatasetDict(parts).save_to_disk("pets")
    dataset = load_dataset("huggingface=pets")
    assert (dataset.train.y.tolist(), dataset.test.y.tolist()) == (Y[:4], Y[4:])
    assert "leave split=0.5 out" in refusal(lambda: load_dataset("huggingface=pets/split=0.5"))


def test_folders_of_parquet_and_of_images_are_read(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    _table(hub).to_parquet("rows/train.parquet")
    parquet = load_dataset("huggingface=rows")
    assert parquet.labels == ("cat", "dog")
    for number, label in enumerate(Y):
        folder = tmp_path / "photos" / ("cat", "dog")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[number]).save(folder / f"{number}.png")
    photos = load_dataset("huggingface=photos")
    assert same(photos.test, load_dataset("folder=photos").test)
    assert sorted(photos.test.y.tolist()) == sorted(parquet.test.y.tolist())


def test_a_name_is_read_from_the_cache_alone(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    _table(hub).to_parquet("rows/train.parquet")
    load_dataset("huggingface=rows")
    # What the package leaves behind once it has fetched a data set of that name.
    (made,) = (path.parent for path in (tmp_path / "cache").rglob("dataset_info.json"))
    home = tmp_path / "cache/me___pets/default/0.0.0" / made.name
    shutil.copytree(made, home)
    for arrow in home.glob("*.arrow"):
        arrow.rename(home / "pets-train.arrow")
    dataset = load_dataset("huggingface=me/pets/split=0.5")
    assert dataset.name == "huggingface=me/pets/split=0.5"
    assert len(dataset.test.y) == 2
    assert not hub.config.HF_HUB_OFFLINE
    told = refusal(lambda: load_dataset("huggingface=me/birds/split=0.5"))
    assert told.startswith(
        "huggingface=me/birds is no folder, and not in the cache of datasets: add download=true to"
    )


def test_columns_are_named_where_there_are_several(hub: Any) -> None:
    _table(hub, kind=["x", "y", "x", "y", "x", "y"]).save_to_disk("pets")
    named = load_dataset("huggingface=pets/label=kind")
    assert (named.name, named.labels) == ("huggingface=pets/label=kind", ("x", "y"))
    assert named.test.y.tolist() == [0, 1, 0, 1, 0, 1]
    for option, told in (
        ("label=kin", "has no column 'kin' for label: did you mean 'kind'?"),
        ("label=image", "has no column 'image' for label"),
        ("image=note", "has no column 'note' for image"),
        ("download=yes", "download is true or false, not 'yes'"),
    ):
        assert told in refusal(lambda option=option: load_dataset(f"huggingface=pets/{option}"))


def test_tables_that_cannot_be_used_are_refused(hub: Any, tmp_path: Path) -> None:
    table = _table(hub)
    table.remove_columns("image").save_to_disk("no-images")
    table.remove_columns("label").save_to_disk("no-labels")
    unlabelled = table.to_dict() | {"label": [0, 1, -1, 1, 0, 1]}
    hub.Dataset.from_dict(unlabelled, table.features).save_to_disk("unlabelled")
    hub.DatasetDict({"a": table, "b": table}).save_to_disk("odd")
    (tmp_path / "empty").mkdir()
    for name, told in (
        ("no-images", "which column is the image? Add image=COLUMN: none that fits"),
        ("no-labels", "which column is the label? Add label=COLUMN: note"),
        ("unlabelled", "the label in row 3 is missing"),
        ("odd", "has the splits a, b, and not both train and test"),
        ("empty", "huggingface=empty cannot be loaded"),
    ):
        assert told in refusal(lambda name=name: load_dataset(f"huggingface={name}"))


def test_without_the_package_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    told = refusal(lambda: load_dataset("huggingface=me/pets"))
    assert told == "huggingface=me/pets needs a package: pip install 'bestattack[huggingface]'"
