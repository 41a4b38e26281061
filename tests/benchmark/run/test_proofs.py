"""Proofs by bounds in runs: what is certified, kept, resumed and replayed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import benchmark.judge.evaluator as judging
from benchmark import evaluate
from benchmark.errors import UserError
from benchmark.judge.records import FolderCell
from tests.benchmark.conftest import Cli

WORDS = (
    "run", "--data", "digits", "--samples", 40, "--norm", "linf", "--eps", "0.05",
    "--defense", "vanilla/epochs=5/arch=mlp/widen=0.3", "--attack", "strong", "--quiet",
)  # fmt: skip


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> Path:
    assert cli(*WORDS, "--certify", "branch/seconds=5", "--out", tmp_path / "run").status == 0
    return tmp_path / "run"


def _row(run: Path) -> dict[str, Any]:
    (row,) = json.loads((run / "table.json").read_text())["rows"]
    return dict(row)


def _cell(run: Path) -> FolderCell:
    (row,) = json.loads((run / "run.json").read_text())["rows"]
    return FolderCell(run / "cells" / row["cells"]["certified"])


def test_the_bracket_closes_on_a_small_network(run: Path, cli: Cli) -> None:
    row = _row(run)
    assert row["certified"] == row["best_attack"] > 0.2
    blocks = list(_cell(run).blocks())
    by = np.concatenate([block.stage for block in blocks if block.stage is not None])
    bound = np.concatenate([block.bound for block in blocks if block.bound is not None])
    radius = np.concatenate([block.distance for block in blocks])
    assert (by == "crown").sum() > 5
    assert (bound[by == "crown"] > 0).all()
    assert (radius == np.where(by == "", 0.0, 0.05)).all()
    note = _cell(run).note["identity"]["proofs"]
    assert (note["method"], note["seconds"]) == ("branch", 5.0)
    told = " ".join(cli("report", run).out.split())
    assert "certified by linear bounds, and branch and bound within 5 s an image" in told
    assert "0 of 40 are neither certified nor broken" in told


def test_it_resumes_and_other_methods_have_cells_of_their_own(run: Path, cli: Cli) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run / "cells").rglob("*.npz")}
    spec = (run / "spec.yaml").read_text()
    assert "certify:" in spec
    assert cli("run", run / "spec.yaml", "--out", run, "--quiet").status == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "cells").rglob("*.npz")} == before
    assert cli(*WORDS, "--certify", "crown", "--out", run).status == 0
    assert len(set((run / "cells").rglob("*.npz")) - set(before)) == 3  # 16 samples at once
    assert 0 < _row(run)["certified"] <= _row(run)["best_attack"]
    assert cli(*WORDS, "--out", run).status == 0
    assert _row(run)["certified"] is None
    assert "certify:" not in (run / "spec.yaml").read_text()


def test_verify_proves_again_what_is_cheap(run: Path, cli: Cli) -> None:
    ended = cli("verify", run)
    assert ended.status == 0
    assert "40 of 40 radii are found again" in ended.out
    cell = _cell(run)
    block = next(cell.blocks())
    assert block.stage is not None
    # Another sample is said to be proven by linear bounds, which they do not show.
    place = int(np.flatnonzero(block.stage == "")[0])
    block.stage.setflags(write=True)
    stage, radius = block.stage.copy(), block.distance.copy()
    stage[place], radius[place] = "crown", 0.05
    cell.add(judging.replace(block, stage=stage, distance=radius))
    ended = cli("verify", run)
    assert ended.status == 1
    assert "radii are not as found now" in ended.err


def test_what_only_a_search_shows_is_marked(run: Path, cli: Cli) -> None:
    cell = _cell(run)
    block = next(cell.blocks())
    assert block.stage is not None
    stage = np.where(block.stage == "crown", "branching", block.stage)
    cell.add(judging.replace(block, stage=stage))
    ended = cli("verify", run)
    words = "that are the word of optimised bounds or a search"
    assert words in ended.out


class _Switch(nn.Module):
    """Two logits of the mean of an image, by an operation that bounds pass or one that they do
    not."""

    def __init__(self, readable: bool) -> None:
        super().__init__()
        self.readable = readable

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1, keepdim=True) - 0.5
        return torch.cat([-mean, mean if self.readable else mean.exp() - 1], 1)


def test_evaluate_says_why_nothing_is_proven() -> None:
    x = torch.full((4, 1, 2, 2), 0.3)
    y = torch.zeros(4, dtype=torch.int64)
    asked: dict[str, Any] = {"norm": "linf", "eps": 0.1, "attacks": ["pgd/steps=5"]}
    report = evaluate(_Switch(True), x, y, certify="crown", **asked)
    assert (report.certified, report.best_attack) == (1.0, 1.0)
    assert report.proven == {"crown": 4}
    report = evaluate(_Switch(False), x, y, certify="crown", **asked)
    assert np.isnan(report.certified)
    (line,) = [note for note in report.notes if "bounds" in note]
    assert line == "_Switch: nothing is proven by bounds: its operation exp is not supported"
    with pytest.raises(UserError, match="certify is not valid"):
        evaluate(_Switch(True), x, y, certify="branching", **asked)
    report = evaluate(
        _Switch(True), x, y, norm="l1", eps=0.1, attacks=["pgd/steps=5"], certify="crown"
    )
    assert "bounds are for linf and l2, not l1" in " ".join(report.notes)


def test_a_contradiction_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prover that lies about samples that the attack breaks at other eps."""

    def lies(model: nn.Module, x: Tensor, *_: Any, **__: Any) -> Any:
        from defenses.verification import Decision

        return iter([Decision("robust", "crown", 1.0, None, 0.0)] * len(x))

    monkeypatch.setattr(judging, "decide", lies)
    x = torch.full((4, 1, 2, 2), 0.3)
    y = torch.zeros(4, dtype=torch.int64)
    # The attack that minimises finds points beyond eps, which say nothing.
    report = evaluate(
        _Switch(True), x, y, norm="linf", eps=0.1, attacks=["ddn/steps=20"], certify="crown"
    )
    assert not len(report.contradictions)
    monkeypatch.setattr(
        "benchmark.run.assess.Proving",
        lambda method, seconds, broken: judging.Proving(method, seconds, broken[:0]),
    )
    report = evaluate(
        _Switch(True), x, y, norm="linf", eps=0.25, attacks=["pgd/steps=5"], certify="crown"
    )
    assert report.contradictions.tolist() == [0, 1, 2, 3]
    assert "contradiction" in report.flags
