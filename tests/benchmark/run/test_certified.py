"""Certificates in runs: resumed, reported and verified as attacks are."""

import csv
import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from benchmark.judge.records import Block, FolderCell
from benchmark.judge.subject import Subject
from tests.benchmark.conftest import Cli, Ended

# Linear classifiers, whose margin over the next class is its distance, which may be overstated.
PLUGIN = """
from dataclasses import dataclass

import torch
from torch import nn

from defenses import Vanilla


class Margin(nn.Module):
    def __init__(self, features, classes, overstated):
        super().__init__()
        self.linear, self.overstated = nn.Linear(features, classes), overstated

    def forward(self, x):
        return self.linear(x.flatten(1))

    def certified_radius(self, x):
        logits, top = self(x), self(x).argmax(1)
        gap = logits.gather(1, top[:, None]) - logits
        weight = self.linear.weight
        radius = gap / (weight[top][:, None] - weight).flatten(2).norm(dim=2)
        return self.overstated * radius.scatter(1, top[:, None], torch.inf).amin(1)


@dataclass(frozen=True, kw_only=True)
class MarginRecipe(Vanilla):
    overstated: float = 1.0

    def build(self, shape, classes):
        return Margin(shape[0] * shape[1] * shape[2], classes, self.overstated)


class Single(Margin):
    def forward(self, x):
        if x.dtype == torch.float64:
            raise RuntimeError("float32 only")
        return super().forward(x)


@dataclass(frozen=True, kw_only=True)
class SingleRecipe(MarginRecipe):
    def build(self, shape, classes):
        return Single(shape[0] * shape[1] * shape[2], classes, self.overstated)


DEFENSES = {"margin": MarginRecipe, "single": SingleRecipe}
"""

HONEST, LYING = "margin/epochs=3", "margin/epochs=3/overstated=2"
PGD, CW = "pgd/steps=5", "cw/steps=30/searches=3/minimize"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "proofs.py"
    path.write_text(PLUGIN)
    return path


def _words(plugin: Path, *defenses: str) -> list[object]:
    named = [word for name in defenses for word in ("--defense", name)]
    return [
        *("run", "--plugin", plugin, "--samples", 96, "--block", 32, "--eps", 0.25, "--quiet"),
        *(*named, "--attack", PGD, "--attack", CW),
    ]


@pytest.fixture
def run(tmp_path: Path, cli: Cli, plugin: Path) -> Path:
    """A copy, to be tampered with, of one run with an honest, a lying and a silent row."""
    whole = plugin.parent / "whole"
    if not whole.exists():
        ended = cli(*_words(plugin, HONEST, LYING, "vanilla/epochs=2"), "--out", whole)
        assert ended.status == 0
        (plugin.parent / "err").write_text(ended.err)
        (plugin.parent / "out").write_text(ended.out)
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def _rows(run: Path, name: str = "table.json") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((run / name).read_text())["rows"]
    return rows


def _cell(run: Path, row: int) -> FolderCell:
    return FolderCell(run / "cells" / _rows(run, "run.json")[row]["cells"]["certified"])


def _change(run: Path, row: int, change: Callable[[Block], Block]) -> None:
    cell = _cell(run, row)
    cell.add(change(next(cell.blocks())))


def _refused(ended: Ended, *says: str) -> None:
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "The table of" not in ended.out
    for part in says:
        assert part in ended.err


def _tampered(cli: Cli, run: Path, *says: str) -> None:
    """Refused as it is, and with its tables written anew."""
    _refused(cli("verify", run), *says)
    assert cli("report", run).status == 0
    _refused(cli("verify", run), *says)


