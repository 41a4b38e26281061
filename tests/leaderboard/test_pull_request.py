"""A stranger's way to the board: a spec from a template, a run, a submission, and the check of the
pull request that brings it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmark.errors import UserError
from leaderboard.tasks import SPECS, spec_for
from tests.conftest import Cli
from tests.leaderboard.conftest import Small, change_record

ROOT = Path(__file__).parents[2]


def _git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a stranger", "-c", "user.email=stranger@example.com"]
    return subprocess.check_output(["git", *identity, *words], cwd=folder, text=True).strip()


def _check(clone: Path, board: Path, base: str) -> subprocess.CompletedProcess[str]:
    """What the workflow runs in the checkout of a pull request."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [str(ROOT / ".ci" / "submissions"), str(board), base], cwd=clone, text=True,
        capture_output=True, check=False, env=os.environ | {"PATH": path, "PYTHONPATH": paths},
    )  # fmt: skip


def test_a_template_asks_for_what_the_task_asks_for(small: Small) -> None:
    text = spec_for("digits", ["trades/epochs=2"], [], small.board)
    task = yaml.safe_load((small.board / SPECS / "digits.yaml").read_text())
    assert yaml.safe_load(text) == task | {"defenses": ["trades/epochs=2"]}


@pytest.mark.parametrize(
    ("task", "defense", "told"),
    [
        ("digit", "vanilla", "unknown task 'digit': did you mean 'digits'?"),
        ("digits", "vanila", "unknown defense 'vanila': did you mean 'vanilla'?"),
        ("digits", "vanilla/epoch=2", "has no option 'epoch': did you mean 'epochs'?"),
    ],
)
def test_mistakes_are_told(small: Small, task: str, defense: str, told: str) -> None:
    with pytest.raises(UserError, match=told.replace("?", r"\?")):
        spec_for(task, [defense], [], small.board)


def test_a_file_is_not_written_over(small: Small, tmp_path: Path, cli: Cli) -> None:
    target = tmp_path / "mine.yaml"
    words = ["leaderboard", "template", "digits", "--defense", "vanilla", "--board", small.board]
    assert cli(*words, "--out", target).status == 0
    text = target.read_text()
    ended = cli(*words, "--out", target)
    assert ended.status == 1
    assert "exists already" in ended.err
    assert target.read_text() == text


def test_the_rows_of_a_pull_request_are_checked(small: Small, tmp_path: Path, cli: Cli) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "README.md").write_text("a project")
    _git(clone, "init", "--quiet")
    _git(clone, "add", ".")
    _git(clone, "commit", "--quiet", "--message", "base")
    base = _git(clone, "rev-parse", "HEAD")
    ended = _check(clone, small.board, base)
    assert (ended.returncode, ended.stdout) == (0, "No row is added or changed.\n")

    spec = tmp_path / "mine.yaml"
    words = ["template", "digits", "--defense", "vanilla/epochs=1", "--out", spec]
    assert cli("leaderboard", *words, "--board", small.board).status == 0
    ended_run = cli("run", spec, "--out", tmp_path / "run", "--quiet")
    assert ended_run.status == 0, ended_run.err
    words = ["submit", tmp_path / "run", "--board", small.board, "--out", clone / "submissions"]
    submitted = cli("leaderboard", *words)
    assert submitted.status == 0, submitted.err
    _git(clone, "add", ".")
    _git(clone, "commit", "--quiet", "--message", "a row")
    ended = _check(clone, small.board, base)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.startswith("- **holds**\n      submissions/digits/")

    (row,) = (clone / "submissions" / "digits").iterdir()
    spoilt = row.parent / "spoilt"
    shutil.copytree(row, spoilt)
    change_record(spoilt, lambda record: record["numbers"].update(best_attack=0.99))
    _git(clone, "add", ".")
    _git(clone, "commit", "--quiet", "--message", "a row that was made up")
    ended = _check(clone, small.board, base)
    assert ended.returncode == 1
    assert "- **holds**" in ended.stdout
    assert "- **does not hold**\n      bestattack: " in ended.stdout


def test_the_workflows_are_of_what_is_there() -> None:
    folder = ROOT / ".github" / "workflows"
    check = (folder / "submission.yml").read_text()
    assert "../trusted/.ci/submissions ../trusted/leaderboard" in check
    # Only what runs nothing of a pull request may write.
    allowed = {
        path.stem: yaml.safe_load(path.read_text())["permissions"] for path in folder.glob("*.yml")
    }
    assert allowed == {
        "submission": {"contents": "read"},
        "verdict": {"actions": "read", "pull-requests": "write"},
    }
    assert "checkout" not in (folder / "verdict.yml").read_text().split("jobs:")[1]
