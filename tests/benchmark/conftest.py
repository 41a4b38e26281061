"""What the tests of `benchmark` share: the command line in this process, and clean registries."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from benchmark.cli.main import main
from benchmark.spec.registry import ATTACKS, DATASETS, DEFENSES


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


Cli = Callable[..., Ended]


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


def refused(ended: Ended, line: str) -> None:
    """Assert that a command ended with one line."""
    assert ended == (1, "", f"bestattack: {line}\n")


def assert_written(folder: Path, name: str, ended: Ended) -> pd.DataFrame:
    """The records of a study, once it is clear that it printed and wrote all that it should."""
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == (folder / f"{name}.md").read_text() + "\n"
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return pd.read_csv(folder / f"{name}.csv", dtype={"label": str})
