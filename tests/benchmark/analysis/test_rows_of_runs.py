"""`bestattack compare`: rows of runs, by names that tell them apart, and what is refused."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from benchmark.analysis.rows_of_runs import rows_of_runs
from benchmark.errors import UserError
from benchmark.run.run_folder import read_run
from tests.benchmark.conftest import Cli, refused

PGD, WEAK = "pgd/steps=5", "pgd/steps=1"
BASE = ("run", "--quiet", "--samples", 60, "--eps", 0.5, "--defense", "vanilla/epochs=3")
AT = ("--defense", "pgd-at/epochs=3")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def runs(made: Path, tmp_path: Path, cli: Cli) -> Path:
    """Copies of two runs on the same samples: one of two rows, and one of another attack."""
    if not (made / "b").exists():
        assert cli(*BASE, *AT, "--attack", PGD, "--out", made / "a").status == 0
        assert cli(*BASE, "--attack", PGD, "--attack", WEAK, "--out", made / "b").status == 0
    return Path(shutil.copytree(made, tmp_path / "runs"))


def _names(runs: Path, *chosen: str, against: str | None = None) -> tuple[list[str], str | None]:
    rows, reference = rows_of_runs([runs / "a", runs / "b"], chosen, against)
    return [name.replace(str(runs), "") for name in rows], reference


def test_rows_go_by_names_that_tell_them_apart(runs: Path) -> None:
    rows, reference = rows_of_runs([runs / "a"])
    assert (list(rows), reference) == (["vanilla/epochs=3", "pgd-at/epochs=3"], None)
    of_a, of_b = "vanilla/epochs=3 (/a)", "vanilla/epochs=3 (/b)"
    assert _names(runs) == ([of_a, "pgd-at/epochs=3", of_b], None)
    # A label is that row of each run; a full name is one row.
    assert _names(runs, "vanilla/epochs=3") == ([of_a, of_b], None)
    full = f"vanilla/epochs=3 ({runs / 'b'})"
    assert _names(runs, full, against="pgd-at/epochs=3") == (
        ["pgd-at/epochs=3", of_b], "pgd-at/epochs=3",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"^several runs have a row 'vanilla/epochs=3': name one, "):
        _names(runs, against="vanilla/epochs=3")


def test_a_run_is_compared_as_its_table_has_it(runs: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "changed.csv"
    ended = cli("compare", runs / "a", "--out", out)
    assert (ended.status, ended.err) == (0, "")
    assert max(map(len, ended.out.replace(str(out), "").splitlines())) <= 80
    vanilla, hardened = read_run(runs / "a")[2]
    for letter, report in (("A", vanilla), ("B", hardened)):
        assert f"- {letter}: {report.accuracy('best-attack')} {report.name}" in ended.out
    assert ended.out.startswith("best-attack accuracy in % over the first 60 of 355 digits images")
    points = 100 * (vanilla.best_attack - hardened.best_attack)
    assert f"| A-B    | {points:+.1f} [" in ended.out.replace("|   ", "| ")
    changed = pd.read_csv(out, keep_default_na=False)
    counted = [report.robust_to("best-attack") for report in (vanilla, hardened)]
    assert changed["index"].tolist() == (counted[0] != counted[1]).nonzero()[0].tolist()
    for row in changed.itertuples():
        assert (row.first_broken_by == "") == (row.first_counts == 1)
        assert (row.second_broken_by == "") == (row.second_counts == 1)


def test_attacks_that_differ_between_runs_are_said(runs: Path, cli: Cli) -> None:
    ended = cli("compare", runs / "a", runs / "b", "--rows", "vanilla/epochs=3")
    assert f"A met {PGD} alone; B met {WEAK} and {PGD}." in " ".join(ended.out.split())
    assert "| not told apart |" in ended.out
    ended = cli("compare", runs / "a", runs / "b", "--of", PGD, "--against", "pgd-at/epochs=3")
    assert " met " not in ended.out
    assert [line[:6] for line in ended.out.splitlines() if line[:3] in ("| A", "| C")] == [
        "| A-B ", "| C-B ",
    ]  # fmt: skip


def test_what_cannot_be_compared_is_refused_in_a_line(runs: Path, cli: Cli) -> None:
    a, b, more = runs / "a", runs / "b", runs / "more"
    refused(cli("compare", b), "there is nothing to compare: name two rows or more")
    refused(cli("compare", a, runs / "." / "a"), f"{a} is named twice: name each run once")
    refused(
        cli("compare", a, "--rows", "vanila/epochs=3"),
        "no row 'vanila/epochs=3': did you mean 'vanilla/epochs=3'?",
    )
    refused(
        cli("compare", a, "--of", "pgd/steps=6"),
        "vanilla/epochs=3 has no pgd/steps=6 accuracy: did you mean 'pgd/steps=5'?",
    )
    refused(cli("compare", runs), f"{runs} holds no run with results: name the folder of a run")
    words = [40 if word == 60 else word for word in BASE]
    assert cli(*words, "--attack", PGD, "--out", more).status == 0
    refused(
        cli("compare", a, more, "--rows", "vanilla/epochs=3"),
        f"vanilla/epochs=3 ({a}) and vanilla/epochs=3 ({more}) cannot be compared: they are on "
        "other samples, the first 60 of 355 digits images and the first 40 of 355 digits images",
    )
    assert cli(*BASE, "--attack", PGD, "--eps", 0.25, "--out", more).status == 0
    ended = cli("compare", a, more, "--rows", "vanilla/epochs=3")
    assert ended.err.endswith("one is under L2 eps 0.5, the other under L2 eps 0.25\n")


def test_runs_under_several_threats_are_compared_one_by_one(runs: Path, cli: Cli) -> None:
    words = [word for word in BASE if word not in ("--eps", 0.5)]
    threats = ("--threat", "l2:0.5", "--threat", "linf:0.05", "--attack", PGD)
    several = runs / "several"
    assert cli(*words, *AT, *threats, "--out", several).status == 0
    ended = cli("compare", several)
    assert ended.err.startswith(f"bestattack: {several} holds a run under several threats: name ")
    homes = sorted((several / "threats").iterdir())
    for home in homes:
        assert cli("compare", home).status == 0
    ended = cli("compare", *homes, "--rows", "vanilla/epochs=3")
    assert "cannot be compared: one is under L2 eps 0.5, the other under L-inf" in ended.err
    # The whole run of one threat and that of several are on the same samples.
    assert cli("compare", runs / "b", homes[0]).status == 0


def test_rows_that_are_not_finished_are_refused(runs: Path, cli: Cli) -> None:
    a, path = runs / "a", runs / "a" / "run.json"
    manifest = json.loads(path.read_text())
    (_, hardened) = manifest["rows"]
    (runs / "a" / "cells" / hardened["cells"][PGD]).rename(runs / "gone")
    line = "or name other rows with --rows"
    ended = cli("compare", a)
    assert ended.status == 1
    assert ended.err.startswith(
        f"bestattack: a row of {a} is not finished (pgd-at/epochs=3 {PGD}: incomplete: the records "
    )
    assert ended.err.endswith(f"run the same command again, {line}\n")
    manifest["rows"] = manifest["rows"][:1]
    path.write_text(json.dumps(manifest))
    refused(
        cli("compare", a),
        f"a row of {a} is not finished (pgd-at/epochs=3: not measured): run the same command "
        f"again, {line}",
    )
    assert cli("compare", a, runs / "b", "--rows", "vanilla/epochs=3").status == 0
