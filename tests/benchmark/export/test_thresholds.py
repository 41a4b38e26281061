"""Rows that fall short end with status 4, and JUnit's XML says which."""

import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmark.errors import BelowError, UserError
from benchmark.export.thresholds import Thresholds
from benchmark.report.report import Report
from benchmark.run.run_folder import read_run
from tests.benchmark.conftest import Cli, refused
from tests.benchmark.export.conftest import LABELS
from tests.benchmark.small import N, Returning, attacked, evaluate_small


def _breaking(count: int) -> Report:
    """A report in which an attack breaks so many of N samples, within their budget."""

    def points(problem):  # type: ignore[no-untyped-def]
        moved = problem.x.clone()
        moved[problem.index < count, 0] += 0.15
        return moved

    return attacked(points, name="mine")


def _short(report: Report, text: str) -> str | None:
    try:
        Thresholds.of(text, None).check([report])
    except BelowError as error:
        return str(error).removeprefix("below what --fail-under asks for: mine: ")
    return None


def test_a_row_passes_at_the_threshold_and_not_below() -> None:
    report = _breaking(3)
    assert report.best_attack == 0.5
    assert N == 6
    assert _short(report, "50") is None
    assert _short(report, "50.01") == "best-attack 50 is 0.01 below 50.01"
    assert _short(report, "natural=100,best-attack=0") is None
    assert _short(report, "natural=100,best-attack=62") == "best-attack 50 is 12 below 62"
    assert _short(report, "certified=0") == "it has no certified accuracy"
    third = _breaking(4)  # 1 - 4/6 is no exact number
    assert _short(third, str(100 * third.best_attack)) is None


def test_a_row_with_a_failed_attack_never_passes() -> None:
    def fail(problem):  # type: ignore[no-untyped-def]
        raise RuntimeError("broken")

    both = evaluate_small(attacks=[Returning(fail), "pgd/steps=1"], name="mine", eps=0.01)
    assert both.best_attack > 0
    assert _short(both, "0") == "best-attack is too high, by its flag attack-error"
    alone = evaluate_small(attacks=[Returning(fail)], name="mine")
    assert _short(alone, "0") == "it has no best-attack accuracy"


def test_junit_says_why_an_attack_failed(tmp_path: Path) -> None:
    def fail(problem):  # type: ignore[no-untyped-def]
        raise RuntimeError("\x1b[31m<broken> & more")

    report = evaluate_small(attacks=[Returning(fail)], name="mine")
    Thresholds.of(None, tmp_path / "junit.xml").check([report])  # no threshold, no refusal
    (error,) = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("error")
    assert "?[31m<broken> & more" in error.get("message", "")


@pytest.mark.parametrize("text", ["", "x", "-1", "101", "nan", "best=5", "natural=", "natural=1=2"])
def test_thresholds_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^fail-under: .*"):
        Thresholds.of(text, None)


def test_a_mistake_in_them_is_refused_before_any_work(cli: Cli, tmp_path: Path) -> None:
    words = ("run", "--eps", 0.5, "--defense", "vanilla", "--out", tmp_path / "run")
    line = "fail-under: '60%' is not a percentage, as in 60"
    refused(cli(*words, "--fail-under", "60%"), line)
    line = "--plan measures nothing: leave out --fail-under and --junit"
    refused(cli(*words, "--plan", "--fail-under", 60), line)
    assert not (tmp_path / "run").exists()
    ended = cli("run", "--onnx", "net.onnx", "--vnnlib", "p.vnnlib", "--fail-under", 60)
    assert ended.status == 1
    assert "not with --fail-under" in ended.err


def test_commands_end_with_status_4(run: Path, cli: Cli) -> None:
    _, _, reports = read_run(run)
    least = 100 * min(report.best_attack for report in reports)
    assert cli("report", run, "--fail-under", least).status == 0
    ended = cli("report", run, "--fail-under", least + 1)
    assert ended.status == 4
    assert ended.out.startswith("defense ")  # the table is printed all the same
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("bestattack: below what --fail-under asks for: ")
    words = ("run", run / "spec.yaml", "--out", run, "--quiet", "--fail-under")
    assert cli(*words, 100).status == 4
    assert cli(*words, 0).status == 0


def test_what_is_not_measured_never_passes(run: Path, cli: Cli) -> None:
    _, manifest, _ = read_run(run)
    shutil.rmtree(run / "cells" / manifest["rows"][1]["cells"][LABELS[0]])
    ended = cli("report", run, "--fail-under", 0, "--junit", run / "junit.xml")
    assert ended.status == 4
    assert f"l2nnn/epochs=1 {LABELS[0]}: incomplete" in ended.err
    root = ElementTree.parse(run / "junit.xml").getroot()
    assert len(root.findall(".//error")) == 2  # the attack in its row, and what is missing


def test_junit_has_a_test_for_each_row_and_attack(run: Path, cli: Cli, tmp_path: Path) -> None:
    _, _, reports = read_run(run)
    file = tmp_path / "junit.xml"
    assert cli("report", run, "--junit", file).status == 0
    root = ElementTree.parse(file).getroot()
    assert [suite.get("name") for suite in root] == [report.name for report in reports]
    for suite, report in zip(root, reports, strict=True):
        names = ["natural", *LABELS, *(["certified"] if report.radii else []), "best-attack"]
        assert [case.get("name") for case in suite] == names
        counts = [suite.get(name) for name in ("tests", "failures", "errors", "skipped")]
        assert counts == [str(len(names)), "0", "0", "0"]
        assert [case.findtext("system-out") for case in suite] == [
            str(report.accuracy(name)) for name in names
        ]
    assert cli("report", run, "--junit", file, "--fail-under", "natural=100").status == 4
    root = ElementTree.parse(file).getroot()
    failed = [case.get("name") for case in root.iterfind(".//failure/..")]
    assert failed == ["natural"] * sum(report.natural < 1 for report in reports)
    assert failed
