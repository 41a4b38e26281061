"""Rows that are compared: what is found, what is said beside it, and what is refused."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bestattack
from attacks import PGD, ThreatModel
from benchmark import Comparison, Report, UserError, compare
from benchmark.analysis.comparison import compared
from benchmark.analysis.row_pairs import holm
from benchmark.judge.records import Block, MemoryCell
from benchmark.report.paired import Paired
from benchmark.spec.components import CERTIFIED, NATURAL
from tests.benchmark.small import Linear, N, X, Y, evaluate_small

TOTAL = 40
THREAT = ThreatModel("l2", 0.5)
DATA = {"name": "digits", "sha256": "s"}


def _cell(places: list[int], wrong: list[int], labels: int, note: dict[str, Any]) -> MemoryCell:
    """Records of samples, some of which are misclassified."""
    index = np.array(places, dtype=np.int64)
    broken, ones = np.isin(index, wrong), np.ones_like(index)
    cell = MemoryCell()
    cell.add(
        Block(index, ones * labels, np.where(broken, 0, 1), broken, np.where(broken, 0.4, np.nan),
              ones, ones, broken & False, ones * 0.1, np.zeros((int(broken.sum()), 2), np.float32))
    )  # fmt: skip
    cell.close(note)
    return cell


def _report(
    clean: list[int],
    attacks: Mapping[str, list[int]],
    *,
    name: str = "m",
    total: int = TOTAL,
    threat: ThreatModel = THREAT,
    data: Any = DATA,
    labels: int = 1,
    steps: int = 5,
    code: str = "",
) -> Report:
    """A report of so many samples: those that are misclassified clean, and broken by attacks."""
    report = Report(name, threat, "table", total)
    identity = {"data": data}
    every = list(range(total))
    report.add(NATURAL, "k", _cell(every, clean, labels, {"identity": identity}), None)
    for attack, places in attacks.items():
        left = [place for place in every if place not in clean]
        about = {"name": "pgd", "version": 1, "options": {"steps": steps}, "code": code}
        note = {"identity": identity | {"attack": about}}
        report.add(attack, attack, _cell(left, places, labels, note), None)
    return report


A = _report([0], {"a": [1, 2, 3], "b": [2, 4]}, name="A")
B = _report([0, 1], {"a": list(range(2, 20)), "b": [20]}, name="B")


def test_what_is_compared_is_what_the_reports_say() -> None:
    comparison = compare(A, B)
    (pair,) = comparison.pairs
    assert isinstance(comparison, bestattack.Comparison)
    assert bestattack.compare is compare
    assert pair.difference == pytest.approx(A.best_attack - B.best_attack)
    # A counts 5 to 39, and B 21 to 39.
    assert (pair.only_first.tolist(), pair.only_second.tolist()) == (list(range(5, 21)), [])
    paired = Paired(16, 0, TOTAL)
    assert (pair.interval, pair.p, pair.p_holm) == (paired.interval, *[paired.chance()] * 2)
    assert pair.verdict == "A is better"
    (row,) = comparison.to_frame().to_dict("records")
    assert row == {
        "of": "best-attack", "first": "A", "second": "B", "first_accuracy": A.best_attack,
        "second_accuracy": B.best_attack, "difference": pair.difference, "low": pair.interval[0],
        "high": pair.interval[1], "only_first": 16, "only_second": 0, "p": pair.p,
        "p_holm": pair.p_holm, "verdict": "A is better",
    }  # fmt: skip


def test_samples_that_changed_say_what_broke_them() -> None:
    changed = compare(A, B, of="a").changed()
    # By a alone: 4 counts for A, and 20 for both.
    assert changed["index"].tolist() == list(range(4, 20))
    changed = compare(B, A).changed().set_index("index")
    assert changed.loc[20].to_dict() == {
        "first": "B", "second": "A", "label": 1, "first_counts": 0.0, "second_counts": 1.0,
        "first_broken_by": "b", "second_broken_by": "",
    }  # fmt: skip
    natural = compare(A, B, of="natural").changed()
    assert natural[["index", "second_broken_by"]].values.tolist() == [[1, "natural"]]
    assert compare(A, A).changed().empty


def test_several_attacks_that_break_a_sample_are_named() -> None:
    one, other = _report([], {"a": [7], "b": [7]}, name="one"), _report([], {"a": []}, name="other")
    changed = compare(one, other).changed()
    assert changed[["index", "first_broken_by"]].values.tolist() == [[7, "a, b"]]


@pytest.mark.parametrize("of", ["natural", "best-attack", "a"])
def test_the_order_of_reports_turns_signs_alone(of: str) -> None:
    (one,), (other,) = compare(A, B, of=of).pairs, compare(B, A, of=of).pairs
    assert other.difference == -one.difference
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]))
    assert (other.p, other.better) == (one.p, one.better)
    assert other.only_second.tolist() == one.only_first.tolist()


def test_all_pairs_are_corrected_together_or_those_with_one_row() -> None:
    rows = {"a": A, "b": B, "c": _report([], {"a": [1], "b": []})}
    each = compared(rows)
    assert [(pair.first, pair.second) for pair in each.pairs] == [
        ("a", "b"), ("a", "c"), ("b", "c"),
    ]  # fmt: skip
    one = compared(rows, against="b")
    assert [(pair.first, pair.second) for pair in one.pairs] == [("a", "b"), ("c", "b")]
    assert one.pairs[0].p == each.pairs[0].p
    for comparison in (each, one):
        corrected = holm([pair.p for pair in comparison.pairs])
        assert [pair.p_holm for pair in comparison.pairs] == corrected
    assert each.pairs[0].p_holm == 2 * each.pairs[0].p > one.pairs[0].p_holm


def test_names_that_come_again_get_a_number() -> None:
    assert [pair.first for pair in compare(A, B, A).pairs] == ["A", "A", "B"]
    assert list(compare(A, B, A).rows) == ["A", "B", "A-2"]


def _text(comparison: Comparison) -> str:
    """What is printed, with all its lines as one."""
    return " ".join(comparison.to_markdown().split())


def test_what_is_printed_fits_and_is_what_was_found() -> None:
    long = "pgd-at/arch=residual/epochs=20/" + "x" * 90
    rows = {f"row {place}": A for place in range(28)} | {long: B, "a|b<c>": A}
    text = compared(rows, against=long).to_markdown()
    assert max(map(len, text.splitlines())) <= 80
    assert long in "".join(line.strip() for line in text.splitlines())
    assert "\n- AD: 87.5 [73.9, 94.5] a\\|b&lt;c&gt;\n" in text
    low, high = (f"{100 * limit:.1f}" for limit in Paired(16, 0, TOTAL).interval)
    (line,) = [line for line in text.splitlines() if line.startswith("| A-AC ")]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        *("A-AC", f"+40.0 [{low}, {high}]", "16/0", "3e-05", "0.0009", "A is better")
    ]
    assert text.startswith("best-attack accuracy in % over all 40 digits images, L2 eps 0.5:\n\n- ")
    assert "Tango's, and p is by McNemar's exact test." in " ".join(text.split())
    assert "met" not in text
    assert "randomised" not in text


def test_attacks_that_differ_are_said_and_not_refused() -> None:
    fewer = _report([0], {"a": [1]}, name="C")
    line = (
        "A and B met a and b; C met a alone. Each number is an upper bound by its own attacks: a "
        "row that met fewer, or weaker ones, may look better than it is."
    )
    assert f"- {line}" in _text(compare(A, B, fewer))
    other_order = _report([0], {"b": [1], "a": []}, name="C")
    assert "met" not in _text(compare(A, other_order))
    # An attack of the same name with other options is another attack.
    longer = _report([0], {"a": [1], "b": []}, name="C", steps=50)
    text = _text(compare(A, longer, of="a"))
    assert "A met a (pgd/steps=5, version 1); B met a (pgd/steps=50, version 1). Each" in text
    other_code = _report([0], {"a": [1], "b": []}, name="C", code="c")
    text = _text(compare(A, other_code, of="a"))
    assert re.search(r"A met a \(pgd/steps=5, version 1, key (\w{16})\); B met .* key (?!\1)", text)
    assert "met" not in _text(compare(A, longer, of="natural"))
    assert "met" not in _text(compare(A, fewer, of="a"))


def test_flags_are_said() -> None:
    text = _text(compare(_report(list(range(TOTAL)), {"a": []}), A))
    assert "- A is flagged: chance" in text


def test_attacks_that_failed_do_not_count() -> None:
    failed = _report([0], {"a": [1], "b": []}, name="C")
    failed.errors["b"] = "ValueError: no"
    assert "A met a and b; B met a alone." in _text(compare(A, failed))
    with pytest.raises(UserError, match=r"^C has no b accuracy: it failed: ValueError: no$"):
        compare(A, failed, of="b")


def _cannot(other: Report, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        compare(A, other, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


REFUSED: dict[str, Callable[[], Report]] = {
    "one is under L2 eps 0.5, the other under L2 eps 1": lambda: _other(
        threat=ThreatModel("l2", 1.0)
    ),
    "one is under L2 eps 0.5, the other under L-infinity eps 0.5": lambda: _other(
        threat=ThreatModel("linf", 0.5)
    ),
    "both are under L2 eps 0.5, but with other bounds of what may be perturbed": lambda: _other(
        threat=ThreatModel("l2", 0.5, 0.0, 2.0)
    ),
    "one is on digits, the other on mnist": lambda: _other(data={"name": "mnist", "sha256": "t"}),
    "the images or labels of digits are not the same": lambda: _other(data=DATA | {"sha256": "t"}),
    "other features of the data are held still": lambda: _other(data=DATA | {"frozen": "f"}),
    "the labels of one are those of the data, and those of the other its predictions": lambda: (
        _other(data=DATA | {"labels": "predictions"})
    ),
    "they are on other samples, all 40 digits images and all 30 digits images": lambda: _other(
        total=30
    ),
    "they are on other samples, all 40 digits images and all 40 digits images": lambda: _other(
        data=DATA | {"order": "o"}
    ),
    "one is of a run and the other of evaluate, whose samples cannot be told to be those": lambda: (
        _other(data="fingerprint")
    ),
    "their labels differ, as where each model's own predictions are its labels": lambda: _other(
        labels=2
    ),
}


def _other(**options: Any) -> Report:
    return _report([0], {"a": [], "b": []}, name="C", **options)


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_compared_is_refused(why: str) -> None:
    assert _cannot(REFUSED[why]()) == f"A and C cannot be compared: {why}"


def test_the_name_of_data_does_not_count() -> None:
    assert compare(A, _other(data=DATA | {"name": "npz=/elsewhere/digits.npz"})).pairs


def test_rows_that_lack_records_or_the_accuracy_are_refused() -> None:
    short = _report([0], {"a": [1]}, name="C")
    short.add("b", "b", _cell([1, 2], [], 1, {}), None)
    assert _cannot(short) == (
        "C is not finished (b: incomplete: 2 of 39 samples are recorded): run the same command "
        "again, or leave the row out"
    )
    assert _cannot(B, of="best-atack") == (
        "A has no best-atack accuracy: did you mean 'best-attack'?"
    )
    assert _cannot(B, of=CERTIFIED) == (
        "A has no certified accuracy: the model certifies nothing, and no bounds were asked for; "
        "leave the row out"
    )
    assert _cannot(_report([0], {}, name="C")) == (
        "C has no best-attack accuracy: no attack of it counts"
    )
    assert _cannot(B, against="C") == "no row 'C': there are A, B"
    with pytest.raises(UserError, match=r"^there is nothing to compare: name two rows or more$"):
        compare(A)
    with pytest.raises(UserError, match=r"^compare takes reports of evaluate, not list$"):
        compare([A, B])  # type: ignore[arg-type]


def test_reports_of_evaluate_are_compared_on_the_same_samples_alone() -> None:
    # The first pixel is up to 0.1 from the boundary.
    x = X.clone()
    x[:3, 0] -= 0.3
    one, other = (evaluate_small(x=x, eps=0.2, attacks=attacks, name=name) for attacks, name in [
        ([PGD(steps=5)], "one"), ([PGD(steps=5), "pgd/steps=2"], "other"),
    ])  # fmt: skip
    (pair,) = compare(one, other).pairs
    assert (pair.difference, pair.p) == (0, 1)
    assert "A met PGD alone; B met PGD and pgd/steps=2." in _text(compare(one, other))
    for different in (evaluate_small(eps=0.2), evaluate_small(x=x[:4], y=torch.zeros(4).long())):
        with pytest.raises(UserError, match=r"^Linear and .* cannot be compared: they are on oth"):
            compare(evaluate_small(x=x, eps=0.2), different)
    cascade = evaluate_small(x=x, eps=0.2, mode="cascade", attacks=["pgd"])
    assert compare(one, cascade).pairs[0].difference == 0
    with pytest.raises(UserError, match=r"^Linear has no pgd accuracy: in a cascade, attacks saw"):
        compare(cascade, cascade, of="pgd")


class Drawing(Linear):
    """A linear model that is wrong on all images in some of its draws."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return logits if torch.rand(()) < 0.7 else -logits


