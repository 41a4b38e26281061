"""`bestattack demo` is the run whose table the README shows, and what `make demo` runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.cli import run_command
from benchmark.cli.demo_command import DEMO
from benchmark.run import runner
from benchmark.spec.run_spec import RunSpec, make_spec, read_values
from tests.conftest import Cli

ROOT = Path(__file__).parents[3]


def test_it_runs_the_spec_that_is_installed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[RunSpec, Path, int]] = []

    def run(spec: RunSpec, folder: Path, *given: Any) -> list[Any]:
        asked.append((spec, folder, torch.get_num_threads()))
        return []

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(run_command, "print_tables", lambda *_: None)
    monkeypatch.setattr(run_command, "next_command", lambda *_: "")
    torch.set_num_threads(2)  # which the module's fixture puts back
    assert cli("demo").status == 0
    assert cli("run", DEMO).status == 0
    assert cli("demo", "--samples", 3, "--out", "mine", "--threads", 2).status == 0
    spec = make_spec(read_values(DEMO))
    assert asked == [
        (spec, Path("runs/demo"), 1),
        (spec, Path("runs/demo"), 2),
        (spec.model_copy(update={"samples": 3}), Path("mine"), 2),
    ]


def test_it_is_what_make_demo_runs_and_the_readme_shows() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(r"^demo:.*\n\t(.*)\n(?!\t)", makefile, re.M)
    assert recipe == "$(BIN)/bestattack demo"
    spec = make_spec(read_values(DEMO))
    assert spec.data == "digits"  # which needs no download
    rows = re.findall(r"^([\w-]+) +[\dn][\d.atural]+ ", (ROOT / "README.md").read_text(), re.M)
    assert rows == ["defense", *(defense.label for defense in spec.defenses)]
