"""From records made by hand to tables whose numbers are known."""

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from attacks import ThreatModel
from benchmark.columns import escaped
from benchmark.judge.records import Block, IntArray, MemoryCell
from benchmark.report import tables
from benchmark.report.accuracy import Accuracy
from benchmark.report.report import Report
from benchmark.spec.components import BEST, NATURAL
from benchmark.spec.run_spec import Mode, make_spec

SPEC = make_spec({"data": "mnist", "eps": 0.5, "defenses": ["d"], "suite": "none"})


EPS = 0.5

ROBUST = "robust % [95% interval]"


def _cell(
    index: list[int] | IntArray,
    found: dict[int, float],
    note: dict[str, Any] | None = None,
    sizes: int = 3,
    outside: int = 0,
) -> MemoryCell:
    """A cell over samples, of which some are misclassified at a distance, in blocks of `sizes`."""
    cell = MemoryCell()
    index = np.asarray(index, dtype=np.int64)
    for places in np.split(index, range(sizes, len(index), sizes)) if len(index) else []:
        distance = np.array([found.get(i, np.nan) for i in places.tolist()])
        ones = np.ones_like(places)
        hit = ~np.isnan(distance)
        points = np.full((int(hit.sum()), 2), 0.5, dtype=np.float32)
        left, seconds = np.isin(places, places[:outside]), ones * 0.25 / len(places)
        cell.add(
            Block(places, ones, np.where(hit, 0, 1), distance <= EPS, distance,
                  places * 2, places * 3, left, seconds, points)
        )  # fmt: skip
    cell.close(note or {})
    return cell


def _report(total: int, misclassified: list[int], mode: Mode = "table") -> Report:
    report = Report("a defense", ThreatModel("l2", EPS), mode, total)
    report.add(NATURAL, "k", _cell(list(range(total)), dict.fromkeys(misclassified, 0.0)), None)
    return report


@pytest.fixture
def report() -> Report:
    """Ten samples: 8 and 9 misclassified; "a" breaks 0, 1 and 2, "b" 2 and 3, "c" nothing."""
    report = _report(10, [8, 9])
    report.add("a", "ka", _cell(list(range(8)), {0: 0.1, 1: 0.2, 2: 0.45, 4: 0.7}), None)
    report.add("b", "kb", _cell([7, 6, 5, 4, 3, 2, 1, 0], {2: 0.3, 3: 0.5}), None)
    report.add("c", "kc", _cell(list(range(8)), {}), None)
    return report


def test_best_attack_is_the_worst_case_of_each_sample(report: Report) -> None:
    assert report.natural == 0.8
    assert report.per_attack == {"a": 0.5, "b": 0.6, "c": 0.8}
    assert report.best_attack == 0.4
    assert report.survivors().tolist() == [4, 5, 6, 7]
    assert report.flags == {}


def test_samples_misclassified_clean_count_as_broken() -> None:
    report = _report(10, list(range(7)))
    report.add("a", "ka", _cell([7, 8, 9], {}), None)
    assert (report.natural, report.per_attack["a"], report.best_attack) == (0.3, 0.3, 0.3)
    all_wrong = _report(4, [0, 1, 2, 3])
    all_wrong.add("a", "ka", _cell([], {}), None)
    assert (all_wrong.natural, all_wrong.per_attack["a"], all_wrong.best_attack) == (0, 0, 0)
    assert all_wrong.errors == {}


def test_any_records_give_what_a_count_by_hand_gives() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        total = int(rng.integers(1, 30))
        natural, a, b = rng.random((3, total)) < rng.random((3, 1))
        right = np.flatnonzero(natural)
        report = _report(total, np.flatnonzero(~natural).tolist())
        for label, broken in (("a", a), ("b", b)):
            found = dict.fromkeys(np.flatnonzero(broken).tolist(), 0.3)
            report.add(label, label, _cell(rng.permutation(right), found), None)
        assert report.errors == {}
        assert report.natural == natural.mean()
        assert report.per_attack == {
            "a": (natural & ~a).mean(),
            "b": (natural & ~b).mean(),
        }
        assert report.best_attack == (natural & ~a & ~b).mean()


