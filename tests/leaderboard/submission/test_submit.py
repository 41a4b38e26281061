"""A run makes submissions that stand by themselves, and whose code runs only by leave."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load as load_weights

from benchmark.errors import UserError
from benchmark.models.trained import load_saved
from benchmark.run import runner
from benchmark.spec.run_spec import make_spec
from defenses.training.saved import WEIGHTS
from leaderboard.board import build, check
from leaderboard.submission.record import SPEC, read_record, slug
from leaderboard.submission.submit import submit
from tests.benchmark.conftest import Cli, Ended, refused
from tests.leaderboard.conftest import SPEC as OF_BOARD
from tests.leaderboard.conftest import (
    Small,
    change_evidence,
    change_record,
    list_again,
    refusal,
    rewrite_card,
)

PLUGIN = '''
from dataclasses import dataclass
from defenses import Vanilla

@dataclass(frozen=True, kw_only=True)
class Mine(Vanilla):
    """Vanilla training, by another name."""

DEFENSES = {"mine": Mine}
'''


def test_a_run_makes_submissions(small: Small, cli: Cli, tmp_path: Path) -> None:
    words = ["--board", small.board, "--out", tmp_path / "out"]
    ended = cli("leaderboard", "submit", small.run, "--row", "NBR", *words)
    assert ended.status == 0
    assert [path.name for path in (tmp_path / "out" / "digits").iterdir()] == ["nbr"]
    again = cli("leaderboard", "check", tmp_path / "out" / "digits" / "nbr", "--board", small.board)
    assert again.status == 0
    assert "NBR on digits holds" in again.out
    # The same but for where it lies: a submission is determined by its run.
    for path in (small.rows / "nbr").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / "digits" / "nbr" / path.name).read_bytes()


def test_tasks_are_installed_and_rows_are_not(
    small: Small, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ended = cli("leaderboard", "submit", small.run)
    assert "is of no task: mnist-l2 wants" in ended.err
    for words in (["verify"], ["build"], ["migrate"]):
        assert "start in a clone of bestattack's repository" in cli("leaderboard", *words).err
    # A board that is here comes first.
    Path("leaderboard").symlink_to(small.board)
    assert cli("leaderboard", "submit", small.run, "--row", "NBR").status == 0


def test_a_row_without_a_proper_name_is_refused_and_nothing_left(
    small: Small, cli: Cli, tmp_path: Path
) -> None:
    about = tmp_path / "about.yaml"
    about.write_text("NBR: 'a [link](http://example.org)'\n")
    words = ["--row", "NBR", "--about", about, "--board", small.board, "--out", tmp_path / "out"]
    ended = cli("leaderboard", "submit", small.run, *words)
    assert ended.err.startswith("bestattack: 'NBR' cannot be a row: about: ")
    assert not (tmp_path / "out").exists()
    assert [slug(name) for name in ("NBR-45", "pgd-at/epochs=3", "..a")] == [
        "nbr-45", "pgd-at-epochs-3", "a"
    ]  # fmt: skip
    with pytest.raises(UserError, match="needs a letter or a digit"):
        slug("..")


def test_weights_in_half_precision_are_those_that_are_attacked(made: Small) -> None:
    weights = load_weights((made.rows / "l2nnn" / WEIGHTS).read_bytes())
    assert {value.dtype for value in weights.values()} == {torch.float16}
    (folder,) = (made.run / "defenses").glob("l2nnn-*")
    model = load_saved(folder).model
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name].float())


def test_a_specification_of_one_row_is_whole(made: Small) -> None:
    spec = yaml.safe_load((made.rows / "nbr" / SPEC).read_text())
    assert [defense["given_label"] for defense in spec["defenses"]] == ["NBR"]
    assert spec["eps"] == 0.5
    assert len(spec["attacks"]) == 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--row", "NBA"], "has no row 'NBA': did you mean 'NBR'?"),
        (["--row", "x"], "has no row 'x': there are vanilla, L2NNN, NBR"),
    ],
)
def test_a_row_that_there_is_not(
    made: Small, cli: Cli, words: list[str], line: str, tmp_path: Path
) -> None:
    words += ["--board", str(made.board), "--out", str(tmp_path)]
    ended = cli("leaderboard", "submit", made.run, *words)
    assert (ended.status, ended.err) == (1, f"bestattack: {made.run} {line}\n")


def test_a_run_of_no_task_is_refused(made: Small, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--samples", "10", "--defense", "vanilla/epochs=1", "--attack", "pgd/steps=1"]
    assert cli("run", "--eps", "0.5", *words, "--out", run, "--quiet").status == 0
    submit = ("leaderboard", "submit", run, "--board", made.board)
    refused(cli(*submit), f"{run} is of no task: digits wants samples 60 and not 10")
    others = ["--norm", "linf", "--split", "train", "--labels", "predictions", "--mode", "cascade"]
    others += ["--precision", "float64", "--data", "digits/pair=4-9"]
    assert cli("run", "--eps", "0.1", *words, *others, "--out", run, "--quiet").status == 0
    refused(
        cli(*submit),
        f"{run} is of no task: digits wants data digits and not digits/pair=4-9, split test and "
        "not train, labels data and not predictions, norm l2 and not linf, eps 0.5 and not 0.1, "
        "mode table and not cascade, precision float32 and not float64",
    )
    words[1] = "60"
    shutil.rmtree(run)
    assert cli("run", "--eps", "0.5", *words, "--out", run, "--quiet").status == 0
    line = (
        f"{run}: vanilla/epochs=1: task digits needs the attack PGD: run the task's specification "
        "to its end"
    )
    refused(cli("leaderboard", "submit", run, "--board", made.board), line)


def test_code_of_a_submission_runs_only_when_the_user_says_so(
    small: Small, cli: Cli, tmp_path: Path
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    spec = small.board / "specs" / "digits.yaml"
    run = ["run", spec, "--defense", "mine/epochs=1", "--plugin", plugin, "--quiet"]
    assert cli(*run, "--out", tmp_path / "run").status == 0
    board = ["--board", small.board]
    out = tmp_path / "submissions"
    assert cli("leaderboard", "submit", tmp_path / "run", "--out", out, *board).status == 0
    folder = out / "digits" / slug("mine/epochs=1")
    plugin.unlink()
    line = f"{folder} brings code of its own (mine.py): read it, and give --run-code to run it"
    refused(cli("leaderboard", "check", folder, *board), line)
    assert cli("leaderboard", "check", folder, "--run-code", *board).status == 0
    # Code that is not what its author listed.
    (folder / "mine.py").write_text(PLUGIN + "print('other')\n")
    ended = cli("leaderboard", "check", folder, "--run-code", *board)
    assert (ended.status, ended.out) == (1, "")
    assert "mine.py is not the file that record.json lists" in ended.err


def test_a_row_with_code_can_be_made_again_from_its_specification(
    small: Small, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin lies beside the specification, wherever the command is called."""
    (tmp_path / "row").mkdir()
    (tmp_path / "row" / "mine.py").write_text(PLUGIN)
    spec = yaml.safe_load((small.board / "specs" / "digits.yaml").read_text())
    spec |= {"defenses": ["mine/epochs=1"], "plugins": ["mine.py"], "samples": 5}
    (tmp_path / "row" / SPEC).write_text(yaml.safe_dump(spec))
    monkeypatch.chdir(tmp_path)
    ended = cli("run", Path("row") / SPEC, "--out", tmp_path / "run", "--quiet")
    assert ended.status == 0, ended.err


