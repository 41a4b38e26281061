"""One defense trained with several seeds: means and standard deviations of reports made by hand."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from benchmark import terminal
from benchmark.columns import percent, shown_in
from benchmark.data.choice import Choice
from benchmark.judge.records import Block, MemoryCell
from benchmark.report.report import Report
from benchmark.seeds import OverSeeds, Spread, over_seeds
from benchmark.spec.components import CERTIFIED, SEARCH
from benchmark.spec.run_spec import RunSpec, make_spec
from tests.benchmark.by_hand import EPS, cell_of, report_of

SEEDS = [3, 0, 7]


def _spec(**changes: Any) -> RunSpec:
    return make_spec({"eps": EPS, "defenses": ["vanilla"], "seeds": SEEDS} | changes)


def _with_seeds(*reports: Report) -> list[Report]:
    for seed, report in zip(SEEDS, reports, strict=False):
        report.under = f"seed {seed}"
    return list(reports)


@pytest.fixture
def reports() -> list[Report]:
    """Of ten samples, 1, 2 and 0 are misclassified clean, and 6, 5 and 6 are left by both attacks:
    best-attack is 0.6, 0.5, 0.6."""
    return _with_seeds(
        report_of("l2", 10, [0], a=[1, 2], b=[2, 3]),
        report_of("l2", 10, [0, 1], a=[2], b=[3, 4]),
        report_of("l2", 10, [], a=[1, 2, 3], b=[3, 4]),
    )


def test_mean_and_standard_deviation_are_those_of_the_numbers(reports: list[Report]) -> None:
    (row,) = over_seeds.by_defense(reports, _spec())
    assert list(row.with_seed.values()) == reports
    natural, best = row.spread("natural"), row.spread("best-attack")
    assert natural == Spread((0.9, 0.8, 1.0))
    assert natural.mean == pytest.approx(0.9, abs=1e-15)
    assert natural.sd == pytest.approx(0.1, abs=1e-15)
    assert row.spread("a") == Spread((0.7, 0.7, 0.7))
    assert str(row.spread("a")) == "70.0 ± 0.0"
    assert best is not None
    assert best.values == (0.6, 0.5, 0.6)
    # The squares of 1/30, 2/30, 1/30, by two.
    assert best.sd == pytest.approx(math.sqrt(Fraction(6, 900) / 2), abs=1e-15)
    assert str(best) == "56.7 ± 5.8"
    assert row.spread("certified") is None


@pytest.mark.parametrize("seed", range(5))
def test_spreads_follow_the_numbers(seed: int) -> None:
    values = np.random.default_rng(seed).random(6)
    spread = Spread(tuple(values.tolist()))
    assert spread.mean == pytest.approx(values.mean(), abs=1e-14)
    assert spread.sd == pytest.approx(values.std(ddof=1), abs=1e-14)
    moved = Spread(tuple((0.5 * values[::-1] + 0.2).tolist()))
    assert moved.mean == pytest.approx(0.5 * spread.mean + 0.2, abs=1e-14)
    assert moved.sd == pytest.approx(0.5 * spread.sd, abs=1e-14)


def test_the_table_has_a_row_per_defense_and_says_what_it_is_over(reports: list[Report]) -> None:
    rows = over_seeds.by_defense(reports, _spec())
    text = over_seeds.table(rows, _spec())
    header, _, line, _, caption = text.splitlines()[:5]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        *("defense", "natural", "a", "b", "best-attack", "flags")
    ]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[:5] == ["m", "90.0 ± 10.0", "70.0 ± 0.0", "70.0 ± 10.0", "56.7 ± 5.8"]
    for said in ("n = 3 seeds (3, 0, 7)", "n - 1", "± is over trainings, not over samples"):
        assert said in caption
    assert "other images" not in caption
    assert "same model" not in caption  # hand-made records say nothing of the model

    frame = over_seeds.numbers(rows).set_index("attack")
    assert list(frame.index) == ["natural", "a", "b", "best-attack"]
    for label, line_of in frame.iterrows():
        spread = rows[0].spread(str(label))
        assert spread is not None
        assert (line_of["mean"], line_of["sd"]) == (spread.mean, spread.sd)
        assert line_of["trainings"] == 3


def test_the_rows_of_json_hold_each_seed_with_its_interval(reports: list[Report]) -> None:
    (row,) = over_seeds.plain(over_seeds.by_defense(reports, _spec()))
    best = Spread((0.6, 0.5, 0.6))
    assert row["best_attack"] == {"mean": best.mean, "sd": best.sd}
    assert list(row["with_seed"]) == ["3", "0", "7"]
    for report, numbers in zip(reports, row["with_seed"].values(), strict=True):
        accuracy = report.accuracy("best-attack")
        assert accuracy is not None
        assert numbers["best_attack"] == accuracy.value
        assert numbers["interval"] == list(accuracy.interval)
        assert numbers["per_attack"] == report.per_attack


def test_what_failed_with_a_seed_has_no_mean(reports: list[Report]) -> None:
    failed = report_of("l2", 10, [0], a=[1])
    failed.add("b", "b", MemoryCell(), "it failed")
    reports = _with_seeds(reports[0], failed, reports[2])
    (row,) = rows = over_seeds.by_defense(reports, _spec())
    assert row.spread("a") == Spread((0.7, 0.8, 0.7))
    assert row.spread("b") is None
    # Best-attack of one seed would be over other attacks than that of the others.
    assert row.spread("best-attack") is None
    line = over_seeds.table(rows, _spec()).splitlines()[2]
    assert [cell.strip() for cell in line.split("|")[3:6]] == ["73.3 ± 5.8", "error", "error"]
    assert "- m (seed 0): b failed: it failed" in over_seeds.table(rows, _spec()).splitlines()

    # One that failed with every seed leaves best-attack over the same attacks.
    for report in reports:
        report.errors["b"] = "it failed"
    assert row.spread("best-attack") == row.spread("a")


def test_what_is_not_measured_with_a_seed_has_no_mean(reports: list[Report]) -> None:
    (row,) = rows = over_seeds.by_defense(reports[:2], _spec())
    assert list(row.with_seed.values()) == [*reports[:2], None]
    assert row.spread("natural") is None
    line = over_seeds.table(rows, _spec()).splitlines()[2]
    assert [cell.strip() for cell in line.split("|")[2:6]] == ["-"] * 4
    (plain,) = over_seeds.plain(rows)
    assert (plain["natural"], plain["best_attack"], plain["with_seed"]["7"]) == (None, None, None)
    assert plain["with_seed"]["0"]["natural"] == 0.8


def test_flags_name_the_seeds_and_are_explained_once(reports: list[Report]) -> None:
    reports[0].noted = reports[2].noted = ["zero-gradient"]
    (row,) = rows = over_seeds.by_defense(reports, _spec())
    assert row.flags["zero-gradient"] == [3, 7]
    text = over_seeds.table(rows, _spec())
    assert "zero-gradient (seeds 3, 7)" in text.splitlines()[2]
    explained = [line for line in text.splitlines() if ": zero-gradient: " in line]
    assert len(explained) == 1
    assert explained[0].startswith("- m (seeds 3, 7): zero-gradient: ")


def test_choices_of_images_that_differ_are_told(reports: list[Report]) -> None:
    for seed, report in zip(SEEDS, reports, strict=True):
        report.choice = Choice("random", seed, 20, ["a class"] if seed else [])
    spec = _spec(samples=10, choose="random")
    caption = over_seeds.caption(over_seeds.by_defense(reports, spec), spec)
    assert "10 of 20 digits test images (at random, seeds 3, 0, 7)" in caption
    assert "With each seed other images are chosen, which is in ± too." in caption
    assert "No image is of the class" not in caption  # which is true of some of the choices

    for report in reports:
        report.choice = Choice("first", 0, 20, ["a class"])
    caption = over_seeds.caption(over_seeds.by_defense(reports, _spec()), _spec())
    assert "other images" not in caption
    assert "No image is of the class a class." in caption


def test_a_cascade_has_no_column_per_attack(reports: list[Report]) -> None:
    for report in reports:
        report.mode = "cascade"
    rows = over_seeds.by_defense(reports, _spec())
    columns = shown_in("seeds", over_seeds.columns_over(rows))
    headings = [column.heading("seeds") for column in columns]
    assert headings == ["defense", "natural", "best-attack", "flags"]
    assert over_seeds.plain(rows)[0]["per_attack"] == {"a": None, "b": None}


def test_rows_stand_in_the_order_of_the_defenses() -> None:
    both = [report_of("l2", 4, [], a=[1]) for _ in range(6)]
    for place, report in enumerate(both):
        report.name, report.under = "mn"[place % 2], f"seed {SEEDS[place // 2]}"
    rows = over_seeds.by_defense(both, _spec())
    assert [row.name for row in rows] == ["m", "n"]
    assert all(isinstance(row, OverSeeds) and len(row.reports) == 3 for row in rows)
    assert percent(rows[0].spread("a").mean) == "75.0"  # type: ignore[union-attr]


def test_a_terminal_shows_the_means_without_single_attacks(reports: list[Report]) -> None:
    shown = terminal.text(
        over_seeds.page_over_all(over_seeds.by_defense(reports, _spec()), _spec())
    )
    header, _, line = shown.splitlines()[:3]
    assert header.split() == ["defense", "natural", "best-attack"]
    assert line.split() == ["m", *["90.0", "±", "10.0", "56.7", "±", "5.8"]]

    reports[1].awaited = ["c"]
    rows = over_seeds.by_defense(reports[:2], _spec())
    assert rows[0].spread("best-attack") is None
    shown = terminal.text(over_seeds.page_over_all(rows, _spec()))
    assert "not finished" in shown.splitlines()[0]
    assert rows[0].unfinished == ["seed 0: c not begun", "seed 7: not begun"]
    assert all(len(line) <= 80 for line in shown.splitlines())


def _certified(done: bool, error: str | None = None) -> Report:
    """A report whose model certifies nothing, and for which bounds prove all, once that is done."""
    report = report_of("l2", 6, [0])
    radii = MemoryCell()
    ones = np.ones(6, np.int64)
    radii.add(
        Block(np.arange(6), ones, ones, ones < 0, np.zeros(6), ones, ones, ones < 0, ones * 0.1,
              np.zeros((0, 2), np.float32))
    )  # fmt: skip
    report.certify("c", radii, None)
    if not done:
        report.awaited = [SEARCH]
        return report
    options = {"method": "crown"}
    cell = cell_of(6, [1, 2, 3, 4, 5], {})
    cell.close({"identity": {"attack": {"name": SEARCH, "options": options}}})
    report.add(SEARCH, "s", cell, error)
    return report


@pytest.mark.parametrize("what", ["to come", "failed"])
def test_certificates_by_other_means_have_no_mean(what: str) -> None:
    whole = _certified(True)
    other = _certified(False) if what == "to come" else _certified(True, "out of memory")
    assert other.accuracy(CERTIFIED) is not None  # its own certificate's, which is no error
    assert OverSeeds("m", {0: whole, 1: whole}).spread(CERTIFIED) is not None
    assert OverSeeds("m", {0: whole, 1: other}).spread(CERTIFIED) is None
    assert OverSeeds("m", {0: other, 1: other}).spread(CERTIFIED) is None
