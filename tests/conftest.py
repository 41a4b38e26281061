"""What every test shares, among it the command line in this process, and clean registries."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Before torch is loaded, as in `benchmark`: waiting threads must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from benchmark.cli.main import main
from benchmark.spec.registry import ATTACKS, DATASETS, DEFENSES


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


Cli = Callable[..., Ended]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow: give --slow to run it")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """But for timings: the tensors here are tiny, and more threads make them slow."""
    before = torch.get_num_threads()
    if "performance" not in request.path.parts:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`bestattack WORDS...`, in this process."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which main replaces

    def call(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["bestattack", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(autouse=True)
def _no_plugin_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (ATTACKS, DEFENSES, DATASETS):
        monkeypatch.setattr(registry, "_local", dict(registry._local))
