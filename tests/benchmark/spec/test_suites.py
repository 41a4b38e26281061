"""The named sets of attacks: what is in them, and what a norm leaves out."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from attacks import PGD, Facts, ThreatModel
from benchmark import UserError
from benchmark.spec.lineup import choose
from benchmark.spec.registry import ATTACKS, SUITES
from benchmark.spec.suites import Suite
from tests.benchmark.conftest import Cli
from tests.benchmark.small import evaluate_small

L2, LINF = ThreatModel("l2", 0.5), ThreatModel("linf", 0.1)


@dataclass(frozen=True)
class Round(PGD):
    """PGD in L2 alone."""

    @property
    def facts(self) -> Facts:
        return replace(super().facts, norms=("l2",))


@pytest.fixture(autouse=True)
def _mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    ATTACKS.add("round", Round, "here")
    mixed = Suite("both norms and one", ("round/steps=2,3", "pgd/steps=2", "top-2:round"))
    added = {"mixed": mixed, "round": Suite("one", ("round",))}
    monkeypatch.setattr(SUITES, "_builtin", SUITES._builtin | added)


@pytest.mark.parametrize("suite", sorted(SUITES._builtin.keys() - {"none"}))
def test_every_suite_is_whole_under_l2(suite: str) -> None:
    lineup = choose(suite, [], L2, ["multiclass"])
    assert lineup.entries
    assert lineup.notes == ()


def test_the_suite_of_robin_attacks_arms_with_each_base() -> None:
    labels = list(choose("robin-paper", [], L2, ["multiclass"]).entries)
    heads = ("best-arm", "top-2", "softmax", "highest-arm", "average-gradient", "softmax-top-2")
    for base in ("pgd/steps=10", "pgd/steps=20", "cw"):
        assert {f"{head}:{base}" for head in ("robin", *heads)} <= set(labels)
    assert len([label for label in labels if label.startswith("hierarchical:")]) == 3
    transfers = ["transfer:pgd/steps=20/source=multiclass"]
    transfers += ["transfer:pgd/steps=20/targeted/source=multiclass"]
    assert labels[-2:] == transfers
    assert len(labels) == 3 * 7 + 3 + 2
    lineup = choose("robin-paper", [], L2, ["other"])
    assert list(lineup.entries) == labels[:-2]
    (note,) = lineup.notes
    assert note == "left out of suite robin-paper: " + ", ".join(
        f"{transfer} (no row multiclass)" for transfer in transfers
    )


def test_the_suite_of_l2nnn_is_a_series() -> None:
    entries = choose("l2nnn-paper", [], L2).entries
    labels = [f"CW steps={steps}" for steps in (100, 1000, 10_000, 100_000, 1_000_000)]
    assert list(entries) == [*labels, "CW 1000x10"]
    after = [list(entry.after) for entry in entries.values()]
    assert after == [*(labels[:n] for n in range(5)), []]


LINE = (
    "left out of suite mixed: round/steps=2 (runs under l2 only), round/steps=3 (runs under l2 "
    "only), top-2:round (runs under l2 only)"
)


def test_what_the_norm_leaves_out_of_a_suite_is_said() -> None:
    lineup = choose("mixed", [], LINF)
    assert list(lineup.entries) == ["pgd/steps=2"]
    assert lineup.notes == (LINE,)
    report = evaluate_small(attacks=[], suite="mixed", norm="linf")
    assert f"- {LINE}" in report.to_markdown().splitlines()
    assert report.notes == [LINE]
    assert "left out of suite" not in evaluate_small(attacks=[], suite="mixed").to_markdown()


def test_what_is_named_beside_a_suite_is_not_left_out_in_silence() -> None:
    with pytest.raises(UserError, match="attack 'round' runs under l2 only"):
        evaluate_small(attacks=["round"], suite="mixed", norm="linf")
    with pytest.raises(UserError, match="attack 'round/steps=2' runs under l2 only"):
        evaluate_small(attacks=["round/steps=2"], suite="mixed", norm="linf")
    with pytest.raises(UserError, match="no attack of suite 'round' runs under linf"):
        evaluate_small(attacks=[], suite="round", norm="linf")


def test_what_was_left_out_stays_said(tmp_path: Path, cli: Cli) -> None:
    words = ("--quiet", "--samples", 8, "--norm", "linf", "--eps", 0.1, "--suite", "mixed")
    rows = ("--defense", "vanilla/epochs=0", "--defense", "vanilla/epochs=1")
    ended = cli("run", *words, *rows, "--out", tmp_path)
    assert ended.status == 0
    for out in (ended.out, cli("report", tmp_path).out, cli("verify", tmp_path).out):
        assert " ".join(out.split()).count(f"- {LINE}") == 1