@pytest.mark.parametrize(("count", "n"), [(0, 10), (10, 10), (1, 1), (37, 100), (9999, 10000)])
def test_the_interval_is_that_of_wilson(count: int, n: int) -> None:
    z, p = 1.959963984540054, count / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    accuracy = Accuracy(count, n)
    assert accuracy.value == p
    assert accuracy.interval == pytest.approx((middle - half, middle + half), abs=1e-9)
    assert 0 <= accuracy.interval[0] <= p <= accuracy.interval[1] <= 1


def test_an_attack_that_failed_never_counts_as_robust(report: Report) -> None:
    report.add("d", "kd", _cell([0, 1, 2, 3, 4, 5, 6, 7], {4: 0.1}), "ValueError: no")
    assert math.isnan(report.per_attack["d"])
    assert report.accuracy("d") is None
    assert report.errors == {"d": "ValueError: no"}
    assert list(report.flags) == ["attack-error"]
    # Nor as broken: best-attack is over the others.
    assert report.best_attack == 0.4
    row = tables.wide([report]).iloc[0]
    assert (row["d"], row["flags"]) == ("error", "attack-error")
    assert "- a defense: d failed: ValueError: no" in report.to_markdown().splitlines()


def test_where_every_attack_failed_there_is_no_best_attack() -> None:
    report = _report(4, [])
    report.add("a", "ka", _cell([], {}), "RuntimeError: no")
    assert math.isnan(report.best_attack)
    assert report.accuracy(BEST) is None
    assert tables.plain([report])[0]["best_attack"] is None
    assert tables.wide([report])[f"{BEST} [95% interval]"].tolist() == ["error"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 1, 2, 3, 4, 5, 6], "incomplete: 7 of 8 samples are recorded"),
        ([], "incomplete: the records of all 8 samples are missing"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 7], "incomplete: 9 of 8 samples are recorded"),
        ([0, 1, 2, 3, 4, 5, 6, 6], "incomplete: 8 of 8 samples are recorded"),
        ([0, 1, 2, 3, 4, 5, 6, 8], "incomplete: 7 of 8 samples are recorded"),
    ],
)
def test_a_cell_that_lacks_a_sample_never_counts_as_robust(
    report: Report, index: list[int], message: str
) -> None:
    report.add("d", "kd", _cell(index, {}), None)
    assert report.errors == {"d": message}
    assert math.isnan(report.per_attack["d"])
    assert list(report.flags) == ["attack-error"]
    assert report.best_attack == 0.4


def test_in_a_cascade_each_attack_sees_what_those_before_it_left() -> None:
    report = _report(10, [8, 9], "cascade")
    report.add("a", "ka", _cell(list(range(8)), {0: 0.1, 1: 0.2}), None)
    assert report.survivors().tolist() == [2, 3, 4, 5, 6, 7]
    report.add("b", "kb", _cell([2, 3, 4, 5, 6, 7], {2: 0.3, 3: 0.9}), None)
    assert report.errors == {}
    assert report.per_attack == {}
    assert report.best_attack == 0.5
    wide = tables.wide([report])
    assert list(wide.columns) == ["defense", NATURAL, f"{BEST} [95% interval]", "flags"]
    # An attack that skips what is still standing is incomplete.
    report.add("c", "kc", _cell([4, 5, 6, 7], {4: 0.1}), None)
    assert report.errors == {"c": "incomplete: 4 of 5 samples are recorded"}
    assert report.best_attack == 0.5


def test_distances_are_over_broken_samples_with_the_number_left_out(report: Report) -> None:
    rows = report.to_frame().set_index("attack")
    left_out = "unbroken, left out of distance"
    # Sample 4 was misclassified beyond eps by "a": not broken, and not in its distances.
    assert rows.loc["a", ["attacked", "broken", left_out]].tolist() == [8, 3, 5]
    assert rows.loc["a", "median distance"] == 0.2
    assert rows.loc["a", "mean distance"] == pytest.approx(0.25, abs=1e-12)
    assert rows.loc["b", ["attacked", "broken", left_out]].tolist() == [8, 2, 6]
    assert rows.loc["b", "median distance"] == pytest.approx(0.4, abs=1e-12)
    assert rows.loc["c", ["attacked", "broken", left_out]].tolist() == [8, 0, 8]
    assert math.isnan(rows.loc["c", "median distance"])
    assert math.isnan(rows.loc["c", "mean distance"])
    assert rows.loc["a", ["forwards", "backwards"]].tolist() == [7.0, 10.5]
    assert rows.loc["a", "seconds"] == 0.75  # three blocks


