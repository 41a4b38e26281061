"""Data sets are found where a run would look for them, and nothing is made on the way."""

from pathlib import Path

import pytest

from benchmark.data.files import _MIRRORS
from benchmark.data.places import IN_FILES, files_of
from benchmark.machine import storage
from benchmark.spec.registry import DATASETS
from tests.benchmark.data.fake_files import isolate


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)


def _texts(root: Path | None) -> dict[str, str]:
    return {line.name: line.text for line in storage.data_sets(root).lines}


def test_data_sets_are_sought_where_runs_look(tmp_path: Path) -> None:
    assert set(_texts(None)) == set(DATASETS._builtin)
    assert set(IN_FILES) == set(_MIRRORS)
    absent = "not here: the first run on it downloads it"
    assert {text for name, text in _texts(None).items() if name != "digits"} == {absent}

    files = [places[-1] for part in ("train", "test") for places in files_of("mnist", part)]
    for count, file in enumerate(files, 1):
        (tmp_path / "cache" / "data" / "mnist").mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / "data" / file).touch()
        text = _texts(tmp_path / "elsewhere")["mnist"]
        assert text.startswith(str(tmp_path / "cache" / "data" / "mnist"))
        assert text.endswith("mnist") == (count == 4)
    # An archive of both splits is one file.
    (tmp_path / "root" / "tiny-imagenet").mkdir(parents=True)
    (tmp_path / "root" / files_of("tiny-imagenet", "test")[0][0]).touch()
    assert _texts(tmp_path / "root")["tiny-imagenet"] == str(tmp_path / "root" / "tiny-imagenet")


def test_room_is_looked_for_without_making_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(line.remedy for line in storage.storage(None).lines)
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(storage, "_LITTLE", 2**62)
    assert all("Make room" in line.remedy for line in storage.storage(None).lines)


def test_one_folder_for_data_is_enough(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()  # so that nothing can be made in it
    cache, runs = storage.storage(None).lines
    assert "set BESTATTACK_DATA" in cache.remedy
    assert not runs.remedy
    data, cache, _ = storage.storage(tmp_path / "data").lines
    assert data.text.startswith(f"{tmp_path / 'data'}, not made yet, ")
    assert cache.text.endswith("cannot be written")
    assert not cache.remedy
    (tmp_path / "runs").touch()
    assert "--out" in storage.storage(tmp_path / "data").lines[-1].remedy
