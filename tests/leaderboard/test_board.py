"""The board is built from what holds, and every digit of it is verified."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from defenses.training.saved import WEIGHTS
from leaderboard.board import check
from leaderboard.submission.record import RECORD
from tests.benchmark.conftest import Cli, Ended, refused
from tests.leaderboard.conftest import (
    Small,
    change_record,
    rewrite_card,
)


def _verify(cli: Cli, small: Small, *words: object) -> Ended:
    return cli("leaderboard", "verify", "--board", small.board, *words)


def test_a_board_holds(small: Small, cli: Cli) -> None:
    ended = _verify(cli, small)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.endswith(f"The tables of {small.board} hold.\n")
    assert len(ended.out.splitlines()) == 4


@pytest.mark.parametrize("name", ["README.md", "site/index.html"])
def test_one_digit_that_differs_fails(small: Small, cli: Cli, name: str) -> None:
    path = small.board / name
    text = path.read_text()
    number = json.loads((small.rows / "nbr" / RECORD).read_text())["numbers"]["best_attack"]
    digits = f"{100 * number:.1f} ["
    assert digits in text
    other = f"{100 * number:.1f}"[:-1] + ("1" if digits[-3] != "1" else "2") + " ["
    path.write_text(text.replace(digits, other))
    ended = _verify(cli, small)
    assert ended.status == 1
    assert f"{path} is not what weights and evidence give: line" in ended.err
    assert ended.err.endswith(f"bestattack: the tables of {small.board} do not hold\n")


def test_a_row_that_does_not_hold_fails_and_is_named(small: Small, cli: Cli) -> None:
    change_record(small.rows / "nbr", lambda record: record["numbers"].update(natural=1.0))
    ended = _verify(cli, small)
    assert ended.status == 1
    assert f"{small.rows / 'nbr' / RECORD}: natural is 1.0" in ended.err


def test_a_row_that_is_gone_fails(small: Small, cli: Cli) -> None:
    shutil.rmtree(small.rows / "nbr")
    assert _verify(cli, small).status == 1


def test_one_task_alone_is_replayed(small: Small, cli: Cli) -> None:
    assert _verify(cli, small, "--task", "digits").status == 0
    line = "unknown task 'digit': did you mean 'digits'?"
    refused(_verify(cli, small, "--task", "digit"), line)


def test_building_again_changes_nothing(small: Small, cli: Cli) -> None:
    before = {path: path.read_bytes() for path in small.board.rglob("*") if path.is_file()}
    assert cli("leaderboard", "build", "--board", small.board).status == 0
    assert {path: path.read_bytes() for path in small.board.rglob("*") if path.is_file()} == before


def test_what_holds_is_merged_and_what_does_not_is_refused(
    small: Small, cli: Cli, tmp_path: Path
) -> None:
    for row in ("nbr", "vanilla"):
        shutil.move(small.rows / row, tmp_path / row)
    change_record(tmp_path / "nbr", lambda record: record["numbers"].update(natural=1.0))
    submissions = [tmp_path / "nbr", tmp_path / "vanilla"]
    ended = cli("leaderboard", "build", *submissions, "--board", small.board)
    assert ended.status == 1
    assert "digits vanilla: merged" in ended.out
    assert f"refused: {tmp_path / 'nbr' / RECORD}: natural is 1.0" in ended.err
    assert ended.err.endswith("bestattack: 1 of 2 submissions do not hold\n")
    assert (small.rows / "vanilla" / WEIGHTS).is_file()
    assert not (small.rows / "nbr").exists()
    assert _verify(cli, small).status == 0


def test_a_second_row_of_a_name_is_refused(small: Small, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(small.rows / "vanilla", tmp_path / "copy")
    ended = cli("leaderboard", "build", tmp_path / "copy", "--board", small.board)
    assert "task digits has a row vanilla already" in ended.err


def test_a_folder_that_is_no_board_is_refused(cli: Cli, tmp_path: Path) -> None:
    line = (
        f"{tmp_path} is no leaderboard (it has no tasks.yaml): start in a clone of bestattack's "
        "repository, which has the rows, or name the folder with --board"
    )
    refused(cli("leaderboard", "verify", "--board", tmp_path), line)


def test_nothing_is_built_where_all_is_refused(small: Small, cli: Cli) -> None:
    before = (small.board / "README.md").stat().st_mtime_ns
    ended = cli("leaderboard", "build", small.board / "nothing", "--board", small.board)
    assert (ended.status, ended.out) == (1, "")
    assert (small.board / "README.md").stat().st_mtime_ns == before


def test_a_number_that_evidence_does_not_bear_is_never_built(small: Small, cli: Cli) -> None:
    change_record(small.rows / "nbr", lambda record: record["numbers"].update(best_attack=0.99))
    ended = cli("leaderboard", "build", "--board", small.board)
    assert ended.err.startswith(f"bestattack: {small.rows / 'nbr' / RECORD}: best_attack is 0.99")


def test_a_row_of_another_task_is_not_this_ones(small: Small, cli: Cli) -> None:
    tasks = yaml.safe_load((small.board / "tasks.yaml").read_text())
    tasks["other"] = {"title": "Other", "about": "Another."}
    (small.board / "tasks.yaml").write_text(yaml.safe_dump(tasks))
    spec = (small.board / "specs" / "digits.yaml").read_text()
    (small.board / "specs" / "other.yaml").write_text(spec.replace("eps: 0.5", "eps: 0.4"))
    shutil.copytree(small.rows / "nbr", small.board / "rows" / "other" / "nbr")
    ended = cli("leaderboard", "build", "--board", small.board)
    line = f"{small.board / 'rows' / 'other' / 'nbr'} is of task digits, not other"
    refused(ended, line)


def test_a_submission_takes_no_other_rows_place(
    small: Small, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever its folder lies and whatever it is called."""
    names = sorted(path.name for path in small.rows.iterdir())
    shutil.copytree(small.rows / "vanilla", tmp_path / "nbr")
    monkeypatch.chdir(tmp_path / "nbr")
    for folder in (tmp_path / "nbr", Path("."), Path("x/..")):
        ended = cli("leaderboard", "build", folder, "--board", small.board)
        assert "task digits has a row vanilla already" in ended.err or "no submission" in ended.err
        assert sorted(path.name for path in small.rows.iterdir()) == names
    shutil.rmtree(small.rows / "vanilla")
    assert cli("leaderboard", "build", Path("."), "--board", small.board).status == 0
    assert sorted(path.name for path in small.rows.iterdir()) == names


