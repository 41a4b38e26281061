"""Rank stability, on verdicts made by hand, and on digits."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from numpy.typing import NDArray

from attacks import ThreatModel
from benchmark.errors import UserError
from benchmark.judge.records import Block, MemoryCell
from benchmark.report.report import Report
from benchmark.run.run_folder import read_run
from benchmark.studies import ranks as module
from benchmark.studies.ranks import ranks
from benchmark.studies.sweep.sweep_spec import make_sweep
from tests.benchmark.conftest import Cli, assert_written, refused

IMAGES = 200
HERE = Path("here")
Shares = dict[str, float]


def cell(broken: NDArray[np.bool_]) -> MemoryCell:
    made, n = MemoryCell(), len(broken)
    nothing = np.zeros(n, dtype=np.int64)
    distance = np.where(broken, 0.1, np.nan)
    points = np.zeros((broken.sum(), 1), dtype=np.float32)
    made.add(
        Block(
            np.arange(n), nothing, nothing, broken, distance, nothing, nothing,
            np.zeros(n, dtype=bool), np.zeros(n), points,
        )
    )  # fmt: skip
    return made


def report(name: str, share: float, images: int = IMAGES, attack: bool = True) -> Report:
    """Of a defense that is robust on that share of the images, the first of them."""
    made = Report(name, ThreatModel("l2", 0.5), "table", images)
    made.add("natural", "natural", cell(np.zeros(images, dtype=bool)), None)
    if attack:
        made.add("pgd", "pgd", cell(np.arange(images) >= round(share * images)), None)
    return made


def given(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, list[Report]], axis: str = "variant"
) -> None:
    """Let these be the reports of a study, by the one label of its points."""
    values = {"eps": 0.5, "defenses": ["vanilla"], "over": {axis: list(found)}}
    study = make_sweep(values), {(label,): reports for label, reports in found.items()}
    monkeypatch.setattr(module, "load_sweep", lambda folder: study)


def measure(monkeypatch: pytest.MonkeyPatch, **variants: Shares) -> pd.DataFrame:
    """The records for variants, each with the robust share of each defense."""
    found = {
        variant: [report(name, share) for name, share in shares.items()]
        for variant, shares in variants.items()
    }
    given(monkeypatch, found)
    return ranks(HERE).records


def tau(records: pd.DataFrame, variant: str, measure: str = "tau") -> pd.Series:
    (row,) = records[(records["variant"] == variant) & (records["measure"] == measure)].iloc
    return row


def chance(records: pd.DataFrame) -> pd.Series:
    return tau(records, "original", "tau between resamples")


def ranked(records: pd.DataFrame, variant: str) -> dict[str, int]:
    own = records[(records["variant"] == variant) & (records["measure"] == "rank")]
    return dict(zip(own["defense"], own["value"], strict=True))


APART = {"a": 0.9, "b": 0.6, "c": 0.3}


def test_tau_says_how_far_orders_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    records = measure(
        monkeypatch,
        original=APART,
        same={"a": 0.5, "b": 0.3, "c": 0.1},
        reversed={"a": 0.1, "b": 0.3, "c": 0.5},
        swapped={"a": 0.6, "b": 0.9, "c": 0.3},
    )
    assert tau(records, "same")["value"] == 1
    assert tau(records, "reversed")["value"] == -1
    # Two of three pairs agree.
    assert tau(records, "swapped")["value"] == pytest.approx(1 / 3)
    assert tau(records, "all variants")["value"] == pytest.approx(1 / 9)
    # These are far apart: resampling changes no order.
    rows = [tau(records, one) for one in ("same", "reversed", "swapped", "all variants")]
    for row in (*rows, chance(records)):
        assert row["low"] == pytest.approx(row["value"]) == row["high"]
    assert chance(records)["value"] == 1
    assert ranked(records, "original") == {"a": 1, "b": 2, "c": 3}
    assert ranked(records, "swapped") == {"a": 2, "b": 1, "c": 3}


def test_ranks_that_are_level_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    four = {"a": 0.9, "b": 0.5, "c": 0.5, "d": 0.1}
    records = measure(
        monkeypatch, original=four, level=dict.fromkeys(four, 0.5), strict=four | {"b": 0.6}
    )
    assert ranked(records, "original") == {"a": 1, "b": 2, "c": 2, "d": 4}
    assert ranked(records, "level") == {"a": 1, "b": 1, "c": 1, "d": 1}
    # tau-b: 5 pairs agree, of 5 that differ in one order and 6 in the other.
    assert tau(records, "strict")["value"] == pytest.approx(5 / (5 * 6) ** 0.5)
    # No order says nothing of another.
    assert tau(records, "level")[["value", "low", "high"]].isna().all()
    assert tau(records, "all variants")["value"] == tau(records, "strict")["value"]


def test_what_chance_leaves_of_the_order_is_known_though_some_resamples_are_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    close = {"a": 0.5, "b": 0.505}
    records = measure(monkeypatch, original=close, same=close)
    left = chance(records)
    assert left["low"] <= left["value"] <= left["high"] == 1
    assert records["variant"].tolist()[-1] == "original"


def test_intervals_hold_the_value_and_are_those_of_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    close = {"a": 0.52, "b": 0.5, "c": 0.3}
    records = measure(monkeypatch, original=close, other=close | {"b": 0.54})
    inside = (records["low"] <= records["value"]) & (records["value"] <= records["high"])
    assert inside.all()
    share = records[records["measure"] == "best-attack"].iloc[0]
    assert share["value"] == pytest.approx(0.52)
    width = 2 * 1.96 * (0.52 * 0.48 / IMAGES) ** 0.5
    assert share["high"] - share["low"] == pytest.approx(width, rel=0.15)
    # Images are drawn together, so that nested verdicts keep their order though shares overlap.
    assert share["low"] < 0.5
    first = records[(records["measure"] == "rank") & (records["variant"] == "original")].iloc[0]
    assert (first["value"], first["low"]) == (1, 1)
    last = records[(records["measure"] == "rank") & (records["variant"] == "original")].iloc[2]
    assert (last["value"], last["low"], last["high"]) == (3, 3, 3)


def test_twice_is_the_same_and_the_original_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {"other": APART | {"b": 0.29}, "original": APART}
    one, two = (measure(monkeypatch, **variants) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    assert one["variant"].iloc[0] == "original"
    assert tau(one, "other")["value"] == pytest.approx(1 / 3)
    given(monkeypatch, {v: [report(*item) for item in variants[v].items()] for v in variants})
    study = ranks(HERE)
    assert study.table["variant"].tolist() == ["original", "other", "all variants"]
    assert study.table["a"].tolist() == ["1 (1): 90.0", "1 (1): 90.0", ""]
    assert "its mean over the other variants is 0.33" in study.caption


PAIR = [report("a", 0.9), report("b", 0.5)]
FEW = "ranks need two defenses and two variants at least"
OTHERS = "ranks need variants of the same images: these have other labels"


@pytest.mark.parametrize(
    ("found", "axis", "line"),
    [
        (
            {"1": PAIR, "2": PAIR},
            "epochs",
            "here is a study over epochs: ranks need one over variant alone",
        ),
        (
            {"edge": PAIR, "binarize": PAIR},
            "variant",
            "the study of here lacks the variant 'original', to compare with",
        ),
        ({"original": PAIR[:1], "edge": PAIR[:1]}, "variant", FEW),
        ({"original": PAIR}, "variant", FEW),
        ({"original": PAIR, "edge": [PAIR[0], report("b", 0.5, IMAGES - 1)]}, "variant", OTHERS),
        (
            {"original": PAIR, "edge": [PAIR[0], report("b", 0.5, attack=False)]},
            "variant",
            "b has no rank by best-attack: it was not attacked",
        ),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, list[Report]], axis: str, line: str
) -> None:
    given(monkeypatch, found, axis)
    with pytest.raises(UserError) as error:
        ranks(HERE)
    assert str(error.value) == line


def test_folders_without_a_study_are_refused(cli: Cli, tmp_path: Path) -> None:
    line = f"{tmp_path} holds no finished study: name a folder that `study sweep` filled"
    refused(cli("study", "ranks", tmp_path), line)


def test_ranks_on_digits(tmp_path: Path, cli: Cli) -> None:
    spec, study = tmp_path / "digits.yaml", tmp_path / "study"
    values: dict[str, Any] = {
        "about": "three defenses on three variants of digits",
        "over": {"variant": ["original", "binarize", "scale=0.5"]},
        "samples": 100,
        "eps": 0.6,
        "defenses": [
            {"label": "untrained", "name": "vanilla", "epochs": 0},
            {"label": "vanilla", "name": "vanilla", "epochs": 3},
            {"label": "pgd-at", "name": "pgd-at", "epochs": 3, "steps": 2},
        ],
        "attacks": ["pgd/steps=10"],
    }
    spec.write_text(yaml.safe_dump(values))
    assert cli("study", "sweep", spec, "--out", study, "--quiet").status == 0
    found = assert_written(study, "ranks", cli("study", "ranks", study)).fillna({"defense": ""})
    variants = values["over"]["variant"]
    keys = ["variant", "defense", "measure"]
    assert list(found.columns) == [*keys, "value", "low", "high"]
    assert not found.duplicated(keys).any()
    shares = found[found["measure"] == "best-attack"].set_index(["variant", "defense"])["value"]
    for variant in variants:
        _, _, reports = read_run(study / "points" / f"variant={variant}")
        for one in reports:
            assert shares[variant, one.name] == pytest.approx(one.best_attack)
        order = ranked(found, variant)
        assert order == {
            one: 1 + sum(shares[variant, other] > shares[variant, one] for other in order)
            for one in order
        }
    taus = [tau(found, variant)["value"] for variant in variants[1:]]
    assert tau(found, "all variants")["value"] == pytest.approx(float(np.mean(taus)))
    lines = (study / "ranks.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:6]] == [*variants, "all variants"]
