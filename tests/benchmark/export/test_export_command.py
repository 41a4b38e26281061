"""`bestattack export`: what it prints and writes, and what it refuses."""

import shutil
from pathlib import Path

import pytest

from benchmark.run.run_folder import read_run
from tests.benchmark.conftest import Cli, refused
from tests.benchmark.export.conftest import LABELS
from tests.benchmark.test_latex import assert_well_formed, compiled

KINDS = ("latex", "bibtex", "model-card")


def test_the_table_has_the_numbers_of_the_run(run: Path, cli: Cli, tmp_path: Path) -> None:
    ended = cli("export", "latex", run)
    assert (ended.status, ended.err) == (0, "")
    assert_well_formed(ended.out)
    _, _, reports = read_run(run)
    rows = [line for line in ended.out.splitlines() if line.endswith(r"\\")][1:]
    for row, report in zip(rows, reports, strict=True):
        shares = [report.natural, *report.per_attack.values()]
        cells = row.split(" & ")[1 : 1 + len(shares)]
        assert cells == [f"{100 * share:.1f}" for share in shares]
        assert f"{100 * report.best_attack:.1f}" in row.split(" & ")[-1]
    compiled(tmp_path, ended.out)
    narrow = cli("export", "latex", run, "--no-attacks").out
    assert_well_formed(narrow)
    assert len(narrow) < len(ended.out)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_written_again_but_no_other_is_lost(
    kind: str, run: Path, cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "out"
    for _ in range(2):
        assert cli("export", kind, run, "--out", file).out == f"Written: {file}\n"
        assert file.read_text() == cli("export", kind, run).out
    file.write_text("# My model\n")
    line = f"{file} is there, and is no export: name another file, or remove it"
    refused(cli("export", kind, run, "--out", file), line)
    assert file.read_text() == "# My model\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_not_finished_is_refused(kind: str, run: Path, cli: Cli) -> None:
    _, manifest, _ = read_run(run)
    shutil.rmtree(run / "cells" / manifest["rows"][1]["cells"][LABELS[0]])
    ended = cli("export", kind, run)
    assert (ended.status, ended.out) == (1, "")
    missing = f"l2nnn/epochs=1 {LABELS[0]}: incomplete"
    assert f"is not finished, and its numbers may still fall: {missing}" in ended.err
    assert ended.err.count("\n") == 1


def test_a_row_that_is_not_there_is_refused(run: Path, cli: Cli) -> None:
    line = "the run has no row 'l2nnn/epochs=2': did you mean 'l2nnn/epochs=1'?"
    refused(cli("export", "model-card", run, "--defense", "l2nnn/epochs=2"), line)


def test_a_run_under_several_threats_is_exported_by_threat(cli: Cli, tmp_path: Path) -> None:
    words = ("--data", "digits", "--samples", 10, "--threat", "l2:0.5", "--threat", "linf:0.1")
    run = tmp_path / "two"
    words = (*words, "--defense", "vanilla/epochs=1", "--attack", "pgd/steps=2", "--quiet")
    assert cli("run", *words, "--out", run, "--fail-under", 0).status == 0
    ended = cli("export", "latex", run)
    assert ended.status == 1
    assert str(run / "threats" / "linf-0.1") in ended.err
    ended = cli("export", "latex", run / "threats" / "linf-0.1")
    assert "L-infinity eps 0.1" in ended.out
    # The spec of a card is that of the whole run, by whose first threat models are trained.
    card = cli("export", "model-card", run / "threats" / "linf-0.1").out
    assert "threats:\n- norm: l2" in card
    ended = cli("report", run, "--fail-under", 100)
    assert ended.status == 4
    assert "vanilla/epochs=1 (L2 eps 0.5): best-attack" in ended.err
    assert "vanilla/epochs=1 (L-infinity eps 0.1): best-attack" in ended.err
