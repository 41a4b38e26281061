"""`import bestattack`: what it offers, and what it says where a package of ours is hidden."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import attacks
import benchmark
import bestattack
import defenses

ROOT = Path(__file__).parents[1]


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python in a folder whose own modules come before ours."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_it_offers_what_users_need() -> None:
    assert bestattack.evaluate is benchmark.evaluate
    assert bestattack.load_dataset is benchmark.load_dataset
    assert bestattack.Report is benchmark.Report
    assert bestattack.UserError is benchmark.UserError
    assert bestattack.ThreatModel is attacks.ThreatModel
    assert bestattack.Attack is attacks.Attack
    assert bestattack.Problem is attacks.Problem
    assert bestattack.Facts is attacks.Facts
    assert bestattack.Recipe is defenses.Recipe
    assert bestattack.__version__ == version("bestattack")
    assert set(dir(bestattack)) == set(bestattack.__all__)
    with pytest.raises(AttributeError, match=r"^module .bestattack. has no attribute .evalute.$"):
        bestattack.evalute  # noqa: B018


def test_importing_it_loads_nothing_yet(tmp_path: Path) -> None:
    script = "import sys, bestattack; print('torch' in sys.modules, 'attacks' in sys.modules)"
    assert _run(tmp_path, "-c", script).stdout == "False False\n"


@pytest.mark.parametrize(
    "name",
    [
        "attacks",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("defenses", "benchmark", "leaderboard")
        ),
    ],
)
@pytest.mark.parametrize("kind", ["file", "folder", "folder without code"])
def test_a_package_that_hides_ours_is_named_in_one_line(
    tmp_path: Path, name: str, kind: str
) -> None:
    place = tmp_path / f"{name}.py" if kind == "file" else tmp_path / name / "__init__.py"
    place.parent.mkdir(exist_ok=True)
    place.write_text("")
    if kind == "folder without code":
        # A namespace package comes after ours, and hides nothing.
        place.unlink()
        assert _run(tmp_path, "-c", "from bestattack import evaluate").stderr == ""
        return
    shown = place if kind == "file" else place.parent
    line = (
        f"another '{name}', at {shown}, hides the package of that name that bestattack needs: "
        "rename or uninstall it, or start Python in another folder"
    )
    ended = _run(tmp_path, "-c", "from bestattack import evaluate")
    assert ended.stderr.splitlines()[-1] == f"ImportError: {line}"
    ended = _run(tmp_path, "-m", "bestattack", "list", "attacks")
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"bestattack: {line}\n")


def test_the_command_is_the_module(tmp_path: Path) -> None:
    ended = _run(tmp_path, "-m", "bestattack", "list", "suites")
    assert ended.returncode == 0
    assert "strong" in ended.stdout
    assert "leaderboard" in _run(tmp_path, "-m", "bestattack", "--help").stdout