def test_points_outside_the_ball_are_flagged() -> None:
    report = _report(4, [])
    report.add("a", "ka", _cell([0, 1, 2, 3], {}, outside=1), None)
    assert list(report.flags) == ["outside-ball"]


def test_minimal_distances_are_the_smallest_found(report: Report) -> None:
    assert report.minimal_distances() is None
    report.add(
        "m", "km", _cell(list(range(8)), {0: 0.05, 1: 0.3, 5: 2.0}, {"minimises": True}), None
    )
    inf = math.inf
    assert (found := report.minimal_distances()) is not None
    assert found.tolist() == [0.05, 0.2, 0.3, 0.5, 0.7, 2.0, inf, inf, 0.0, 0.0]


def test_the_closest_points_are_those_of_the_labels_that_are_asked_for(report: Report) -> None:
    closest, inf = report.closest(["a", "b"]), math.inf
    assert closest.distance.tolist() == [0.1, 0.2, 0.3, 0.5, 0.7, inf, inf, inf, inf, inf]
    assert closest.label.tolist() == ["a", "a", "b", "b", "a", "", "", "", "", ""]
    # Sample 4 is misclassified beyond eps, and not broken.
    broken = report.closest([NATURAL, "a", "b"], broken=True)
    assert broken.distance.tolist() == [0.1, 0.2, 0.3, 0.5, inf, inf, inf, inf, 0.0, 0.0]
    assert broken.label.tolist()[-2:] == [NATURAL, NATURAL]
    # Of two that are as close, the first's.
    report.add("d", "kd", _cell(list(range(8)), {2: 0.3}), None)
    assert report.closest(["b", "d"]).label[2] == "b"
    assert report.closest(["d", "b"]).label[2] == "d"


def test_an_attack_that_failed_gives_no_minimal_distance() -> None:
    report = _report(3, [])
    report.add("m", "km", _cell([0, 1, 2], {0: 0.1}, {"minimises": True}), "ValueError: no")
    assert report.minimal_distances() is None


@pytest.mark.parametrize("mode", ["table", "cascade"])
def test_the_curve_passes_through_best_attack_at_eps(mode: Mode) -> None:
    report = _report(10, [8, 9], mode)
    report.add("a", "ka", _cell(list(range(8)), {0: 0.1, 1: 0.2}), None)
    rest = list(range(8)) if mode == "table" else [2, 3, 4, 5, 6, 7]
    report.add("m", "km", _cell(rest, {2: 0.3, 3: 0.9}, {"minimises": True}), None)
    distances = report.minimal_distances()
    assert distances is not None
    assert float((distances > EPS).mean()) == report.best_attack == 0.5


def test_the_curve_that_is_drawn_falls_at_each_distance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **options: Any) -> None:
        drawn.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    report = _report(4, [3])
    report.add("m", "km", _cell([0, 1, 2], {0: 0.25, 1: 0.75}, {"minimises": True}), None)
    tables.write(tmp_path, [report], SPEC, {})

    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    line = axes.lines[0]
    for eps, robust in ((0.1, 75), (0.3, 50), (0.7, 50), (0.76, 25), (0.99, 25)):
        assert np.interp(eps, line.get_xdata(), line.get_ydata()) == robust


def test_without_an_attack_that_minimises_no_curve_is_drawn(tmp_path: Path, report: Report) -> None:
    tables.write(tmp_path, [report], SPEC, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("table.csv", "table.json", "table.md")
    ]


def test_the_caption_says_what_the_numbers_are_over(report: Report) -> None:
    caption = tables.caption([report], SPEC)
    for part in (
        "all 10 mnist test images",
        "L2 eps 0.5",
        "if no attack breaks it (worst case per sample over a, b, c)",
        "misclassified clean count as broken in every column",
    ):
        assert part in caption
    assert "Cascade" not in caption
    cascade = Report("d", ThreatModel("linf", 8 / 255), "cascade", 10)
    cascade.add(NATURAL, "k", _cell(list(range(10)), {}), None)
    cascade.add("a", "ka", _cell(list(range(10)), {}), None)
    caption = tables.caption([cascade], None)
    for part in ("all 10 images", "L-infinity eps 8/255", "sample over a)", "Cascade: "):
        assert part in caption


def _markdown_tables(text: str) -> list[pd.DataFrame]:
    parts = [part for part in text.split("\n\n") if part.startswith("|")]
    frames = []
    for part in parts:
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")]
                          for line in part.splitlines())  # fmt: skip
        frames.append(pd.DataFrame(rows, columns=head))
    return frames


