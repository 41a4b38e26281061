"""Proofs by bounds in runs: what is certified, kept, resumed and replayed."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import benchmark.judge.evaluator as judging
from attacks import ThreatModel
from benchmark import Report, evaluate
from benchmark.data.sets import load_dataset
from benchmark.errors import UserError
from benchmark.judge.records import Block, FolderCell
from benchmark.models.trained import load_saved
from benchmark.report.pictures.curves import undrawn
from benchmark.run.run_folder import read_run
from benchmark.spec.run_spec import make_spec
from defenses.verification import Decision, decide
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
    return FolderCell(run / "cells" / row["cells"]["search"])


def test_the_bracket_closes_on_a_small_network(run: Path, cli: Cli) -> None:
    row = _row(run)
    assert row["certified"] == row["best_attack"] > 0.2
    # Records are of what attacks left alone.
    blocks = list(_cell(run).blocks())
    by = np.concatenate([block.stage for block in blocks if block.stage is not None])
    bound = np.concatenate([block.bound for block in blocks if block.bound is not None])
    assert len(by) == round(40 * row["best_attack"])
    assert (by == "crown").sum() > 5
    assert (bound[by == "crown"] > 0).all()
    options = _cell(run).note["identity"]["attack"]["options"]
    assert options == {"method": "branch", "seconds": 5.0}
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
    assert set((run / "cells").rglob("*.npz")) > set(before)
    assert 0 < _row(run)["certified"] <= _row(run)["best_attack"]
    # What such a run leaves is read again.
    for command in ("report", "verify"):
        assert cli(command, run).status == 0
    assert cli("run", run / "spec.yaml", "--out", run, "--quiet").status == 0
    # Without proofs again, in a spec or on the command line.
    assert cli("run", run / "spec.yaml", "--certify", "none", "--out", run, "--quiet").status == 0
    assert _row(run)["certified"] is None
    assert "certify:" not in (run / "spec.yaml").read_text()


def test_a_curve_of_proofs_is_not_said_to_be_missing(run: Path) -> None:
    assert (run / "curves.png").exists()
    assert undrawn(read_run(run)[2]) == []


def test_the_search_counts_as_what_it_breaks(cli: Cli, run: Path) -> None:
    """Attacks that do nothing leave all to the search, in a folder that has records of others."""
    weak = [*WORDS[:-2], "square/steps=1", "--quiet", "--certify", "branch/seconds=5"]
    for out in (run, run.parent / "fresh"):
        assert cli(*weak, "--out", out).status == 0
        row = _row(out)
        assert row["certified"] == row["best_attack"] < row["per_attack"]["square/steps=1"]
        assert "search-broke" in row["flags"]
        told = " ".join(cli("report", out).out.split())
        assert "broken by no attack (square/steps=1, the search for proofs)." in told
        assert "over square/steps=1, the search for proofs)" in (out / "table.md").read_text()
        assert "0 of 40 are neither certified nor broken, and the search alone broke" in told
        ended = cli("verify", out)
        assert ended.status == 0, ended.err
        (line,) = [line for line in ended.out.splitlines() if " search: " in line]
        broken = int(line.split(" search: ")[1].split()[0])
        assert broken == round(40 * (row["per_attack"]["square/steps=1"] - row["best_attack"]))
    # Without them, the table says what the folder knows.
    assert cli(*weak[:-2], "--out", run).status == 0
    told = " ".join(cli("report", run).out.split())
    assert "left-out" in told
    assert "--certify branch/seconds=5 (leaves" in told


def _tampered(run: Path, cli: Cli, change: Callable[[Block], Block]) -> str:
    cell = _cell(run)
    for block in list(cell.blocks()):
        cell.add(change(block))
    assert cli("report", run).status == 0
    ended = cli("verify", run)
    assert ended.status == 1
    return ended.err


def _unproven(block: Block) -> Block:
    return replace(block, stage=np.where(np.asarray(block.stage) == "crown", "", block.stage))


def _all_by_bounds(block: Block) -> Block:
    return replace(block, stage=np.where(np.asarray(block.stage) == "", block.stage, "crown"))


def _broken(block: Block) -> Block:
    crown = np.asarray(block.stage) == "crown"
    return replace(
        block, broken=crown, distance=np.where(crown, 0.0, np.nan), rate=None, trial=None
    )


def _longer(block: Block) -> Block:
    return replace(block, bound=100 * np.asarray(block.bound))


def _unheard(block: Block) -> Block:
    return replace(block, stage=np.where(np.asarray(block.stage) == "crown", "oracle", block.stage))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_unproven, "samples are proven by linear bounds, and not so in the records"),
        (_all_by_bounds, "proofs by linear bounds are not found again"),
        (_broken, "a block of records does not fit the data"),
        (_longer, "bounds are not as found now"),
        (_unheard, "records name a proof that the run did not ask for"),
    ],
)
def test_records_of_proofs_that_were_changed_are_found(
    run: Path, cli: Cli, change: Callable[[Block], Block], says: str
) -> None:
    assert says in _tampered(run, cli, change)


def test_what_only_a_search_shows_is_told_and_may_be_refuted(run: Path, cli: Cli) -> None:
    ended = cli("verify", run)
    assert ended.status == 0
    words = r"certified: (\d+) of (\d+) proofs made again, (\d+) taken on their word \(.*branching"
    found = re.search(words, ended.out)
    assert found
    again, claimed, taken = map(int, found.groups())
    assert again + taken == claimed == round(40 * _row(run)["certified"])
    # The record of a proof of a sample that an attack broke, of which the example is at hand.
    (row,) = json.loads((run / "run.json").read_text())["rows"]
    (attacked,) = FolderCell(run / "cells" / row["cells"]["strong"]).blocks()
    place = int(attacked.index[attacked.broken & (attacked.distance > 0)][0])
    block = next(_cell(run).blocks())
    x_bound = _bound_of(run, place)
    forged = replace(
        block.select(block.index == block.index[0]),
        index=np.array([place]), label=attacked.label[attacked.index == place],
        stage=np.array(["branching"]), bound=np.array([x_bound]),
    )  # fmt: skip
    _cell(run).add(forged)
    assert cli("report", run).status == 0
    assert _row(run)["contradictions"] == [place]
    ended = cli("verify", run)
    assert ended.status == 1
    assert f"examples break samples that are said to be proven: {place}" in ended.err


def _bound_of(run: Path, place: int) -> float:
    """What linear bounds say of an image of the run."""
    dataset = load_dataset("digits")
    model = load_saved(next((run / "defenses").iterdir())).model
    test = dataset.first("test", 40)
    x, y = test.x[place : place + 1], test.y[place : place + 1]
    (decision,) = decide(model, x, y, ThreatModel("linf", 0.05), 0, "crown", attacked=True)
    return decision.bound


def test_an_interrupted_search_is_named(
    run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decide(*args, **options)

    # Weak attacks leave more than are tried at once.
    words = (*WORDS[:-2], "square/steps=1", "--quiet", "--certify", "crown", "--out", run)
    with monkeypatch.context() as patch:
        patch.setattr(judging, "decide", interrupted)
        assert cli(*words).status == 130
    told = cli("report", run)
    assert told.status == 0
    assert "search 1" in told.out
    assert "at most" in told.out
    ended = cli("verify", run)
    found = re.search(r"certified: (\d+) of (\d+) so far", ended.err)
    assert ended.status == 1
    assert found
    assert 0 < int(found[1]) < int(found[2])
    assert cli(*words).status == 0
    assert cli("verify", run).status == 0
    # A run that was interrupted before them lacks them as well.
    manifest = json.loads((run / "run.json").read_text())
    del manifest["rows"][0]["cells"]["search"]
    (run / "run.json").write_text(json.dumps(manifest))
    assert "search not begun" in " ".join(cli("report", run).out.split())
    assert "certified: not finished, or not begun" in cli("verify", run).err


def test_a_bracket_measures_nothing_twice(
    run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("study", "bracket", run, "--certify", "branch/seconds=5", "--quiet", "--eps")
    with monkeypatch.context() as patch:
        for unit in ("prove_block", "attack_block", "judge_block"):
            patch.setattr(f"benchmark.run.assess.{unit}", lambda *given: 1 / 0)
        ended = cli(*words, "0.05")
    assert ended.status == 0, ended.err
    row, (line,) = _row(run), pd.read_csv(run / "bracket.csv").to_dict("records")
    assert (line["certified"], line["best-attack"]) == (row["certified"], row["best_attack"])
    assert line["width"] == 0
    assert "Certified: by linear bounds, and branch and bound within 5 s" in ended.out
    assert cli("verify", run / "bracket" / "eps-0.05").status == 0
    assert "a bracket needs proofs" in cli(*words[:4], "none", "--eps", "0.05").err
    # Both ends are counts of 40, and so is what is between them.
    assert cli(*words[:4], "crown", "--eps", "0.03,0.05,0.08").status == 0
    widths = pd.read_csv(run / "bracket.csv")["width"]
    assert (widths * 40 == (widths * 40).round()).all()
    assert "0000000" not in (run / "bracket.csv").read_text()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("branch/secnds=1", "unknown option 'secnds': did you mean 'seconds'?"),
        ("crwn", "unknown method 'crwn': did you mean 'crown'?"),
        (True, "True says no method: write crown, or branch/seconds=10"),
        ("", "'' says no method: write crown, or branch/seconds=10"),
        ("branch/seconds", "seconds has no value: write crown, or branch/seconds=10"),
        ("crown/seconds=3", "seconds are of branch: linear bounds take what they take"),
    ],
)
def test_mistakes_are_told_with_what_is_right(given: Any, says: str) -> None:
    with pytest.raises(UserError) as refused:
        make_spec({"eps": 0.1, "norm": "linf", "defenses": ["vanilla"], "certify": given})
    assert str(refused.value) == f"the spec is not valid: certify: {says}"


def test_what_bounds_are_not_for_is_refused_at_once(run: Path, cli: Cli) -> None:
    values: dict[str, Any] = {"defenses": ["vanilla"], "certify": "crown"}
    for threats in ({"norm": "l1", "eps": 1}, {"threats": ["l1:1", "l1:2"]}):
        with pytest.raises(UserError, match="certify: bounds are for linf and l2, not l1"):
            make_spec(values | threats)
    assert make_spec(values | {"threats": ["l1:1", "l2:1"]}).certify


def test_a_folder_without_all_models_says_so(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    for command in ("report", "verify"):
        assert "was interrupted before all its models were there" in cli(command, tmp_path).err


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
    records = report.records
    of_bounds = records[records["attack"] == "search"]
    assert of_bounds["stage"].tolist() == ["crown"] * 4
    assert (of_bounds["bound"] > 0).all()
    assert records.loc[records["attack"] != "search", "bound"].isna().all()
    assert evaluate(_Switch(True), x, y, certify="none", **asked).proofs is None
    report = evaluate(_Switch(False), x, y, certify="crown", **asked)
    assert np.isnan(report.certified)
    assert report.inapplicable == {"search": "its operation exp is not supported"}
    assert "_Switch: nothing is proven by bounds: its operation exp" in report.to_markdown()
    with pytest.raises(UserError, match="certify is not valid"):
        evaluate(_Switch(True), x, y, certify="branching", **asked)
    with pytest.raises(UserError, match="certify: bounds are for linf and l2, not l1"):
        evaluate(_Switch(True), x, y, **asked | {"norm": "l1"}, certify="crown")


def test_a_contradiction_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prover that lies about samples that the attack breaks at other eps."""

    def lies(model: nn.Module, x: Tensor, *_: Any, **__: Any) -> Any:
        return iter([Decision("robust", "crown", 1.0, None, 0.0)] * len(x))

    monkeypatch.setattr(judging, "decide", lies)
    x = torch.full((4, 1, 2, 2), 0.3)
    y = torch.zeros(4, dtype=torch.int64)
    # The attack that minimises finds points beyond eps, which say nothing.
    report = evaluate(
        _Switch(True), x, y, norm="linf", eps=0.1, attacks=["ddn/steps=20"], certify="crown"
    )
    assert not len(report.contradictions)
    assert report.certified == 1.0
    # All are tried, as though no attack had broken any.
    monkeypatch.setattr(Report, "remaining", lambda self, after: np.arange(4))
    report = evaluate(
        _Switch(True), x, y, norm="linf", eps=0.25, attacks=["pgd/steps=5"], certify="crown"
    )
    assert report.contradictions.tolist() == [0, 1, 2, 3]
    assert "contradiction" in report.flags