def test_every_file_of_a_run_says_the_same(run: Path, plugin: Path) -> None:
    honest, lying, silent = _rows(run)
    assert 0 < honest["certified"] <= honest["best_attack"]
    assert (honest["contradictions"], honest["flags"]) == ([], {})
    assert lying["best_attack"] == honest["best_attack"] < lying["certified"]
    assert len(lying["contradictions"]) > 10
    assert list(lying["flags"]) == ["contradiction"]
    assert (silent["certified"], silent["contradictions"]) == (None, [])
    lines = list(csv.DictReader(io.StringIO((run / "table.csv").read_text())))
    values = {line["defense"]: line["accuracy"] for line in lines if line["attack"] == "certified"}
    assert {name: float(value) for name, value in values.items()} == {
        HONEST: honest["certified"],
        LYING: lying["certified"],
    }
    head, _, *body = (run / "table.md").read_text().splitlines()
    titles = [title.strip() for title in head.split("|")]
    place = titles.index("certified")
    assert titles[place + 1].startswith("best-attack")
    printed = [line.split("|")[place].strip() for line in body[:3]]
    assert printed == [f"{100 * row['certified']:.1f}" for row in (honest, lying)] + ["-"]
    shown = ", ".join(map(str, lying["contradictions"][:10]))
    line = (
        f"{LYING}: attacks misclassify {len(lying['contradictions'])} of 96 samples within the "
        f"radius certified for them: {shown}, ..."
    )
    assert f"- {line}" in (run / "table.md").read_text().splitlines()
    # Loud even where it is told to be quiet.
    said = (plugin.parent / "err").read_text()
    assert said == f"CONTRADICTION: {line}: its certificate or its model is wrong\n"


def test_a_run_with_certificates_holds_and_its_contradictions_with_it(
    run: Path, cli: Cli, plugin: Path
) -> None:
    ended = cli("verify", run, "--wide")
    assert (ended.status, ended.err) == (0, "")
    assert f"{HONEST} certified: 96 of 96 radii are found again" in ended.out.splitlines()
    table = (run / "table.md").read_text().split("\n\n")
    assert table[0] in ended.out
    before = {path.name: path.read_bytes() for path in run.glob("table.*")}
    assert cli("report", run).status == 0
    assert {path.name: path.read_bytes() for path in run.glob("table.*")} == before


@pytest.mark.parametrize(
    ("precision", "norm", "eps"), [("float64", "l2", "0.25"), ("float32", "linf", "0.03")]
)
def test_other_runs_with_certificates_hold(
    tmp_path: Path, cli: Cli, plugin: Path, precision: str, norm: str, eps: str
) -> None:
    words = [word for word in _words(plugin, HONEST) if word != CW][:-1]
    words += ["--precision", precision, "--norm", norm, "--eps", eps]
    assert cli(*words, "--out", tmp_path).status == 0
    (row,) = _rows(tmp_path)
    assert 0 < row["certified"] <= row["best_attack"]
    assert row["contradictions"] == []
    assert cli("verify", tmp_path).status == 0


def test_a_run_of_a_model_without_float64_holds(tmp_path: Path, cli: Cli, plugin: Path) -> None:
    assert cli(*_words(plugin, "single/epochs=3"), "--out", tmp_path).status == 0
    (row,) = _rows(tmp_path)
    assert list(row["flags"]) == ["float32-only"]
    assert 0 < row["certified"] <= row["best_attack"]
    assert cli("verify", tmp_path).status == 0


def _fault_at(
    monkeypatch: pytest.MonkeyPatch, call: int, fault: BaseException | None = None
) -> list[int]:
    """Interrupt the n-th block of radii, or let it fail; the size of each block is noted."""
    sizes: list[int] = []
    work = Subject.certify

    def certify(self: Subject, x: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(x))
        if len(sizes) == call:
            raise fault or KeyboardInterrupt
        return work(self, x)

    monkeypatch.setattr(Subject, "certify", certify)
    return sizes