def test_what_is_said_of_a_row_is_text(small: Small, cli: Cli, tmp_path: Path) -> None:
    words = ["--row", "NBR", "--board", small.board, "--out", tmp_path / "out"]
    ended = cli("leaderboard", "submit", small.run, *words)
    assert "nothing is said of what the row is: give a line with --about" in ended.err
    about = tmp_path / "about.yaml"
    about.write_text("NBR: {text: hello}\n")
    ended = cli("leaderboard", "submit", small.run, "--about", about, *words)
    refused(ended, f"{about}: NBR must have a line of text")


@pytest.mark.parametrize("option", ["model", "python"])
@pytest.mark.parametrize("flat", [False, True])
def test_a_card_cannot_name_code_without_leave(
    small: Small, tmp_path: Path, flat: bool, option: str
) -> None:
    """However the card is written, and though the file is not listed."""
    folder, ran = small.rows / "vanilla", tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nF = None\n")
    options = {option: f"{folder / 'evil.py'}:F"}
    component = {"name": "external"} | (options if flat else {"options": options})
    card = json.loads((folder / "card.json").read_text()) | {"component": component}
    (folder / "card.json").write_text(json.dumps(card))
    spec = yaml.safe_load((folder / SPEC).read_text())
    spec["defenses"] = [component | ({"label": "vanilla"} if flat else {"given_label": "vanilla"})]
    (folder / SPEC).write_text(yaml.safe_dump(spec))
    for name in ("card.json", SPEC):
        list_again(folder, name)
    assert f"brings code of its own ({folder / 'evil.py'}:F)" in refusal(small, folder)
    # Nor code that its record does not list.
    line = refusal(small, folder, run_code=True)
    assert line.endswith("card.json names evil.py, which record.json does not")
    assert not ran.exists()


