"""An attack that does not apply to a model is neither an error nor robustness."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from attacks import PGD, Facts, Problem
from attacks.problem import NotApplicableError
from attacks.wrappers.wrapper import Wrapper
from benchmark.report import tables
from benchmark.spec.components import BEST
from benchmark.spec.registry import ATTACKS
from tests.benchmark.conftest import Cli
from tests.benchmark.small import Linear, N, Returning, evaluate_small

ARMS = "the model offers no arms (scores per class of binary classifiers)"


class WithArms(Linear):
    def arms(self, x: Tensor) -> Tensor:
        return self(x)


def test_it_counts_for_nothing() -> None:
    report = evaluate_small(attacks=["best-arm:pgd/steps=5", "pgd/steps=5"])
    assert report.inapplicable == {"best-arm:pgd/steps=5": ARMS}
    assert (report.errors, report.flags) == ({}, {})
    assert math.isnan(report.per_attack["best-arm:pgd/steps=5"])
    assert (report.per_attack["pgd/steps=5"], report.best_attack) == (0.0, 0.0)
    assert set(report.records["attack"]) == {"natural", "pgd/steps=5"}
    assert len(report.adversarial["best-arm:pgd/steps=5"].index) == 0

    row = tables.wide([report]).iloc[0]
    assert (row["best-arm:pgd/steps=5"], row["pgd/steps=5"], row["flags"]) == ("-", "0.0", "-")
    text = report.to_markdown()
    assert f"- Linear: best-arm:pgd/steps=5 does not apply: {ARMS}" in text.splitlines()
    assert "(worst case per sample over pgd/steps=5)" in text
    assert text.count("best-arm:pgd/steps=5") == 2  # the column and the line


def test_where_no_attack_applies_there_is_no_best_attack() -> None:
    attacks = ["best-arm:pgd", "top-2:pgd", "hierarchical:pgd"]
    for mode in ("table", "cascade"):
        report = evaluate_small(attacks=attacks, mode=mode)
        assert math.isnan(report.best_attack)
        assert (report.errors, report.flags) == ({}, {})
        assert tables.wide([report])[f"{BEST} [95% interval]"].tolist() == ["-"]
        (plain,) = tables.plain([report])
        assert (plain["best_attack"], set(plain["inapplicable"])) == (None, set(attacks))
        # One line for each reason.
        arms, stages = report.to_markdown().splitlines()[-2:]
        assert arms.startswith("- Linear: ")
        assert arms.endswith(f":pgd do not apply: {ARMS}")
        assert stages.startswith("- Linear: hierarchical:pgd does not apply: ")
        assert "sample over none yet)" in report.to_markdown()


def test_a_table_has_a_number_where_it_applies_and_none_where_not() -> None:
    attacks = ["best-arm:pgd/steps=5"]
    reports = [evaluate_small(model, attacks=attacks) for model in (Linear(), WithArms())]
    wide = tables.wide(reports)
    assert wide[attacks[0]].tolist() == ["-", "0.0"]
    assert "sample over best-arm:pgd/steps=5)" in tables.caption(reports, None)


def test_saying_so_after_work_was_done_is_an_error() -> None:
    def points(problem: Problem) -> Tensor:
        if 3 in problem.index:
            raise NotApplicableError("no\nmore")
        return problem.x

    report = evaluate_small(attacks=[Returning(points)], block=2)
    assert report.inapplicable == {}
    line = "found on some samples only that it does not apply: no more"
    assert report.errors == {"Returning": line}
    assert list(report.flags) == ["attack-error"]


def test_where_no_sample_is_left_nothing_is_asked() -> None:
    def points(problem: Problem) -> Tensor:
        raise NotApplicableError("no")

    report = evaluate_small(y=torch.ones(N, dtype=torch.int64), attacks=[Returning(points)])
    assert (report.natural, report.best_attack, report.inapplicable) == (0.0, 0.0, {})


@dataclass(frozen=True)
class Inapplicable:
    facts: ClassVar[Facts] = Facts("fixed-budget", norms=("l2",))

    def __call__(self, problem: Problem) -> Tensor:
        raise NotApplicableError("no reason")


@dataclass(frozen=True)
class Halved(Wrapper):
    """Its base within half the budget."""

    def __call__(self, problem: Problem) -> Tensor:
        return problem.x + 0.5 * (self.base(problem) - problem.x)


@pytest.fixture(autouse=True)
def _mine() -> None:
    ATTACKS.add("inapplicable", Inapplicable, "here")
    ATTACKS.add("halved", Halved, "here")


def test_a_base_that_does_not_apply_makes_the_whole_not_apply() -> None:
    report = evaluate_small(attacks=["halved:inapplicable", "halved:pgd/steps=5"])
    assert report.inapplicable == {"halved:inapplicable": "no reason"}
    assert report.per_attack["halved:pgd/steps=5"] == 1.0  # 0.1 is not quite enough


# On disk.

WORDS = (
    *("run", "--quiet", "--samples", 32, "--block", 16, "--eps", 0.5),
    *("--defense", "vanilla/epochs=2", "--attack", "best-arm:pgd", "--attack", "pgd/steps=5"),
)


def _row(folder: Path, name: str = "table.json") -> dict[str, Any]:
    (row,) = json.loads((folder / name).read_text())["rows"]
    return dict(row)


def _counted(monkeypatch: pytest.MonkeyPatch, attack: type) -> list[int]:
    calls: list[int] = []
    work: Callable[[Any, Problem], Tensor] = attack.__call__

    def counted(self: object, problem: Problem) -> Tensor:
        calls.append(len(problem))
        return work(self, problem)

    monkeypatch.setattr(attack, "__call__", counted)
    return calls


def test_it_is_kept_on_disk_and_asked_again(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = cli(*WORDS, "--out", tmp_path)
    assert (ended.status, ended.err) == (0, "")
    row, manifest = _row(tmp_path), _row(tmp_path, "run.json")
    assert row["inapplicable"] == manifest["inapplicable"] == {"best-arm:pgd": ARMS}
    assert (row["errors"], row["flags"]) == ({}, {})
    assert row["per_attack"]["best-arm:pgd"] is None
    assert row["best_attack"] == row["per_attack"]["pgd/steps=5"] is not None
    line = f"- vanilla/epochs=2: best-arm:pgd does not apply: {ARMS}"
    assert line in " ".join(ended.out.split())

    for command in ("report", "verify"):
        again = cli(command, tmp_path)
        assert (again.status, again.err) == (0, "")
        assert line in " ".join(again.out.split())
        assert "best-arm:pgd: 0 of 0" not in again.out
        assert _row(tmp_path) == row

    asked, attacked = (_counted(monkeypatch, cls) for cls in (ATTACKS.get("best-arm"), PGD))
    assert cli(*WORDS, "--out", tmp_path).status == 0
    assert asked == [13]  # half of those that are classified correctly
    assert attacked == []
    assert _row(tmp_path) == row


def test_an_attack_cannot_be_declared_not_to_apply_afterwards(tmp_path: Path, cli: Cli) -> None:
    assert cli(*WORDS, "--out", tmp_path).status == 0
    manifest = json.loads((tmp_path / "run.json").read_text())
    manifest["rows"][0]["inapplicable"]["pgd/steps=5"] = "no reason"
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    assert cli("report", tmp_path).status == 0
    ended = cli("verify", tmp_path)
    assert ended.status == 1
    assert "pgd/steps=5: found on some samples only that it does not apply" in ended.err