def test_randomised_models_count_by_shares() -> None:
    drawing, plain = evaluate_small(Drawing().eval(), eps=0.01), evaluate_small(eps=0.01)
    comparison = compare(plain, drawing)
    (pair,) = comparison.pairs
    assert pair.by_shares
    assert pair.difference == pytest.approx(plain.best_attack - drawing.best_attack)
    assert 0 < pair.difference < 1
    text = _text(comparison)
    assert "Of randomised models samples count by shares of draws" in text
    assert "McNemar" not in text
    changed = comparison.changed()
    assert len(changed) == N
    assert changed["second_counts"].between(0, 1, inclusive="neither").all()
    mixed = _text(compare(plain, drawing, plain))
    assert "by McNemar's exact test, but of randomised models, whose samples count" in mixed


class Certifying(Linear):
    """A linear model that certifies a part of the distance to its boundary."""

    def __init__(self, part: float) -> None:
        super().__init__()
        self.part = part

    def certified_radius(self, x: torch.Tensor) -> torch.Tensor:
        return self.part * (0.6 - x[:, 0]).abs()


def test_certified_accuracies_are_compared() -> None:
    # The pixels that count are 0.1 from the boundary.
    good, less = (
        evaluate_small(Certifying(part).eval(), eps=0.08, name=name)
        for part, name in [(0.9, "good"), (0.5, "less")]
    )
    (pair,) = compare(good, less, of=CERTIFIED).pairs
    assert (good.certified, less.certified) == (1, 0)
    assert (pair.difference, pair.only_first.tolist()) == (1, list(range(N)))
    assert (pair.p, pair.better) == (2 / 2**N, "good")
    text = _text(compare(good, less, of=CERTIFIED))
    assert "certified by" not in text
    # Of a proof there is no attack that the others lack.
    bounds = evaluate_small(
        nn.Linear(4, 2).eval(), eps=0.08, name="bounds", certify="crown", y=Y, x=X
    )
    text = _text(compare(good, bounds, of=CERTIFIED))
    assert (
        "A was certified by its own certificate; B was certified by linear bounds (CROWN)" in text
    )
    assert "Each number is a lower bound by its own proofs." in text