def test_all_that_is_written_agrees(tmp_path: Path, report: Report) -> None:
    other = _report(10, [9])
    other.name = "another"
    other.add("a", "ka", _cell(list(range(9)), {0: 0.5}), None)
    other.add("b", "kb", _cell(list(range(9)), {}), "ValueError: no | really")
    reports = [report, other]
    tables.write(tmp_path, reports, SPEC, {"run": {"seed": 3}})

    text = (tmp_path / "table.md").read_text()
    saved = json.loads((tmp_path / "table.json").read_text())
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    wide, detail = _markdown_tables(text)

    assert saved["caption"] == tables.caption(reports, SPEC)
    assert saved["caption"] in text
    assert saved["run"] == {"seed": 3}
    for one, plain, printed in zip(reports, saved["rows"], wide.to_dict("records"), strict=True):
        assert plain["defense"] == printed["defense"] == one.name
        assert plain["natural"] == one.natural
        assert plain["best_attack"] == one.best_attack
        assert printed["natural"] == f"{100 * one.natural:.1f}"
        low, high = plain["interval"]
        assert printed[f"{BEST} [95% interval]"] == (
            f"{100 * one.best_attack:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        )
        assert list(plain["flags"]) == [f for f in printed["flags"].split(", ") if f != "-"]
        of_csv = {row["attack"]: row for row in rows if row["defense"] == one.name}
        assert list(of_csv) == [NATURAL, *one.attacks, BEST]
        assert float(of_csv[NATURAL]["accuracy"]) == one.natural
        assert float(of_csv[BEST]["accuracy"]) == one.best_attack
        for label, value in plain["per_attack"].items():
            detailed = detail[(detail["defense"] == one.name) & (detail["attack"] == label)].iloc[0]
            assert float(of_csv[label]["attacked"]) == float(detailed["attacked"])
            assert float(of_csv[label]["broken"]) == float(detailed["broken"])
            if label in one.errors:
                assert value is None
                assert of_csv[label]["accuracy"] == ""
                assert of_csv[label]["error"] == plain["errors"][label] == one.errors[label]
                assert (printed[label], detailed[ROBUST]) == ("error", "-")
                line = escaped(f"{one.name}: {label} failed: {one.errors[label]}")
                assert f"- {line}" in text.splitlines()
            else:
                assert value == one.per_attack[label] == float(of_csv[label]["accuracy"])
                assert printed[label] == f"{100 * value:.1f}"
                assert detailed[ROBUST] == str(one.accuracy(label))
    # An attack that only one of the defenses met yet is no number for the other, and no error.
    assert wide["c"].tolist() == ["80.0", "-"]
    assert report.to_markdown() == tables.render([report], None)


def test_a_report_without_attacks_yet_can_be_printed() -> None:
    text = _report(4, [0]).to_markdown()
    (wide, _) = _markdown_tables(text)
    assert wide.iloc[0].tolist() == ["a defense", "75.0", "-", "-"]
    assert "worst case per sample over none yet" in text


def test_texts_of_users_cannot_break_a_table(tmp_path: Path) -> None:
    hostile, shown = "=x|\n<b>&`", r"=x\| &lt;b&gt;&amp;\`"
    report = _report(4, [3])
    report.name, report.notes = hostile, [f"note {hostile}"]
    report.add(f"a{hostile}", "ka", _cell([0, 1, 2], {}), None)
    report.add(f"b{hostile}", "kb", _cell([], {}), f"RuntimeError: {hostile}")
    tables.write(tmp_path, [report], SPEC, {})
    text = (tmp_path / "table.md").read_text()
    assert "<b>" not in text
    wide, caption, _, details, remarks = text.rstrip("\n").split("\n\n")
    columns = wide.splitlines()[1].count("|")
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in wide.splitlines()] == [columns] * 3
    assert len(details.splitlines()) == 4
    assert f"worst case per sample over a{shown})" in caption
    assert f"- note {shown}" in remarks
    assert f"- {shown}: b{shown} failed: RuntimeError: {shown}" in remarks
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text(), newline="")))
    assert {row["defense"] for row in rows} == {f"'{hostile}"}
    # JSON has them as they are.
    assert json.loads((tmp_path / "table.json").read_text())["rows"][0]["defense"] == hostile
