"""`bestattack attribute` on the folder of a run."""

from pathlib import Path

import pandas as pd
import pytest

from benchmark.run.run_folder import read_run
from tests.benchmark.conftest import Cli, refused

SETTING: tuple[object, ...] = (
    *("run", "--quiet", "--samples", 48, "--eps", 0.5, "--defense", "vanilla/epochs=2"),
)


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    folder = tmp_path_factory.getbasetemp() / "attributed"
    if not folder.exists():
        more = ("--defense", "vanilla/epochs=1", "--attack", "pgd/steps=3", "--suite", "quick")
        assert cli(*SETTING, *more, "--out", folder).status == 0
    return folder


def test_it_prints_the_tables_and_writes_what_broke_each_sample(
    run: Path, tmp_path: Path, cli: Cli
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    out = tmp_path / "samples.csv"
    ended = cli("attribute", run, "--out", out)
    assert (ended.status, ended.err) == (0, "")
    _, _, reports = read_run(run)
    for report in reports:
        for label in ("pgd/steps=3", "quick"):
            assert f"| {report.name} | {label} " in " ".join(ended.out.split())
    assert "| quick    | survey" in ended.out or "| quick    | ascents" in ended.out
    assert "| all together " in ended.out
    assert ended.out.endswith(f"Per sample: {out}\n")

    samples = pd.read_csv(out)
    for report in reports:
        of_row = samples[samples["defense"] == report.name]
        broken = round((report.natural - report.best_attack) * report.total)
        assert len(of_row) == of_row["sample"].nunique() == broken > 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_row_without_an_attack_that_counts_is_named(run: Path, tmp_path: Path, cli: Cli) -> None:
    clean = tmp_path / "clean"
    assert cli(*SETTING, "--suite", "none", "--out", clean).status == 0
    refused(
        cli("attribute", clean),
        f"{clean} holds no finished attack: there is nothing to attribute",
    )
    refused(
        cli("attribute", tmp_path),
        f"{tmp_path} holds no run with results: name the folder of a run",
    )
