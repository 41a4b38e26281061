"""Tables: how features are scaled, which are frozen, and what is said of what cannot be used."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmark.data.dataset import Dataset, Split
from benchmark.data.sets import load_dataset
from benchmark.keys import identify_data
from tests.benchmark.data.splits import refusal, rows

ILL = ["yes", "no", "no", "yes", "no", "yes"]
TABLE: dict[str, Any] = {
    "age": [20, 60, 40, 30, 50, 25],
    "blood": [1.5, 2.5, 2.0, 1.75, 2.25, 2.0],
    "city": ["b", "a", "c", "a", "b", "a"],
    "smokes": [True, False, True, False, True, True],
    "sure": [7.5] * 6,
    "ill": ILL,
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _saved(name: str = "t.csv", **changed: Any) -> None:
    values = {key: value for key, value in (TABLE | changed).items() if value is not None}
    pd.DataFrame(values).to_csv(name, index=False)


def test_features_are_scaled_by_their_bounds_and_fixed_ones_are_frozen() -> None:
    _saved()
    dataset = load_dataset("csv=t.csv/label=ill")
    assert (dataset.labels, dataset.shape) == (("no", "yes"), (5,))
    assert dataset.test.y.tolist() == [1, 0, 0, 1, 0, 1]
    want = [[0, 1, 0.5, 0.25, 0.75, 0.125], [0, 1, 0.5, 0.25, 0.75, 0.5]]
    want += [[0.5, 0, 1, 0, 0.5, 0], [1, 0, 1, 0, 1, 1], [0] * 6]
    assert torch.equal(dataset.test.x, torch.tensor(want).T)
    assert dataset.frozen is not None
    assert dataset.frozen.tolist() == [True, False, True, True, True]
    assert dataset.features == (
        ("age", 20, 60), ("blood", 1.5, 2.5), ("city", 0, 2), ("smokes", 0, 1), ("sure", 7.5, 7.5),
    )  # fmt: skip


def test_frozen_free_and_bounds_are_taken_in_any_order() -> None:
    _saved(weight=[50.0, 60, 70, 80, 90, 100])
    Path("b.csv").write_text("feature,lower,upper\nblood,0,10\nage,0,100\nsure,0,15\n")
    name = "csv=t.csv/free=age/bounds=b.csv/frozen=weight+blood/label=ill/split=0.5"
    dataset = load_dataset(name)
    assert dataset.name == "csv=t.csv/label=ill/split=0.5/bounds=b.csv/frozen=blood+weight/free=age"
    assert dataset.frozen is not None
    frozen = dict(zip([f.name for f in dataset.features], dataset.frozen.tolist(), strict=True))
    assert [name for name, is_frozen in frozen.items() if not is_frozen] == ["age", "sure"]
    x = load_dataset("csv=t.csv/label=ill/bounds=b.csv").test.x
    assert torch.equal(x[:, 0], torch.tensor([0.2, 0.6, 0.4, 0.3, 0.5, 0.25]))
    assert torch.equal(x[:, 4], torch.full((6,), 0.5))


def test_what_is_frozen_is_in_the_identity_and_only_where_something_is() -> None:
    _saved(age=None, city=None, smokes=None, sure=None, weight=[50.0, 60, 70, 80, 90, 100])
    plain, frozen = (
        load_dataset("csv=t.csv/label=ill"),
        load_dataset("csv=t.csv/label=ill/frozen=blood"),
    )
    assert plain.frozen is None
    assert identify_data(plain, "test").keys() == {"name", "sha256"}
    assert identify_data(frozen, "test").keys() == {"name", "sha256", "frozen"}
    other = load_dataset("csv=t.csv/label=ill/frozen=weight")
    assert identify_data(frozen, "test")["frozen"] != identify_data(other, "test")["frozen"]


@pytest.mark.parametrize("column", ["label", "Class", "target", "y"])
def test_the_usual_names_of_labels_need_not_be_said(column: str) -> None:
    table = pd.DataFrame({"a": np.arange(6) / 4, column: [1, 3, 2, 3, 1, 2]})
    table.to_csv("t.csv", index=False)
    dataset = load_dataset("csv=t.csv")
    assert dataset.name == f"csv=t.csv/label={column}"
    assert (dataset.labels, dataset.test.y.tolist()) == (("1", "2", "3"), [0, 2, 1, 2, 0, 1])


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, -1, 9, 10, -1], ("-1", "9", "10")),
        ([0.0, 1.0, 1.0, 0.0, 1.0, 0.0], ("0", "1")),
        ([True, False, False, True, True, False], ("False", "True")),
        ([" a", "b ", "a", "b", "a", "b"], ("a", "b")),
    ],
)
def test_labels_are_numbers_or_texts(labels: list[Any], names: tuple[str, ...]) -> None:
    _saved(ill=labels)
    assert load_dataset("csv=t.csv/label=ill").labels == names


def test_a_folder_with_train_and_test_has_the_bounds_of_both(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    _saved("both/train.csv")
    _saved("both/test.csv", age=[10, 70, 40, 30, 50, 25], city=["z"] * 6)
    dataset = load_dataset("csv=both/label=ill")
    assert dataset.features[0] == ("age", 10, 70)
    assert dataset.features[2] == ("city", 0, 3)
    assert float(dataset.test.x[0, 0]) == 0
    assert torch.equal(dataset.train.x[1, 2], torch.tensor(0.0))
    told = refusal(lambda: load_dataset("csv=both/label=ill/split=0.5"))
    assert "has a train and a test split already" in told


def test_parquet_is_read_as_csv() -> None:
    pytest.importorskip("pyarrow")
    _saved()
    pd.DataFrame(TABLE).astype({"city": "category"}).to_parquet("t.parquet")
    csv, parquet = load_dataset("csv=t.csv/label=ill"), load_dataset("parquet=t.parquet/label=ill")
    assert torch.equal(csv.test.x, parquet.test.x)
    assert parquet.name == "parquet=t.parquet/label=ill"
    Path("t.parquet").write_bytes(b"PAR1")
    assert "t.parquet is no table" in refusal(lambda: load_dataset("parquet=t.parquet/label=ill"))


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    Path("t.parquet").touch()
    told = refusal(lambda: load_dataset("parquet=t.parquet"))
    assert told == "t.parquet needs a package: pip install 'bestattack[parquet]'"


def test_variants_of_values_and_classes_work_and_those_of_images_say_so() -> None:
    _saved(ill=["a", "b", "c", "a", "b", "c"])
    plain = load_dataset("csv=t.csv/label=ill")
    pair = load_dataset("csv=t.csv/label=ill/pair=c-a")
    assert pair.test.y.tolist() == [1, 0, 1, 0]
    assert pair.features == plain.features
    assert pair.frozen is not None
    assert pair.frozen.tolist() == [True, False, True, True, True]
    binary = load_dataset("csv=t.csv/label=ill/binarize")
    assert torch.equal(binary.test.x, (plain.test.x >= 0.5).float())
    assert binary.features == ()
    assert binary.frozen is not None
    for variant in ("smooth=3", "edge"):
        told = refusal(lambda variant=variant: load_dataset(f"csv=t.csv/label=ill/{variant}"))
        assert f"{variant[:4]}" in told
        assert "is for images, not for rows of 5 features" in told


def test_a_split_of_a_table_loses_nothing() -> None:
    _saved()
    whole, halves = (
        load_dataset("csv=t.csv/label=ill").test,
        load_dataset("csv=t.csv/label=ill/split=0.7"),
    )
    assert rows(halves.train.x, halves.train.y) + rows(halves.test.x, halves.test.y) == rows(
        whole.x, whole.y
    )


GAP = [1.5, None, 2.0, 1.75, 2.25, 2.0]
INTEGERS = {"blood": None, "sure": None}


@pytest.mark.parametrize(
    ("changed", "options", "told"),
    [
        ({}, "", "which column has the labels? Add label=COLUMN to the name: there are age, blood"),
        ({}, "label=il", "t.csv has no column 'il': did you mean 'ill'?"),
        ({"label": ILL, "y": ILL}, "", "which column has the labels?"),
        (
            {"blood": GAP},
            "label=ill",
            "column 'blood' lacks 1 of 6 values, the first in row 2: fill",
        ),
        ({"city": ["a", "b", None, "a", "b", "a"]}, "label=ill", "column 'city' lacks 1 of 6"),
        ({"blood": [np.inf, 1, 2, 3, 4, 5]}, "label=ill", "column 'blood' is infinite in row 1"),
        (
            {"blood": ["1.5", "?", "2.0", "1.75", "2.25", "2.0"]},
            "label=ill",
            "column 'blood' holds numbers and, in row 2, '?': fill it, or leave the row out",
        ),
        ({"ill": ["yes", None, "no", "yes", "no", "no"]}, "label=ill", "label in row 2 is missing"),
        ({"ill": [0.5, 1, 0, 1, 1, 0]}, "label=ill", "label 0.5 is neither a text nor a whole"),
        (
            {"ill": [1, 2, 3, 4, 5, 6]},
            "label=ill",
            "6 different labels for 6 samples are no classes",
        ),
        ({"ill": ["no"] * 6}, "label=ill", "all samples are of one class, 'no'"),
        (
            dict.fromkeys(("age", "blood", "city", "smokes", "sure")) | {"a": ILL, "ill": ILL},
            "label=ill",
            "all features are frozen, so that nothing can be attacked",
        ),
        (INTEGERS, "label=ill", "name whole numbers that may change, as in free=COLUMN+COLUMN"),
        (
            {},
            "label=ill/frozen=age+bloot",
            "frozen names 'bloot', which is no feature: did you mean",
        ),
        ({}, "label=ill/free=ill", "free names 'ill', which is no feature"),
        ({}, "label=ill/free=age/frozen=age", "'age' is named in frozen and in free"),
        ({}, "label=ill/free=city", "column 'city' holds categories: leave it out of free"),
        ({}, "label=ill/free=sure", "'sure' has one value alone, so that it has no range"),
        ({" ": [1.0] * 6}, "label=ill", "t.csv has a column without a name"),
        (dict.fromkeys(TABLE) | {"ill": ILL}, "label=ill", "has one column: put commas between"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_in_one_line(
    changed: dict[str, Any], options: str, told: str
) -> None:
    _saved(**changed)
    assert told in refusal(lambda: load_dataset("/".join(filter(None, ["csv=t.csv", options]))))


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ("feature,lower,upper\nblood,1.75,3\n", "'blood' is 1.5 in row 1, out of its bounds 1.75"),
        ("feature,lower,upper\nblood,3,1\n", "the lower bound of 'blood' must be below the upper"),
        ("feature,lower,upper\nblood,a,1\n", "the bounds of 'blood' are no numbers"),
        ("feature,lower,upper\nblod,0,1\n", "bounds 'blod', which is no feature: did you mean"),
        ("feature,lower,upper\ncity,0,1\n", "column 'city' holds categories: leave it out of bou"),
        ("name,low,high\nblood,0,1\n", "must have the columns feature, lower and upper"),
        ("", "b.csv is no table"),
    ],
)
def test_bounds_that_do_not_fit_are_refused(bounds: str, told: str) -> None:
    _saved()
    Path("b.csv").write_text(bounds)
    assert told in refusal(lambda: load_dataset("csv=t.csv/label=ill/bounds=b.csv"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "t.csv is no table"),
        (b"a,b\n", "t.csv has no rows"),
        (b"a;b\n1;2\n", "t.csv has one column: put commas between columns"),
        (b"a,b\n1,2,3\n1,2,3,4\n", "t.csv is no table"),
        (b"\xff\xfe\x00\x01,\x80\n1,2\n", "t.csv"),
        (b",a,y\n0,0.5,1\n1,0.25,0\n", "t.csv has a column without a name"),
    ],
)
def test_files_that_are_no_tables_are_named(content: bytes, told: str) -> None:
    Path("t.csv").write_bytes(content)
    assert told in refusal(lambda: load_dataset("csv=t.csv/label=y"))


def test_folders_that_lack_a_table_and_tables_that_differ_are_told(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    _saved("both/train.csv")
    assert "without train.csv and test.csv" in refusal(lambda: load_dataset("csv=both/label=ill"))
    _saved("both/test.csv", age=None)
    told = refusal(lambda: load_dataset("csv=both/label=ill"))
    assert "column 'age' is in one of its two tables alone" in told


def test_frozen_features_must_fit_the_samples_and_leave_some() -> None:
    split = Split(torch.zeros(2, 3), torch.tensor([0, 1]))
    for frozen, told in (
        (torch.tensor([True, False]), "frozen must be bool (3,)"),
        (torch.zeros(3), "frozen must be bool (3,)"),
        (torch.ones(3, dtype=torch.bool), "all features are frozen"),
    ):
        message = refusal(
            lambda frozen=frozen: Dataset("t", ("a", "b"), (3,), lambda part: split, frozen)
        )
        assert told in message