def test_only_what_is_listed_is_merged(small: Small, cli: Cli, tmp_path: Path) -> None:
    shutil.move(small.rows / "nbr", tmp_path / "nbr")
    (tmp_path / "nbr" / "notes.txt").symlink_to("/etc/hostname")
    assert cli("leaderboard", "build", tmp_path / "nbr", "--board", small.board).status == 0
    names = {path.name for path in (small.rows / "nbr").iterdir()}
    assert names == {
        "README.md", "record.json", "spec.yaml", "card.json", "evidence.npz", WEIGHTS
    }  # fmt: skip


def test_a_broken_row_is_in_no_other_rows_way(small: Small, cli: Cli, tmp_path: Path) -> None:
    shutil.move(small.rows / "nbr", tmp_path / "nbr")
    (small.rows / "l2nnn" / "evidence.npz").write_bytes(b"")
    ended = cli("leaderboard", "build", tmp_path / "nbr", "--board", small.board)
    assert "digits NBR: merged" in ended.out


def test_weights_that_would_not_be_found_are_not_merged(
    small: Small, cli: Cli, tmp_path: Path
) -> None:
    shutil.move(small.rows / "nbr", tmp_path / "nbr")
    shutil.move(tmp_path / "nbr" / WEIGHTS, tmp_path / "weights")
    change_record(tmp_path / "nbr", lambda record: record["weights"].update(at="../weights"))
    rewrite_card(tmp_path / "nbr")
    assert check(tmp_path / "nbr", small.tasks, False).record.row == "NBR"
    ended = cli("leaderboard", "build", tmp_path / "nbr", "--board", small.board)
    assert "says that weights are there" in ended.err
    assert not (small.rows / "nbr").exists()
