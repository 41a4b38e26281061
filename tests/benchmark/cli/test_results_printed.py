"""What `run`, `report` and `verify` print: it fits 80 columns, is true of runs that are not
finished, and names a next command that works."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from attacks import PGD, CarliniWagner, Problem
from benchmark.cli.finished.results_printed import next_command
from benchmark.folder_lock import HOLDER, LOCK, alone_in
from benchmark.run.run_folder import read_run
from tests.conftest import Cli, Ended

CW = "cw/steps=20/searches=2"
WORDS: tuple[object, ...] = (
    *("run", "--data", "digits", "--samples", 48, "--block", 16, "--eps", 0.5),
    *("--defense", "vanilla/epochs=2", "--attack", "pgd/steps=5", "--attack", CW),
)
PLUGIN = """
from dataclasses import dataclass
from torch import nn
from defenses import Vanilla

class Quantised(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network((x * 4).round() / 4)

@dataclass(frozen=True, kw_only=True)
class Recipe(Vanilla):
    def build(self, shape, classes):
        return Quantised(super().build(shape, classes))

DEFENSES = {"quantised": Recipe}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short path for runs, as users have."""
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def _interrupted_at(
    monkeypatch: pytest.MonkeyPatch, attack: type, call: int, then: Callable[[], object]
) -> None:
    """Do something, and then interrupt, in the n-th call of an attack."""
    work: Callable[[Any, Problem], Tensor] = attack.__call__
    calls: list[int] = []

    def attacked(self: object, problem: Problem) -> Tensor:
        calls.append(1)
        if len(calls) == call:
            then()
            raise KeyboardInterrupt
        return work(self, problem)

    monkeypatch.setattr(attack, "__call__", attacked)


def _next(ended: Ended) -> list[str]:
    """The words of the command that the last line names."""
    reason, _, command = ended.out.splitlines()[-1].partition(": bestattack ")
    assert reason
    return shlex.split(command)


def _flat(text: str) -> str:
    return " ".join(text.split())


def test_a_run_its_report_and_its_replay_fit_80_columns(here: Path, cli: Cli) -> None:
    ran = cli(*WORDS, "--defense", "pgd-at/epochs=2", "--out", here / "a")
    assert ran.status == 0
    reported, verified = cli("report", here / "a"), cli("verify", here / "a")
    for ended in (ran, reported, verified):
        assert max(map(len, (ended.out + ended.err).splitlines())) <= 80
        assert "\x1b" not in ended.out
        assert re.search(
            r"^vanilla/epochs=2 +\d+\.\d  (?:\* )? *\d+\.\d \[\d+\.\d, \d+\.\d\]", ended.out, re.M
        )
        assert "pgd/steps=5" not in ended.out.partition("Accuracy")[0].partition("defense ")[2]
    assert "the warm-up makes 75% of 2 epochs adversarial" in ran.err
    assert "No curve is drawn: no attack minimised the distance" in ran.out
    assert _next(ran) == ["verify", "runs/a"]
    assert _next(reported) == ["report", "runs/a", "--wide"] == _next(verified)
    wide = cli("report", here / "a", "--wide")
    assert wide.out.startswith((here / "a" / "table.md").read_text())
    assert _next(wide) == ["verify", "runs/a"]


def test_what_was_measured_before_is_said_to_be_kept(here: Path, cli: Cli) -> None:
    first = cli(*WORDS, "--out", here / "a")
    again = cli(*WORDS, "--out", here / "a")
    assert "kept" not in first.err
    line = re.search(r"pgd/steps=5 broke \d+ of \d+", first.err)
    assert line
    assert f"vanilla/epochs=2: kept: {line[0]}, measured before\n" in again.err
    assert "kept: natural accuracy" in again.err
    more = cli(*WORDS, "--samples", 60, "--out", here / "a")
    assert re.search(r"natural accuracy \S+ \(48 of 60 measured before\)", more.err)
    assert re.search(r"pgd/steps=5 broke .* in \S+ s \(\d+ of \d+ measured before\)", more.err)


@pytest.mark.parametrize(
    ("attack", "label", "waiting"),
    [(PGD, "pgd/steps=5", f"{CW} not begun"), (CarliniWagner, CW, "")],
)
def test_an_interrupted_run_says_how_far_it_is_and_no_accuracy_of_that(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, attack: type, label: str, waiting: str
) -> None:
    with monkeypatch.context() as patch:
        _interrupted_at(patch, attack, 2, lambda: None)
        assert cli(*WORDS, "--defense", "vanilla/epochs=1", "--out", here / "a").status == 130
    ended = cli("report", here / "a")
    assert ended.status == 0
    table = ended.out.partition("Accuracy in")[0]
    told = _flat(" ".join(line[40:] for line in table.splitlines()[2:]))
    assert re.search(
        rf"{re.escape(_flat(label))} \d+ of \d+ so far: \d+ broken", told.replace("/ ", "/")
    )
    assert waiting.replace("/ ", "/") in told.replace("/ ", "/")
    # One attack of two is a bound, and none is nothing: there is no interval.
    assert ("at most " in table) == (attack is CarliniWagner)
    assert not re.search(r"\[\d+\.", table)
    assert "Not measured yet: vanilla/epochs=1." in ended.out
    command = _next(ended)
    assert command == ["run", "runs/a/spec.yaml", "--out", "runs/a"]
    assert cli(*command, "--quiet").status == 0
    whole = cli("report", here / "a")
    assert "so far" not in whole.out
    assert "at most" not in whole.out


def test_a_run_is_reported_while_it_goes_on_and_nothing_is_written(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Ended] = []

    def look() -> None:
        before = _files(here)
        told.append(cli("report", here / "a"))
        assert _files(here) == before

    _interrupted_at(monkeypatch, CarliniWagner, 2, look)
    # The look ends this command too, as it takes its place in the process.
    cli(*WORDS, "--quiet", "--out", here / "a")
    (ended,) = told
    assert ended.status == 0
    assert "so far:" in _flat(ended.out)
    assert "runs/a is in use by process" in ended.out
    assert _next(ended) == ["report", "runs/a"]


def _files(folder: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (LOCK, HOLDER)
    }


def test_a_finished_run_that_another_process_holds_is_shown(here: Path, cli: Cli) -> None:
    assert cli(*WORDS, "--quiet", "--out", here / "a").status == 0
    before, shown = _files(here), cli("report", here / "a").out
    (here / "a" / "table.md").write_text("not to be written")
    with alone_in(here / "a"):
        ended = cli("report", here / "a")
    assert (here / "a" / "table.md").read_text() == "not to be written"
    assert ended.out.partition("\n\n")[0] == shown.partition("\n\n")[0]
    assert _files(here).keys() == before.keys()


def test_a_flag_stands_in_words_with_a_command_that_is_its_remedy(here: Path, cli: Cli) -> None:
    Path("quantised.py").write_text(PLUGIN)
    words = ("run", "--quiet", "--data", "digits", "--samples", 30, "--eps", 0.5)
    more = ("--plugin", "quantised.py", "--defense", "quantised/epochs=5")
    ended = cli(*words, *more, "--attack", "pgd/steps=5", "--out", here / "a")
    assert "zero-gradient (quantised/epochs=5): gives zero or tiny gradients" in _flat(ended.out)
    assert "Add --attack strong" in _flat(ended.out)
    command = _next(ended)
    assert command[-4:] == ["--attack", "pgd/steps=5", "--attack", "strong"]
    followed = cli(*command, "--quiet")
    assert followed.status == 0
    assert _next(followed) == ["verify", "runs/a"]
    assert "kept" not in followed.out


def test_a_curve_is_drawn_or_a_line_says_what_would_draw_it(here: Path, cli: Cli) -> None:
    words = ("run", "--quiet", "--data", "digits", "--samples", 12, "--defense", "vanilla/epochs=1")
    both = ("--threat", "l2:0.5", "--threat", "linf:8/255")
    without = cli(*words, *both, "--attack", "pgd/steps=2", "--out", here / "a")
    for threat in ("L2 eps 0.5", "L-infinity eps 8/255"):
        line = f"No curve is drawn for {threat}: no attack minimised the distance; add the attack"
        assert line in _flat(without.out)
        assert f"\n{threat}\n" in without.out
    assert max(map(len, without.out.splitlines())) <= 80
    table = without.out.partition("All threats\n")[2]
    assert re.search(r"^vanilla/epochs=1 +\S+  +\S+  +\S+ \[\S+, \S+\]$", table, re.M)
    # What the line names does so.
    line = ("--attack", "cw/minimize/steps=5/searches=1", "--eps", 0.5)
    drawn = cli(*words, *line, "--out", here / "b")
    assert "No curve" not in drawn.out
    assert (here / "b" / "curves.png").exists()


def test_the_highest_is_marked_only_beyond_chance(here: Path, cli: Cli) -> None:
    words = ("run", "--quiet", "--data", "digits", "--samples", 60, "--eps", 0.1, "--attack")
    far = cli(
        *words, "pgd/steps=2", "--defense", "vanilla/epochs=0", "--defense", "vanilla/epochs=6",
        "--out", here / "a",
    )  # fmt: skip
    assert re.search(r"^vanilla/epochs=6 +\S+  \* ", far.out, re.M)
    assert not re.search(r"^vanilla/epochs=0.*\*", far.out, re.M)
    near = cli(
        *words, "pgd/steps=2", "--defense", "vanilla/epochs=6", "--defense", "vanilla/epochs=7",
        "--out", here / "b",
    )  # fmt: skip
    assert "*" not in near.out


def test_an_error_stands_in_the_table_and_in_words_and_is_tried_again(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: PGD, problem: Problem) -> Tensor:
        raise ValueError("no")

    with monkeypatch.context() as patch:
        patch.setattr(PGD, "__call__", fail)
        words = ("run", "--quiet", "--samples", 8, "--eps", 0.5, "--defense", "vanilla/epochs=1")
        ended = cli(*words, "--attack", "pgd/steps=5", "--out", here / "a")
    assert ended.status == 3
    assert re.search(r"^vanilla/epochs=1 .* error +attack-error", ended.out, re.M)
    assert "- vanilla/epochs=1: pgd/steps=5 failed: ValueError: no\n" in ended.out
    command = _next(ended)
    assert command == ["run", "runs/a/spec.yaml", "--out", "runs/a"]
    assert cli(*command, "--quiet").status == 0


def test_the_next_command_of_a_part_is_of_the_whole_run(here: Path, cli: Cli) -> None:
    words: tuple[object, ...] = (
        *("run", "--samples", 8, "--threat", "l2:0.5", "--threat", "linf:0.1", "--quiet"),
        *("--defense", "vanilla/epochs=1", "--attack", "pgd/steps=1", "--out", here / "two"),
    )
    assert cli(*words).status == 0
    whole = (here / "two").absolute()
    (part,) = (whole / "threats").glob("l2*")
    spec, _, reports = read_run(part)
    line = next_command("report", part, reports, spec, unfinished=True)
    assert line.endswith(f": bestattack run {whole / 'spec.yaml'} --out {whole}")