def test_weights_may_be_elsewhere(small: Small, cli: Cli, tmp_path: Path) -> None:
    at = "../../elsewhere/model.safetensors"
    out = small.board / "rows"
    shutil.rmtree(small.rows / "nbr")
    board = ["--board", small.board]
    words = ["--row", "NBR", "--out", out, "--weights-at", at, *board]
    assert cli("leaderboard", "submit", small.run, *words).status == 0
    assert not (small.rows / "nbr" / WEIGHTS).exists()
    # Nor where there were weights before.
    assert cli("leaderboard", "submit", small.run, "--row", "NBR", "--out", out, *board).status == 0
    assert cli("leaderboard", "submit", small.run, *words).status == 0
    assert not (small.rows / "nbr" / WEIGHTS).exists()
    assert "is missing, though" in refusal(small, small.rows / "nbr")
    elsewhere = (small.rows / "nbr" / at).resolve()
    elsewhere.parent.mkdir()
    (model,) = (small.run / "defenses").glob("nbr-*")
    shutil.copy(model / WEIGHTS, elsewhere)
    assert _verify(cli, small).status == 0
    elsewhere.write_bytes(b"other")
    assert "holds other weights than" in refusal(small, small.rows / "nbr")


def test_weights_at_an_address_are_to_be_fetched(small: Small) -> None:
    folder = small.rows / "nbr"
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    address = "https://example.org/nbr.safetensors"
    change_record(folder, lambda record: record["weights"].update(at=address))
    rewrite_card(folder)
    line = f"{folder}: its weights are at {address}: download them to {folder / WEIGHTS}"
    assert refusal(small, folder) == line
    (folder / WEIGHTS).write_bytes(weights)
    assert check(folder, small.tasks, False).record.row == "NBR"


def _verify(cli: Cli, small: Small) -> Ended:
    return cli("leaderboard", "verify", "--board", small.board)


def test_a_row_may_be_proven_by_bounds(small: Small, tmp_path: Path) -> None:
    defense = {"label": "bounded", "name": "vanilla", "epochs": 6, "arch": "mlp", "widen": 0.1}
    spec = make_spec(OF_BOARD | {"defenses": [defense], "certify": "branch/seconds=1"})
    runner.run(spec, tmp_path / "run", None, False, lambda line: None)
    (folder,) = submit(tmp_path / "run", small.tasks, small.board / "rows", [], {}, None)
    numbers = read_record(folder).numbers
    assert numbers.certified is not None
    assert 0 < numbers.certified <= numbers.best_attack
    # The search counts no passes, and has no column.
    assert "search" not in numbers.work.keys() | numbers.per_attack.keys()
    check(folder, small.tasks, run_code=False)
    build(small.board, small.tasks)
    assert "Certified by bounds, too: bounded." in (small.board / "README.md").read_text()
    change_evidence(folder, lambda arrays: arrays.update({"4/bound": 2 * arrays["4/bound"]}))
    assert "bounds are not as found now" in refusal(small, folder)
