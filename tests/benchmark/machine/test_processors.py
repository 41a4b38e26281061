"""Threads that wait for each other, or for cores that others have, are told of."""

from pathlib import Path

import pytest
import torch

from benchmark.machine import processors
from benchmark.machine.processors import Processors, allowed_cores, convolution_seconds


@pytest.mark.parametrize(
    "seen",
    [
        Processors(2, 2, 2, 1.0),  # another process has a core
        Processors(2, 2, 2, 0.0, (0.001, 0.002)),  # two threads are slower
        Processors(64, 64, 64, 32.0, (0.001, 0.0005)),
    ],
)
def test_threads_that_wait_are_to_be_one(seen: Processors) -> None:
    assert seen.remedy.startswith("Set OMP_NUM_THREADS=1, or give --threads 1, ")


@pytest.mark.parametrize(
    "seen",
    [
        Processors(2, 2, 1, 50.0),  # one thread waits for nobody
        Processors(2, 2, 2, 0.2, (0.002, 0.001)),
        Processors(2, 2, 2, None),
        Processors(64, 64, 8, 40.0, (0.002, 0.001)),  # there are cores for all
    ],
)
def test_threads_that_have_cores_stay(seen: Processors) -> None:
    assert seen.remedy == ""


def test_more_threads_than_a_container_has_cores_are_too_many() -> None:
    assert "OMP_NUM_THREADS=2:" in Processors(64, 2.0, 64, 0.0).remedy
    assert "OMP_NUM_THREADS=1:" in Processors(64, 0.5, 2, 0.0).remedy


def test_a_container_allows_a_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors.os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    monkeypatch.setattr(processors, "_LIMITED", tmp_path)
    assert allowed_cores() == 3
    for text, cores in (("max 100000\n", 3), ("150000 100000\n", 1.5), ("800000 100000\n", 3)):
        (tmp_path / "cpu.max").write_text(text)
        assert allowed_cores() == cores
    # In the older form.
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for text, cores in (("-1\n", 3), ("200000\n", 2)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(text)
        assert allowed_cores() == cores


def test_a_measurement_leaves_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_SECONDS", 0.001)
    before = torch.get_num_threads()
    seconds = convolution_seconds([1, 2])
    assert len(seconds) == 2
    assert all(0 < each < 1 for each in seconds)
    assert torch.get_num_threads() == before


def test_threads_that_spin_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Processors(2, 2, 1, 0.0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert not any(line.remedy for line in processors.processors(seen).lines)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    (line,) = (line for line in processors.processors(seen).lines if line.remedy)
    assert line.remedy.startswith("Unset OMP_WAIT_POLICY")
