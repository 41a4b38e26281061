"""Models of the user's code: after the code has moved, and trained into a folder that is taken."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Cli

NET = """
from torch import nn


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def test_code_that_moved_is_used_where_it_is_now(tmp_path: Path, cli: Cli) -> None:
    """The same run from a copy of the folder trains nothing, and no longer needs the first one."""
    run, first, second = tmp_path / "run", tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "net.py").write_text(NET)

    def again(home: Path) -> dict[str, list[str]]:
        words = ["--samples", 20, "--eps", 0.5, "--attack", "pgd/steps=3", "--quiet"]
        spec = home / "spec.yaml"
        spec.write_text(f"defenses:\n- {{name: external, model: '{home}/net.py:net', epochs: 1}}\n")
        ended = cli("run", spec, *words, "--out", run)
        assert ended.status == 0, ended.err
        rows = json.loads((run / "run.json").read_text())["rows"]
        return {row["model"]: list(row["cells"].values()) for row in rows}

    before = again(first)
    shutil.copytree(first, second)
    assert again(second) == before
    shutil.rmtree(first)
    assert cli("verify", run).status == 0


def test_training_leaves_another_model_in_the_folder_alone(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    assert cli("train", "digits", "vanilla/epochs=1", "--out", "model", "--quiet").status == 0
    before = Path("model/model.safetensors").read_bytes()
    built = "external/model=net.py:net/epochs=0"
    ended = cli("train", "digits", built, "--out", "model", "--quiet")
    assert ended.status == 1
    assert "holds another model" in ended.err, ended.err
    assert Path("model/model.safetensors").read_bytes() == before
