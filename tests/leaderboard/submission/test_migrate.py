"""A submission of format 1 is brought up to the present one, and no figure changes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from attacks import Attack
from benchmark.errors import UserError
from benchmark.spec.components import CERTIFIED, NATURAL
from benchmark.spec.lineup import lineup_of
from benchmark.spec.run_spec import make_spec
from defenses.training.saved import CARD
from leaderboard.board import check
from leaderboard.submission import migrate as migration
from leaderboard.submission.migrate import migrate
from leaderboard.submission.record import CARD_TEXT, RECORD, SPEC, read_record
from tests.benchmark.conftest import Cli, refused
from tests.leaderboard.conftest import Small, change_record, list_again, refusal
from tests.leaderboard.submission.test_submit import PLUGIN


def _as_object(attack: Attack) -> dict[str, Any]:
    """An attack as format 1 named it: by its class, a hash of source, and options as texts."""
    options: dict[str, Any] = {}
    for field in dataclasses.fields(attack):  # type: ignore[arg-type]
        value = getattr(attack, field.name)
        is_attack = dataclasses.is_dataclass(value)
        options[field.name] = _as_object(value) if is_attack else repr(value)  # type: ignore[arg-type]
    cls = type(attack)
    where = f"{cls.__module__}.{cls.__qualname__}"
    return {"class": where, "options": options, "source": "e55ff78e0b7269d2"}


def to_format_1(folder: Path) -> None:
    """Write a submission as format 1 had it."""
    card = json.loads((folder / CARD).read_text())
    options = {name: repr(value) for name, value in card["hyperparameters"].items()}
    recipe = {"class": "defenses.old.Recipe", "options": options, "source": "77d918d87c61c5aa"}
    card["recipe"] = recipe["class"]
    card["hyperparameters"]["dropped"] = 1
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")
    (folder / CARD_TEXT).write_text("The text of format 1.\n")
    entries = lineup_of(make_spec(yaml.safe_load((folder / SPEC).read_text()))).entries

    def change(record: dict[str, Any]) -> None:
        data = {"name": record["data"]["name"], "sha256": "f" * 64}
        record |= {"format": 1, "data": data}
        for label, cell in record["cells"].items():
            identity = cell["note"]["identity"]
            defense = {"weights": identity["defense"]["weights"], "recipe": recipe, "network": []}
            identity |= {"judge": "d4bcdfd7d5ec4914", "defense": defense, "data": data}
            if label not in (NATURAL, CERTIFIED):
                attack = _as_object(entries[label].attack)
                identity |= {"attack": attack, "peers": {}, "samples": "7b7ceaed32babcb0"}
            cell["key"] = "0" * 16

    change_record(folder, change)
    list_again(folder, CARD)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("row", ["l2nnn", "nbr", "vanilla"])
def test_a_submission_comes_back_as_it_was(small: Small, row: str) -> None:
    """Its keys are those of a run today, and all numbers are replayed."""
    folder = small.rows / row
    before = _contents(folder)
    to_format_1(folder)
    assert f"`bestattack leaderboard migrate {folder}` brings it up to 2" in refusal(small, folder)
    assert migrate(folder, small.tasks, run_code=False)
    assert _contents(folder) == before
    assert check(folder, small.tasks, False).record.row.lower() == row
    assert not migrate(folder, small.tasks, run_code=False)


def test_the_command_says_what_it_did(small: Small, cli: Cli) -> None:
    to_format_1(small.rows / "nbr")
    ended = cli("leaderboard", "migrate", "--board", small.board)
    assert ended.status == 0, ended.err
    assert ended.out.splitlines() == [
        f"{small.rows / 'l2nnn'}: is of the present format already",
        f"{small.rows / 'nbr'}: brought up",
        f"{small.rows / 'vanilla'}: is of the present format already",
    ]


def test_code_of_a_submission_runs_only_when_the_user_says_so(
    small: Small, cli: Cli, tmp_path: Path
) -> None:
    plugin, out = tmp_path / "mine.py", tmp_path / "out"
    plugin.write_text(PLUGIN)
    board = ["--board", small.board]
    spec = small.board / "specs" / "digits.yaml"
    run = ["run", spec, "--defense", "mine/epochs=1", "--plugin", plugin, "--quiet"]
    assert cli(*run, "--out", tmp_path / "run").status == 0
    words = ["submit", tmp_path / "run", "--row", "mine/epochs=1", "--out", out]
    assert cli("leaderboard", *words, *board).status == 0
    plugin.unlink()
    folder = out / "digits" / "mine-epochs-1"
    before = _contents(folder)
    to_format_1(folder)
    old = _contents(folder)
    line = f"{folder} brings code of its own (mine.py): read it, and give --run-code to run it"
    refused(cli("leaderboard", "migrate", folder, *board), line)
    assert _contents(folder) == old
    assert cli("leaderboard", "migrate", folder, "--run-code", *board).status == 0
    assert _contents(folder) == before


def _set_option(folder: Path, name: str, text: str) -> None:
    def change(record: dict[str, Any]) -> None:
        record["cells"]["PGD"]["note"]["identity"]["attack"]["options"][name] = text

    change_record(folder, change)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("steps", "PGD was run with steps 7, not 10"),
        ("length", "PGD was run with length 7, an option that it no longer has"),
    ],
)
def test_an_attack_with_other_options_is_refused_and_all_left_as_it_was(
    small: Small, name: str, line: str
) -> None:
    folder = small.rows / "vanilla"
    to_format_1(folder)
    _set_option(folder, name, "7")
    before = _contents(folder)
    with pytest.raises(UserError) as error:
        migrate(folder, small.tasks, run_code=False)
    assert str(error.value) == f"{folder}: {line}"
    assert _contents(folder) == before


def test_what_fails_between_two_files_can_be_done_again(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record, which says what format all is of, is written last."""
    folder = small.rows / "vanilla"
    after = _contents(folder)
    to_format_1(folder)
    before = _contents(folder)

    def fail(*arguments: object) -> str:
        raise OSError("the disk is full")

    with monkeypatch.context() as context:
        context.setattr(migration, "card_text", fail)
        with pytest.raises(OSError, match="the disk is full"):
            migrate(folder, small.tasks, run_code=False)
    assert _contents(folder) == before
    assert migrate(folder, small.tasks, run_code=False)
    assert _contents(folder) == after


def test_a_format_that_begins_with_1_is_not_format_1(small: Small) -> None:
    folder = small.rows / "vanilla"
    change_record(folder, lambda record: record.update(format=10))
    with pytest.raises(UserError, match="is not valid: format: "):
        read_record(folder)
    with pytest.raises(UserError, match="is neither of format 1 nor of 2"):
        migrate(folder, small.tasks, run_code=False)
    (folder / RECORD).write_text("[1]")
    for act in (read_record, lambda path: migrate(path, small.tasks, run_code=False)):
        with pytest.raises(UserError):
            act(folder)
