"""Names of data in files: where the path ends, and how a name stays valid anywhere."""

from pathlib import Path

import pytest

from benchmark.spec.run_spec import RunSpec, make_spec
from benchmark.spec.source_names import (
    is_source,
    noun_of,
    read_source,
    with_absolute_paths,
    without_places,
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep/in=side").mkdir(parents=True)
    for name in ("x.npz", "deep/x.npz", "deep/in=side/x.npz", "deep/y.npy"):
        (tmp_path / name).touch()


@pytest.mark.parametrize(
    ("name", "place", "words"),
    [
        ("npz=x.npz", "x.npz", ()),
        ("npz=x.npz/scale=255/pair=0-1", "x.npz", ("scale=255", "pair=0-1")),
        ("npz=deep/x.npz/binarize", "deep/x.npz", ("binarize",)),
        ("npz=deep/in=side/x.npz/split=0.8", "deep/in=side/x.npz", ("split=0.8",)),
        ("folder=deep/", "deep/", ()),
        ("folder=deep/size=8", "deep", ("size=8",)),
        ("npy=x.npz/labels=deep/y.npy/scale=2", "x.npz", ("labels=deep/y.npy", "scale=2")),
        ("npy=x.npz/labels=no/y.npy", "x.npz", ("labels=no", "y.npy")),
        ("npz=no/where/x.npz/scale=255/a", "no/where/x.npz", ("scale=255", "a")),
        ("npz=deep/no.npz/scale=255", "deep/no.npz", ("scale=255",)),
        ("huggingface=owner/name/edge", "owner/name", ("edge",)),
        ("csv=x.npz/frozen=" + "+".join("abcdefgh" * 60), "x.npz", None),
        ("npz=", "", ()),
    ],
)
def test_the_path_is_the_longest_that_exists(
    tmp_path: Path, name: str, place: str, words: tuple[str, ...] | None
) -> None:
    source = read_source(name)
    assert source.place == place
    if words is not None:
        assert source.words == words
    assert (source.path is not None) == (tmp_path / place).exists() * bool(place)


def test_absolute_names_are_of_the_same_data_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "npy=deep/x.npz/labels=deep/y.npy/scale=255/pair=0-1"
    absolute = f"npy={tmp_path}/deep/x.npz/labels={tmp_path}/deep/y.npy/scale=255/pair=0-1"
    assert with_absolute_paths(name) == absolute
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert with_absolute_paths(absolute) == absolute
    assert without_places(absolute) == "npy=x.npz/labels=y.npy/scale=255/pair=0-1"
    assert with_absolute_paths(name) == name  # nothing is there


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("mnist/pair=4-9", "mnist/pair=4-9"),
        ("npz=/gone/away/x.npz/scale=255", "npz=x.npz/scale=255"),
        ("huggingface=owner/name/split=0.8", "huggingface=owner/name/split=0.8"),
        ("folder=deep/in=side/", "folder=in=side"),
    ],
)
def test_short_names_have_no_places(name: str, short: str) -> None:
    assert without_places(name) == short


def test_a_spec_keeps_names_that_can_be_loaded_anywhere(tmp_path: Path) -> None:
    values = {"eps": 1, "defenses": ["vanilla"], "data": "npz=deep/x.npz/scale=255"}
    spec = make_spec(values)
    assert spec.data == f"npz={tmp_path}/deep/x.npz/scale=255"
    assert RunSpec.model_validate(spec.model_dump()) == spec
    assert make_spec(values | {"data": "mnist/pair=4-9"}).data == "mnist/pair=4-9"


def test_registered_names_are_no_sources() -> None:
    assert [is_source(name) for name in ("mnist", "mnist/pair=4-9", "npz=x")] == [
        False,
        False,
        True,
    ]
    assert [noun_of(name) for name in ("mnist", "npz=x", "csv=x", "parquet=x/split=0.5")] == [
        *("images", "images", "rows", "rows")
    ]
