"""Reports on one model under several threats, combined: by hand, and as `evaluate` gives them."""

import json
import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import PGD
from attacks.threat import Norm
from benchmark import UserError, combine
from benchmark.judge.records import MemoryCell
from benchmark.report.accuracy import Accuracy
from benchmark.spec.run_spec import make_spec
from benchmark.threats import Combined, combined
from tests.benchmark.by_hand import report_of
from tests.benchmark.small import Linear, N, X, Y, evaluate_small


def test_a_sample_counts_only_if_it_is_robust_under_every_threat() -> None:
    # Of ten samples, 0 is misclassified; L2 breaks 1, 2, 3, and L-infinity 3, 4.
    l2 = report_of("l2", 10, [0], a=[1, 2], b=[2, 3])
    linf = report_of("linf", 10, [0], a=[3, 4])
    both = combine([l2, linf])
    assert both.natural == 0.9
    assert both.best_attack == {"L2 eps 0.5": 0.6, "L-infinity eps 0.5": 0.7}
    assert both.mean == pytest.approx(0.65)
    assert both.union == 0.5
    assert both.accuracy("union") == Accuracy(5.0, 10)

    frame = both.to_frame().set_index("threat")
    assert list(frame.index) == ["natural", *both.best_attack, "mean", "union"]
    assert frame["accuracy"].tolist() == [0.9, 0.6, 0.7, both.mean, 0.5]
    assert frame.loc["union", ["low", "high"]].tolist() == list(Accuracy(5.0, 10).interval)
    header, _, row = both.to_markdown().splitlines()[:3]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        *("defense", "natural", *both.best_attack, "mean", "union [95% interval]", "flags")
    ]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        *("m", "90.0", "60.0", "70.0", "65.0", str(Accuracy(5.0, 10)), "-")
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_union_is_at_most_the_least_and_at_least_what_is_left_of_all(seed: int) -> None:
    rng, total = np.random.default_rng(seed), 40
    clean = list(range(5))
    broken = [rng.choice(np.arange(5, total), 8, replace=False).tolist() for _ in range(4)]
    norms = get_args(Norm)
    reports = [
        report_of(norms[0], total, clean, a=broken[0], b=broken[1]),
        report_of(norms[1], total, clean, a=broken[2], b=broken[3]),
    ]
    both = combine(reports)
    assert both.union <= min(both.best_attack.values())
    assert both.union == (total - len(set(clean).union(*broken))) / total
    swapped = combine(reports[::-1])
    assert (swapped.union, swapped.mean) == (both.union, both.mean)


def test_what_is_not_measured_under_one_threat_is_not_known_under_all() -> None:
    l2, linf = report_of("l2", 4, [0], a=[]), report_of("linf", 4, [0])
    both = combine([l2, linf])
    assert math.isnan(both.mean)
    assert math.isnan(both.union)
    (plain,) = combined.plain([both])
    assert (plain["mean"], plain["union"], plain["interval"]) == (None, None, None)
    json.dumps(plain, allow_nan=False)
    cells = both.to_markdown().splitlines()[2].split("|")
    assert [cell.strip() for cell in cells[3:-1]] == ["75.0", "-", "-", "-", "-"]

    # An attack that failed leaves nothing to count, and says so.
    linf.add("a", "a", MemoryCell(), "it failed")
    assert math.isnan(both.union)
    assert both.to_markdown().splitlines()[2].split("|")[4].strip() == "error"


def test_an_unfinished_run_has_what_there_is() -> None:
    spec = make_spec({"threats": ["l2:0.5", "linf:0.5"], "defenses": ["m"]})
    report = report_of("l2", 4, [], a=[1])
    report.under = "L2 eps 0.5"
    (row,) = combined.by_model([report], spec)
    assert (row.natural, row.best_attack["L2 eps 0.5"]) == (1.0, 0.75)
    assert math.isnan(row.best_attack["L-infinity eps 0.5"])
    assert math.isnan(row.union)
    assert combined.table([row], spec).splitlines()[2].count(" - ") == 4


def _both(model: nn.Module | None = None, **options: Any) -> Combined:
    threats: dict[Norm, float] = {"l2": 0.2, "linf": 0.05}
    return combine(
        [evaluate_small(model, norm=norm, eps=eps, **options) for norm, eps in threats.items()]
    )


@pytest.mark.parametrize("mode", ["table", "cascade"])
def test_reports_of_evaluate_are_combined(mode: str) -> None:
    both = _both(mode=mode)
    assert both.best_attack == {"L2 eps 0.2": 0.0, "L-infinity eps 0.05": 1.0}
    assert (both.natural, both.mean, both.union, both.flags) == (1.0, 0.5, 0.0, {})


def test_flags_say_under_which_threat_they_are() -> None:
    class Rounded(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x * 4).round() / 4)

    both = _both(Rounded().eval())
    named = {flag: list(both.best_attack) for flag in both.flags}
    assert "zero-gradient" in both.flags
    assert both.flags == named
    assert "zero-gradient (L2 eps 0.2, L-infinity eps 0.05)" in both.to_markdown()
    only = {"L2 eps 0.2": evaluate_small(Rounded().eval()), "other": evaluate_small()}
    assert Combined("m", only).flags["zero-gradient"] == ["L2 eps 0.2"]


def test_a_randomised_model_counts_by_the_worst_of_all_points() -> None:
    class Noisy(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.05 * torch.randn(len(x), 2)

    both = _both(Noisy().eval(), attacks=[PGD(steps=3)], draws=20)
    l2, linf = both.best_attack.values()
    assert "randomised" in both.to_markdown()
    assert both.union == pytest.approx(min(l2, linf), abs=0.15)
    assert both.union < both.natural


def test_only_reports_of_one_model_on_the_same_samples_are_combined() -> None:
    def refused(*reports: Any) -> str:
        with pytest.raises(UserError) as error:
            combine(reports)
        assert "\n" not in str(error.value)
        return str(error.value)

    l2, linf = evaluate_small(), evaluate_small(norm="linf", eps=0.05)
    with pytest.raises(UserError, match="give a list of two reports or more"):
        combine(l2)  # type: ignore[arg-type]
    assert refused() == refused(l2) == refused(l2, "linf")
    assert refused(l2).startswith("give a list of two reports or more")
    assert refused(l2, l2).startswith("two reports are under L2 eps 0.2")
    for changed in (
        {"x": X[:-1], "y": Y[:-1]}, {"x": X + 0.01}, {"y": 1 - Y}, {"index": np.arange(N) + 1},
    ):  # fmt: skip
        other = evaluate_small(norm="linf", eps=0.05, **changed)
        assert refused(l2, other).startswith("the reports are of different samples")
        assert combine([l2, linf]).natural == 1.0
    wrong = Linear()
    wrong.bias.data[0] = -9.0
    for other in (
        evaluate_small(wrong.eval(), norm="linf", eps=0.05),
        evaluate_small(norm="linf", eps=0.05, name="other"),
    ):
        assert refused(l2, other).startswith("the reports are of different models")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_samples_are_told_apart_in_any_dtype(dtype: torch.dtype) -> None:
    assert _both(x=X.to(dtype)).natural == 1.0