def test_a_certificate_goes_on_where_it_was_interrupted(
    run: Path, tmp_path: Path, cli: Cli, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, words = tmp_path / "again", _words(plugin, HONEST)
    with monkeypatch.context() as patch:
        assert _fault_at(patch, 3) == []
        assert cli(*words, "--out", out).status == 130
    # Only what is whole is reported.
    assert cli("report", out).status == 0
    (row,) = _rows(out)
    assert (row["certified"], row["per_attack"], row["best_attack"]) == (None, {}, None)
    _refused(cli("verify", out), "is not finished, what there is holds: ")

    with monkeypatch.context() as patch:
        sizes = _fault_at(patch, 0)
        assert cli(*words, "--out", out).status == 0
    assert sizes == [32]
    assert _rows(out) == _rows(run)[:1]


def test_radii_that_are_there_are_not_computed_again(
    run: Path, cli: Cli, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*.npz")}
    next(_cell(run, 0).folder.glob("000032-*.npz")).unlink()
    sizes = _fault_at(monkeypatch, 0)
    words = _words(plugin, HONEST, LYING, "vanilla/epochs=2")
    assert cli(*words, "--out", run).status == 0
    assert sizes == [32]
    now = {path: path.stat().st_mtime_ns for path in run.rglob("*.npz")}
    assert len([path for path in times if now[path] != times[path]]) == 1
    assert cli("verify", run).status == 0


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_radii_that_were_changed_are_found(run: Path, cli: Cli, factor: float) -> None:
    _change(run, 0, lambda b: dataclasses.replace(b, distance=b.distance * factor))
    _tampered(cli, run, f"{HONEST} certified: 32 radii are not as found now")


def test_a_lie_that_was_hidden_is_found(run: Path, cli: Cli) -> None:
    """Radii made so small that no attack contradicts them."""
    cell = _cell(run, 1)
    for block in list(cell.blocks()):
        cell.add(dataclasses.replace(block, distance=block.distance / 10))
    assert cli("report", run).status == 0
    assert _rows(run)[1]["contradictions"] == []
    _refused(cli("verify", run), f"{LYING} certified: 96 radii are not as found now")
    assert "flags" in _rows(run)[1]


@pytest.mark.parametrize(
    ("value", "says"),
    [(np.nan, "radii that are negative or NaN are recorded"), (-0.1, "negative or NaN")],
)
def test_records_that_are_no_radii_certify_nothing(
    run: Path, cli: Cli, value: float, says: str
) -> None:
    def forge(block: Block) -> Block:
        distance = block.distance.copy()
        distance[0] = value
        return dataclasses.replace(block, distance=distance)

    _change(run, 0, forge)
    _tampered(cli, run, says)
    assert _rows(run)[0]["certified"] is None


def test_a_claim_of_correctness_that_was_changed_is_found(run: Path, cli: Cli) -> None:
    _change(run, 0, lambda b: dataclasses.replace(b, broken=~b.broken))
    _tampered(cli, run, "32 radii are not as found now")


def test_radii_that_were_deleted_leave_the_run_incomplete(run: Path, cli: Cli) -> None:
    next(_cell(run, 0).folder.glob("000000-*.npz")).unlink()
    _tampered(cli, run, f"{HONEST} certified: incomplete: 64 of 96 samples are recorded")
    assert _rows(run)[0]["certified"] is None
    assert "certified failed: incomplete" in (run / "table.md").read_text()


def test_a_certificate_that_fails_ends_with_status_3(
    tmp_path: Path, cli: Cli, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*_words(plugin, HONEST), "--out", tmp_path / "run")
    with monkeypatch.context() as patch:
        _fault_at(patch, 2, RuntimeError("no"))
        ended = cli(*words)
    assert (ended.status, ended.err.count("\n")) == (3, 1)
    failed = f"failed, and counted for nothing: {HONEST}: certified: "
    assert ended.err.startswith(f"bestattack: {failed}")
    assert f"- {HONEST}: certified failed: RuntimeError: no" in ended.out
    assert cli(*words).status == 0


def test_a_certificate_that_was_left_out_is_found(run: Path, cli: Cli) -> None:
    manifest = json.loads((run / "run.json").read_text())
    del manifest["rows"][1]["cells"]["certified"]
    (run / "run.json").write_text(json.dumps(manifest))
    _tampered(cli, run, f"{LYING} certified: left out, though the model offers a certificate")


def test_radii_of_another_model_are_found(run: Path, cli: Cli) -> None:
    manifest = json.loads((run / "run.json").read_text())
    honest, lying, _ = manifest["rows"]
    lying["cells"]["certified"] = honest["cells"]["certified"]
    (run / "run.json").write_text(json.dumps(manifest))
    _tampered(cli, run, f"{LYING} certified: 96 radii are not as found now")


@pytest.mark.parametrize(
    ("key", "value"), [("certified", 0.99), ("certified", None), ("contradictions", [])]
)
def test_a_table_that_says_otherwise_is_found(run: Path, cli: Cli, key: str, value: object) -> None:
    table = json.loads((run / "table.json").read_text())
    table["rows"][1][key] = value
    (run / "table.json").write_text(json.dumps(table))
    _refused(cli("verify", run), "table.json says otherwise")
