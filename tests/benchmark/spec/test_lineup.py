"""Series: one option with several values, each attack on what the ones before it left."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks import PGD, Facts, Problem
from benchmark import Report, UserError
from benchmark.judge.records import FolderCell
from benchmark.spec.registry import ATTACKS
from tests.benchmark.conftest import Cli
from tests.benchmark.small import X, Y, evaluate_small

N = 30
SERIES = "part/of=7,3,2"
LABELS = ["part/of=7", "part/of=3", "part/of=2"]


@dataclass(frozen=True)
class Part:
    """Breaks every `of`-th sample."""

    of: int = 2
    at: int = 0

    facts: ClassVar[Facts] = Facts("fixed-budget", norms=("l2",))

    def __call__(self, problem: Problem) -> Tensor:
        if self.of == 0:
            raise ValueError("no part")
        moved = (problem.index % self.of == self.at)[:, None] * torch.tensor([0.15, 0, 0, 0])
        return problem.x + moved


@pytest.fixture(autouse=True)
def _part() -> None:
    ATTACKS.add("part", Part, "here")


def _evaluate(*attacks: Any, **options: Any) -> Report:
    x, y = X[:1].expand(N, 4), Y[:1].expand(N)
    return evaluate_small(x=x, y=y, attacks=list(attacks), block=8, **options)


def _index(report: Report, label: str) -> list[int]:
    records = report.records
    return [int(i) for i in records["index"][records["attack"] == label]]


def test_a_series_is_its_members_one_after_the_other() -> None:
    report = _evaluate(SERIES)
    left = np.arange(N)
    for label, of in zip(LABELS, (7, 3, 2), strict=True):
        assert _index(report, label) == left.tolist()
        left = left[left % of != 0]
        assert report.per_attack[label] == len(left) / N
    assert report.best_attack == len(left) / N
    assert report.errors == {}
    assert report.after == {LABELS[1]: (LABELS[0],), LABELS[2]: (LABELS[0], LABELS[1])}
    # What the members broke between them is what they break each by itself.
    alone = _evaluate(*LABELS)
    assert alone.after == {}
    assert alone.best_attack == report.best_attack
    assert alone.per_attack[LABELS[0]] == report.per_attack[LABELS[0]]
    assert [len(_index(alone, label)) for label in LABELS] == [N] * 3


def test_columns_of_a_series_never_rise() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        values = rng.permutation(range(1, 9))[:4]
        report = _evaluate("part/of=" + ",".join(map(str, values)) + "/at=1")
        columns = list(report.per_attack.values())
        assert columns == sorted(columns, reverse=True)
        assert columns[-1] == report.best_attack


def test_an_attack_beside_a_series_sees_all_samples() -> None:
    report = _evaluate("part/of=5", SERIES, "part/of=2/at=1")
    assert len(_index(report, "part/of=5")) == N
    assert len(_index(report, "part/of=2/at=1")) == N
    assert _index(report, LABELS[0]) == list(range(N))
    assert report.per_attack["part/of=2/at=1"] == 0.5
    assert report.best_attack == 0


@pytest.mark.parametrize(
    ("attack", "labels"),
    [
        ({"name": "part", "of": [7, 3]}, ["part/of=7", "part/of=3"]),
        ({"name": "part", "of": "7,3", "label": "P"}, ["P of=7", "P of=3"]),
        ({"name": "part", "at": 1, "of": [7]}, ["part/at=1/of=7"]),
        ("part/at=0,1/of=3", ["part/at=0/of=3", "part/at=1/of=3"]),
    ],
)
def test_a_series_may_be_given_in_other_ways(attack: Any, labels: list[str]) -> None:
    assert list(_evaluate(attack).per_attack) == labels


@pytest.mark.parametrize(
    ("attacks", "line"),
    [
        (
            ["part/of=3,2/at=0,1"],
            "attack 'part/of=3,2/at=0,1': one option may have several values, not of and at",
        ),
        (["part/of=3,3"], "two attacks are labelled 'part/of=3': rename one"),
        (["part/of=3,2", "part/of=2"], "two attacks are labelled 'part/of=2': rename one"),
        (
            ["part/of=3,"],
            "attack 'part/of=': of: Input should be a valid integer, unable to parse string as an "
            "integer",
        ),
        (
            [{"name": "part", "of": []}],
            "attack 'part/of=': of: Input should be a valid integer",
        ),
    ],
)
def test_a_series_that_is_not_clear_gets_one_line(attacks: list[Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        _evaluate(*attacks)
    assert str(error.value) == line


def test_the_first_of_a_series_beside_itself_is_run_once() -> None:
    assert list(_evaluate("part/of=7", SERIES).per_attack) == LABELS


def test_what_failed_in_a_series_counts_for_nothing() -> None:
    report = _evaluate("part/of=3,0,2")
    assert report.errors == {"part/of=0": "ValueError: no part"}
    assert _index(report, "part/of=2") == [i for i in range(N) if i % 3]
    assert report.per_attack["part/of=2"] == report.best_attack == 10 / N
    assert list(report.flags) == ["attack-error", "not-converged"]


def test_a_cascade_of_a_series_is_a_cascade() -> None:
    report = _evaluate("part/of=5", SERIES, mode="cascade")
    assert report.errors == {}
    assert report.best_attack == _evaluate("part/of=5", SERIES).best_attack
    assert report.per_attack == {}
    assert "series" not in report.to_markdown()


def test_the_caption_says_what_the_columns_of_a_series_mean() -> None:
    text = _evaluate("part/of=5", SERIES).to_markdown()
    assert (
        f"{', '.join(LABELS)} are a series: each worked only on what the ones before it left, and "
        "its column is the accuracy after it and the ones before it." in text
    )
    assert "series" not in _evaluate("part/of=5").to_markdown()


def test_the_smallest_distances_are_those_of_the_whole_series() -> None:
    words = {"name": "cw", "minimize": True, "searches": 2}
    series = evaluate_small(attacks=[words | {"steps": [3, 30]}])
    alone = evaluate_small(attacks=[words | {"steps": 3}])
    found, first = series.minimal_distances(), alone.minimal_distances()
    assert found is not None
    assert first is not None
    broken = first <= 0.2
    assert (found[broken] == first[broken]).all()
    assert (found <= first).all()


# On disk.

WORDS = (
    *("run", "--quiet", "--samples", 96, "--block", 32, "--eps", 0.5),
    *("--defense", "vanilla/epochs=2", "--attack", "pgd/steps=1/step_size=0.1,0.3,0.6"),
)
STEPS = [f"pgd/steps=1/step_size={size}" for size in (0.1, 0.3, 0.6)]


def _row(folder: Path, name: str = "table.json") -> dict[str, Any]:
    (row,) = json.loads((folder / name).read_text())["rows"]
    return dict(row)


def _alone(folder: Path, cli: Cli, label: str) -> dict[str, Any]:
    assert cli(*WORDS[:-1], label, "--out", folder).status == 0
    return _row(folder)


def test_a_series_on_disk_resumes_and_holds(tmp_path: Path, cli: Cli) -> None:
    ended = cli(*WORDS, "--out", tmp_path / "run")
    assert ended.status == 0
    row = _row(tmp_path / "run")
    columns = list(row["per_attack"].values())
    assert list(row["per_attack"]) == STEPS
    assert columns == sorted(columns, reverse=True)
    assert row["best_attack"] == columns[-1] < columns[0]
    first = _alone(tmp_path / "first", cli, STEPS[0])
    assert first["per_attack"] == {STEPS[0]: columns[0]}

    # Measured anew is only what is missing: a block of the second, of which the third depends.
    manifest = _row(tmp_path / "run", "run.json")
    assert manifest["after"] == row["after"]
    second = FolderCell(tmp_path / "run" / "cells" / manifest["cells"][STEPS[1]])
    lost = sorted(second.folder.glob("*.npz"))[0]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run/cells/*/*.npz")}
    before = (tmp_path / "run" / "table.json").read_text()
    lost.unlink()
    assert cli(*WORDS, "--out", tmp_path / "run").status == 0
    del times[lost]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert _row(tmp_path / "run") == row

    ended = cli("report", tmp_path / "run", "--wide")
    assert ended.status == 0
    assert "are a series" in ended.out
    assert json.loads(before)["caption"] in ended.out
    assert _row(tmp_path / "run") == row
    ended = cli("verify", tmp_path / "run")
    assert (ended.status, ended.err) == (0, "")


def test_a_series_that_is_interrupted_goes_on(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*WORDS, "--out", tmp_path / "whole").status == 0
    work, calls = PGD.__call__, list[int]()

    def interrupted(self: PGD, problem: Problem) -> Tensor:
        calls.append(len(problem))
        if len(calls) == 5:  # in the second of three blocks of the second attack
            raise KeyboardInterrupt
        return work(self, problem)

    with monkeypatch.context() as patch:
        patch.setattr(PGD, "__call__", interrupted)
        assert cli(*WORDS, "--out", tmp_path / "cut").status == 130
    cells = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cut/cells/*/*.npz")}
    assert cli("report", tmp_path / "cut").status == 0
    whole, cut = (_row(tmp_path / name) for name in ("whole", "cut"))
    assert cut["per_attack"] == {STEPS[0]: whole["per_attack"][STEPS[0]]}

    assert cli(*WORDS, "--out", tmp_path / "cut").status == 0
    assert _row(tmp_path / "cut") == whole
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    one, other = (_row(tmp_path / name, "run.json")["cells"] for name in ("whole", "cut"))
    assert one == other


@pytest.mark.parametrize("after", [{}, {STEPS[2]: STEPS[:1]}])
def test_a_series_that_is_denied_does_not_hold(
    tmp_path: Path, cli: Cli, after: dict[str, Any]
) -> None:
    assert cli(*WORDS, "--out", tmp_path).status == 0
    manifest = json.loads((tmp_path / "run.json").read_text())
    manifest["rows"][0]["after"] = after
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    assert cli("report", tmp_path).status == 0
    ended = cli("verify", tmp_path)
    assert ended.status == 1
    assert "incomplete" in ended.err
