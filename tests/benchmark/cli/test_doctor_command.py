"""`bestattack doctor` fits a terminal, ends with what is to mend, and fails only for what is
wrong."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmark.machine import examined
from benchmark.machine.checkup import Line, Section, closing
from benchmark.machine.processors import Processors
from benchmark.machine.software import Package
from benchmark.machine.trials import Trial
from tests.benchmark.data.fake_files import isolate
from tests.conftest import Cli

IDLE = Processors(2, 2, 2, 0.1, (0.002, 0.001))
BUSY = Processors(2, 2, 2, 3.0, (0.002, 0.001))


@pytest.fixture(autouse=True)
def _sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which all is well, as far as this one does not decide it."""
    isolate(tmp_path, monkeypatch)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setattr(Package, "version", "1.0")
    monkeypatch.setattr(examined, "devices", lambda: Section("Devices", [Line("cpu", "fast")]))
    _find(monkeypatch, IDLE, {})
    monkeypatch.setattr(examined, "speed", lambda device: Section("Speed", [Line("CNN-2", "9")]))


def _find(monkeypatch: pytest.MonkeyPatch, seen: Processors, trials: dict[str, Trial]) -> None:
    def tried(modules: Sequence[str], seconds: float) -> dict[str, Trial]:
        assert "torchvision" in modules
        assert seconds < 60
        return trials

    monkeypatch.setattr(examined, "found", lambda: seen)
    monkeypatch.setattr(examined, "try_imports", tried)


def test_all_is_well(cli: Cli) -> None:
    ended = cli("doctor")
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[-1] == "All is well."
    assert "\x1b" not in ended.out
    assert not any(line.startswith("!") for line in lines)


def test_what_is_to_mend_is_counted_and_fits(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Trial(
        "RuntimeError: operator torchvision::nms does not exist " + "and more " * 20, True
    )
    _find(monkeypatch, BUSY, {"torchvision": broken})
    ended = cli("doctor")
    # Both make runs slower or smaller, and none wrong.
    assert (ended.status, ended.err) == (0, "")
    assert "2 things to mend:\n1. torchvision: " in ended.out
    assert "\n2. threads: Set OMP_NUM_THREADS=1, or give --threads 1" in ended.out
    assert "Traceback" not in ended.out
    # But for paths, which are not broken.
    assert all(len(line) <= 80 or "/" in line for line in ended.out.splitlines())
    assert sum(line.startswith("!") for line in ended.out.splitlines()) == 2


def test_what_makes_runs_wrong_is_a_failure(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _find(monkeypatch, IDLE, {"foolbox": Trial("ImportError: no")})
    ended = cli("doctor")
    assert (ended.status, ended.err) == (1, "")
    assert "1 thing to mend:\n1. foolbox: " in ended.out


def test_every_remedy_is_told_once() -> None:
    sections = [
        Section("A", [Line("a", "x", "Do a."), Line("b", "x")]),
        Section("B", [Line("c", "x", "Do c.")]),
    ]
    assert closing(sections).splitlines() == ["2 things to mend:", "1. a: Do a.", "2. c: Do c."]
    assert str(sections[0]).splitlines()[1:] == ["! a               x", "  b               x"]


def test_paths_are_not_broken() -> None:
    path = "/a-long/path" * 12
    assert path in str(Line("cache", f"{path}, 3 GB free"))
    assert path in closing([Section("Data", [Line("cache", "full", f"Make room in {path}.")])])


def test_the_version_is_told(cli: Cli) -> None:
    from bestattack import __version__

    ended = cli("--version")
    assert (ended.status, ended.out, ended.err) == (0, f"bestattack {__version__}\n", "")
