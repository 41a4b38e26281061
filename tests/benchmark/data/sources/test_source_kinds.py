"""Names of data in files: what each is read as, and what is said of mistakes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.data.sets import load_dataset
from benchmark.data.sources.kinds import SOURCES, describe_sources
from benchmark.data.sources.split_rule import training_rows
from benchmark.data.variants import VARIANTS
from benchmark.errors import UserError
from benchmark.keys import identify_data
from benchmark.spec.source_names import FLAGS
from tests.benchmark.conftest import Cli
from tests.benchmark.data.splits import refusal, rows, same

Y = np.arange(40) % 4
X = np.random.default_rng(0).integers(0, 256, (40, 5, 6), np.uint8)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BESTATTACK_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "photos").mkdir()
    np.savez("images.npz", x=X, y=Y, class_names=["cat", "dog", "a-b", "5"])


def test_a_name_is_read_from_left_to_right() -> None:
    dataset = load_dataset("npz=images.npz/scale=255/split=0.75/pair=dog-a-b/order=1")
    assert dataset.name == "npz=images.npz/scale=255/split=0.75/pair=dog-a-b/order=1"
    assert sorted(dataset.labels) == ["a-b", "dog"]
    assert (len(dataset.train.y), len(dataset.test.y)) == (16, 4)


def test_the_same_data_has_the_same_name_and_identity_anywhere(tmp_path: Path) -> None:
    name = "npz=images.npz/scale=255/split=0.5"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/images.npz").write_bytes(Path("images.npz").read_bytes())
    here = load_dataset(name)
    there = load_dataset(f"npz={tmp_path}/deep/images.npz/split=0.5/scale=255.0")
    assert here.name == there.name == name
    assert identify_data(here, "test") == identify_data(there, "test")
    assert identify_data(here, "test").keys() == {"name", "sha256"}


@pytest.mark.parametrize("given", ["root", "environment"])
def test_files_are_sought_where_those_of_all_data_sets_are(tmp_path: Path, given: str) -> None:
    home = tmp_path / ("data" if given == "environment" else "mine")
    home.mkdir(exist_ok=True)
    Path("images.npz").rename(home / "images.npz")
    root = None if given == "environment" else home
    assert len(load_dataset("npz=images.npz/scale=255", root).test.y) == 40


def test_a_scale_up_to_one_is_the_variant_and_above_it_the_source(tmp_path: Path) -> None:
    np.savez("floats.npz", x=np.full((4, 2, 2), 1.0), y=[0, 1, 0, 1])
    assert float(load_dataset("npz=floats.npz/scale=0.5").test.x.max()) == 0.75
    both = load_dataset("npz=floats.npz/scale=2/scale=0.5")
    assert float(both.test.x.max()) == 0.5
    assert both.name == "npz=floats.npz/scale=2/scale=0.5"


# Splits


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.99])
def test_a_split_takes_its_share_of_each_class_and_loses_nothing(share: float) -> None:
    dataset = load_dataset(f"npz=images.npz/scale=255/split={share}")
    whole = load_dataset("npz=images.npz/scale=255").test
    train, test = dataset.train, dataset.test
    assert rows(train.x, train.y) + rows(test.x, test.y) == rows(whole.x, whole.y)
    want = min(max(round(10 * share), 1), 9)
    assert train.y.bincount().tolist() == [want] * 4


def test_splits_are_the_same_everywhere_and_larger_ones_hold_smaller_ones() -> None:
    assert training_rows(Y, 0.3).tolist() == TRAINING
    assert set(training_rows(Y, 0.3).tolist()) < set(training_rows(Y, 0.6).tolist())
    assert training_rows(np.array([0, 1, 1]), 0.5).tolist() == [
        0,
        1,
    ]  # one of a class is trained on


TRAINING = [3, 4, 8, 9, 10, 11, 13, 18, 26, 28, 29, 39]


def test_what_is_not_split_is_measured_and_not_trained_on() -> None:
    dataset = load_dataset("npz=images.npz/scale=255")
    assert torch.equal(dataset.test.y, torch.tensor(Y))
    assert refusal(lambda: dataset.train) == (
        "npz=images.npz is not split, so that nothing can be trained on it: add split=0.8 to its "
        "name, to train on 80% of each class"
    )


# Mistakes


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nzp=images.npz", "unknown kind of data 'nzp': did you mean 'npz'?"),
        ("what=images.npz", "there are npz=FILE, npy=FILE, folder=PATH, csv=FILE"),
        ("npz=image.npz", "there is no file or folder 'image.npz': did you mean 'images.npz'?"),
        ("npz=photos/a.npz", "there is no file or folder 'photos/a.npz'"),
        ("folder=photos/cats", "there is no file or folder 'photos/cats'"),
        ("npz=", "there is no file or folder ''"),
        ("npz=photos", "npz=photos is a folder: write folder=photos"),
        ("folder=images.npz", "folder=images.npz is a file: write npz=images.npz"),
        ("npz=images.npz/scal=255", "unknown option or variant 'scal': did you mean 'scale'?"),
        ("npz=images.npz/pear=0-1", "'pear': did you mean 'pair'?"),
        ("npz=images.npz/scale=255/scale=2", "gives scale twice"),
        ("npz=images.npz/pair=0-1/split=0.5", "split is about npz=FILE: put it before pair=0-1"),
        ("npz=images.npz/scale=255/split=80", "between 0 and 1, as in split=0.8, not '80'"),
        ("npz=images.npz/scale=255/split=1", "not '1'"),
        ("npz=images.npz/scale=255/split=nan", "not 'nan'"),
        ("npz=images.npz/scale=0", "as in scale=255, not '0'"),
        ("npz=images.npz/scale=white", "as in scale=255, not 'white'"),
        ("npz=images.npz/scale=inf", "as in scale=255, not 'inf'"),
        ("npz=images.npz/scale=255/labels=no.npy", "labels=no.npy is not a file"),
        ("folder=photos/size=0", "size needs a number of pixels, as in size=64, not '0'"),
        ("folder=photos/crop=big", "crop needs a number of pixels, as in crop=64, not 'big'"),
    ],
)
def test_a_mistake_is_told_in_one_line(name: str, told: str) -> None:
    assert told in refusal(lambda: load_dataset(name))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("images.npz", "write npz=images.npz"),
        ("images.npz/scale=255", "write npz=images.npz/scale=255"),
        ("gone.npy", "write npy=gone.npy/labels=FILE.npy"),
        ("table.CSV", "write csv=table.CSV/label=COLUMN"),
        ("table.parquet/split=0.8", "write parquet=table.parquet/split=0.8"),
        ("photos", "write folder=photos"),
        ("./photos/", "write folder=./photos"),
        ("saved", "write huggingface=saved"),
        ("notes.txt", "notes.txt is no data that can be loaded: there are npz=FILE"),
    ],
)
def test_a_plain_path_is_refused_with_the_form_that_works(
    tmp_path: Path, name: str, told: str
) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/dataset_info.json").touch()
    (tmp_path / "notes.txt").touch()
    assert told in refusal(lambda: load_dataset(name))


def test_an_unknown_name_that_is_no_path_is_refused_as_ever() -> None:
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        load_dataset("mnits")


def test_a_folder_called_like_a_data_set_does_not_hide_it(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    assert load_dataset("digits").classes == 10


def test_all_kinds_and_options_are_listed(cli: Cli) -> None:
    listed = cli("list", "datasets").out
    assert describe_sources() in listed
    for source in SOURCES.values():
        assert source.form in listed
        assert all(form in listed for form in source.options)
    assert "cifar100" in listed


def test_variants_without_a_value_are_known_where_names_are_read() -> None:
    assert set(FLAGS) == {
        form for variant in VARIANTS.values() if "=" not in (form := variant.form)
    }
    assert load_dataset("npz=images.npz/scale=255/binarize").name.endswith("/binarize")


def test_images_and_rows_of_features_may_be_given_as_arrays() -> None:
    np.savez("rows.npz", x=np.random.default_rng(0).random((6, 3)), y=[0, 1, 2, 0, 1, 2])
    dataset = load_dataset("npz=rows.npz")
    assert (dataset.shape, dataset.noun, dataset.frozen) == ((3,), "rows", None)
    assert same(dataset.test, load_dataset("npz=rows.npz").test)
