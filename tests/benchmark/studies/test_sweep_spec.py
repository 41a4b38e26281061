"""What studies as specs may ask for, how they are refused, and those that come with the project."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from benchmark.data.sets import load_dataset
from benchmark.spec.roster import recipe_of
from benchmark.spec.run_spec import RunSpec
from benchmark.studies.sweep.sweep_runs import check_point
from benchmark.studies.sweep.sweep_shown import caption, table
from benchmark.studies.sweep.sweep_spec import SweepSpec, make_sweep, read_sweep, ready_made
from tests.benchmark.conftest import Cli, refused

LEAST: dict[str, Any] = {"eps": 0.1, "defenses": ["vanilla"], "over": {"epochs": [1]}}


def grid(**changes: Any) -> dict[tuple[str, ...], RunSpec]:
    return make_sweep(LEAST | changes).points()


def imagined(spec: SweepSpec) -> pd.DataFrame:
    """Records of each point, defense and setting."""
    again = [one for one in spec.measures if one in ("train", "predictions", "unbounded")]
    others = [one for one in spec.measures if one not in again]
    rows = [
        dict(zip(spec.grid, at, strict=True))
        | {"defense": defense.label, "setting": setting, "measure": measure, "value": 0.5}
        | {"low": math.nan if measure in others else 0.4, "high": 0.6, "images": 9}
        for at, one in spec.points().items()
        for defense in one.defenses
        for setting in ("test", *again)
        for measure in ("natural", "best-attack", *others)
    ]
    return pd.DataFrame(rows)


def test_axes_multiply_in_order() -> None:
    points = grid(over={"eps": ["8/255", 0.5], "seed": [3, 1], "epochs": [2]})
    expected = [("8/255", "3", "2"), ("8/255", "1", "2"), ("0.5", "3", "2"), ("0.5", "1", "2")]
    assert list(points) == expected
    assert [(one.eps, one.seed) for one in points.values()] == [
        (eps, seed) for eps in (8 / 255, 0.5) for seed in (3, 1)
    ]


def test_labels_name_several_settings() -> None:
    points = grid(over={"size": {"none": {}, 7: {"variant": "train=7", "epochs": 3, "samples": 5}}})
    assert list(points) == [("none",), ("7",)]
    plain, small = points.values()
    assert (plain.data, plain.samples, plain.defenses[0].options) == ("digits", None, {})
    assert (small.data, small.samples, small.defenses[0].options) == (
        "digits/train=7", 5, {"epochs": 3},
    )  # fmt: skip


def test_variants_compose_with_each_other_and_with_those_of_the_base() -> None:
    over = {"size": {"all": {}, "few": {"variant": "train=9"}}, "variant": ["original", "binarize"]}
    names = [one.data for one in grid(data="digits/pair=3-8", over=over).values()]
    base = "digits/pair=3-8"
    assert names == [base, f"{base}/binarize", f"{base}/train=9", f"{base}/train=9/binarize"]
    assert [load_dataset(name).name for name in names] == names


def test_options_reach_every_defense_and_labels_stay() -> None:
    defenses = ["vanilla/batch=8", {"label": "mine", "name": "pgd-at"}]
    points = grid(defenses=defenses, over={"epochs": [1, 2]})
    for epochs, one in zip((1, 2), points.values(), strict=True):
        assert [defense.label for defense in one.defenses] == ["vanilla/batch=8", "mine"]
        assert [recipe_of(defense).epochs for defense in one.defenses] == [epochs, epochs]
        assert recipe_of(one.defenses[0]).batch == 8


def test_an_axis_of_whole_and_broken_numbers_finds_what_is_reported() -> None:
    rows = [{"widen": n, "defense": "vanilla", "natural": 10 * n} for n in (0.25, 1, 2)]
    spec = make_sweep(
        LEAST | {"over": {"widen": [0.25, 1, 2]}, "reported": {"source": "a table", "rows": rows}}
    )
    shown = table(spec, imagined(spec))
    assert shown["natural (reported)"].astype(float).tolist() == [2.5, 10, 20]


def test_seeds_are_the_last_axis_of_runs_and_not_of_the_table() -> None:
    spec = make_sweep(LEAST | {"over": {"epochs": [1, 2]}, "seeds": [5, 0]})
    assert list(spec.points()) == [("1", "5"), ("1", "0"), ("2", "5"), ("2", "0")]
    assert [one.seed for one in spec.points().values()] == [5, 0, 5, 0]
    assert make_sweep(spec.flat()) == spec
    shown = table(spec, imagined(spec))
    assert list(shown) == ["epochs", "defense", "natural", "best-attack"]
    assert shown.to_numpy().tolist() == [
        [epochs, "vanilla", "50.0 ± 0.0", "50.0 ± 0.0"] for epochs in "12"
    ]
    assert "seeds" not in make_sweep(LEAST).flat()


def test_numbers_over_seeds_are_their_mean_and_standard_deviation() -> None:
    spec = make_sweep(LEAST | {"seeds": [0, 1, 2], "measures": ["gap", "log-volume"]})
    records = imagined(spec)
    place = {name: records["measure"] == name for name in ("natural", "gap", "log-volume")}
    records.loc[place["natural"], "value"] = [0.5, 0.25, 1.0]
    records.loc[place["gap"], "value"] = [2.0, 4.0, 6.0]
    records.loc[place["log-volume"], "defense"] = ""
    (line,) = table(spec, records).to_dict("records")
    assert line["natural"] == "58.3 ± 38.2"  # the squares of 1/12, 4/12 and 5/12, by two
    assert line["gap"] == "4 ± 2"
    assert line["log-volume"] == "0.5"
    said = "mean ± sample standard deviation (n - 1 in its denominator) over n = 3 seeds (0, 1, 2)"
    assert said in caption(spec, records, [])
    assert "not trained here" not in caption(spec, records, [])


def test_what_failed_with_one_seed_has_no_mean() -> None:
    spec = make_sweep(LEAST | {"seeds": [0, 1]})
    whole = imagined(spec)
    attacked = whole[whole["measure"] == "best-attack"].assign(measure="pgd")
    failed = attacked.assign(value=[0.5, math.nan], low=[0.4, math.nan], high=[0.6, math.nan])
    cw = attacked.assign(measure="cw")
    (line,) = table(spec, pd.concat([whole, failed, cw])).to_dict("records")
    assert (line["natural"], line["pgd"]) == ("50.0 ± 0.0", "error")
    assert (line["cw"], line["best-attack"]) == ("50.0 ± 0.0", "error")
    # One that failed with each seed leaves best-attack over the same attacks.
    failed = attacked.assign(value=math.nan, low=math.nan, high=math.nan)
    (line,) = table(spec, pd.concat([whole, failed, cw])).to_dict("records")
    assert line["best-attack"] == "50.0 ± 0.0"


def test_the_caption_counts_the_images_of_accuracies() -> None:
    spec = make_sweep(LEAST | {"measures": ["jacobian"]})
    records = imagined(spec).assign(images=5000)
    fewer = records.assign(measure="jacobian", images=1000, low=float("nan"))
    text = caption(spec, pd.concat([records, fewer]), [])
    assert "over 5000 test images" in text


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"over": {"epochs": [1], "widden": [1]}},
            "at epochs=1,widden=1: defense 'vanilla' has no option 'widden': did you mean "
            "'widen'?",
        ),
        (
            {"over": {"variant": ["original", "binarise"]}},
            "at variant=binarise: digits/binarise: unknown variant 'binarise': did you mean "
            "'binarize'?",
        ),
        (
            {"over": {"variant": ["original", "train=0"]}},
            "at variant=train=0: digits: train needs an integer of at least 1, as in train=1000, "
            "not '0'",
        ),
        (
            {"over": {"eps": [0.1, 0]}},
            "the spec is not valid: eps: Input should be greater than 0",
        ),
        (
            {"over": {"norm": ["l2", "l0"]}},
            "the spec is not valid: norm: Input should be 'l2', 'linf' or 'l1'",
        ),
        (
            {"measures": ["gaps"]},
            "the study is not valid: measures.0: Input should be 'train', 'predictions', "
            "'unbounded', 'gap', 'jacobian', 'inter-class-distance' or 'log-volume'",
        ),
        (
            {"over": {"norm": ["linf", "l2"]}, "measures": ["log-volume"]},
            "at norm=l2: log-volume is of linf alone, not of l2: leave it out",
        ),
        (
            {"over": {"setting": [1]}},
            "the study is not valid: over: 'setting' is a column of the table: name the axis "
            "otherwise",
        ),
        (
            {"over": {}},
            "the study is not valid: over: axes are needed, as in over: {variant: [original, "
            "binarize]}",
        ),
        (
            {"over": {"epochs": [1, 2]}, "defenses": ["vanilla/epochs=3"]},
            "epochs is of an axis and of vanilla/epochs=3: say it once",
        ),
        (
            {"over": {"variant": ["scale=0.5", "scale=0.5"]}},
            "the study is not valid: over: the axis 'variant' has scale=0.5 twice",
        ),
        (
            {"labels": "predictions"},
            "the study is not valid: run: 'labels' is not for studies: use measures",
        ),
        (
            {"threats": ["l2:1", "linf:0.1"]},
            "the study is not valid: run: 'threats' is not for studies: give norm and eps, or vary "
            "them",
        ),
        (
            {"seeds": [0, 1], "over": {"size": {"few": {"seed": 1}}}},
            "the study is not valid: give either seeds or seed",
        ),
        ({"seeds": [0, 1], "seed": 2}, "the study is not valid: give either seeds or seed"),
        (
            {"seeds": "4"},
            "the study is not valid: seeds: name two at least, such as 0,1,2, or give seed",
        ),
        (
            {"over": {"epochs": [1], "variant": []}},
            "the study is not valid: over: the axis 'variant' needs a list of values, or a mapping "
            "from labels to settings, as in {half: {epochs: 5}, all: {epochs: 10}}",
        ),
        ({"defenses": 3}, "the spec is not valid: defenses: Input should be a valid list"),
        ({"defenses": []}, "the spec is not valid: defenses: List should have at least 1 item after"
         " validation, not 0"),
        ({"attacks": ["pdg"]}, "at epochs=1: unknown attack 'pdg': did you mean 'pgd'?"),
        (
            {"sampels": 3},
            "the spec is not valid: unknown setting 'sampels': did you mean 'samples'?",
        ),
        (
            {"reported": {"source": "a table", "rows": [{"defense": "vanilla", "natural": 1}]}},
            "the study is not valid: a row of reported lacks 'epochs': {'defense': 'vanilla', "
            "'natural': 1}",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_at_any_point_is_told_before_any_work(
    tmp_path: Path, cli: Cli, changes: dict[str, Any], line: str
) -> None:
    spec, out = tmp_path / "mine.yaml", tmp_path / "study"
    spec.write_text(yaml.safe_dump(LEAST | changes))
    refused(cli("study", "sweep", spec, "--out", out, "--quiet"), line)
    assert not out.exists()


def test_studies_that_are_not_there_are_refused(cli: Cli, tmp_path: Path) -> None:
    line = "there is no file and no ready study 'mnist-rank': did you mean 'mnist-ranks'?"
    refused(cli("study", "sweep", "mnist-rank"), line)
    ready = ", ".join(ready_made())
    line = f"there is no file and no ready study 'something else': ready ones are {ready}"
    refused(cli("study", "sweep", "something else"), line)
    spec = tmp_path / "mine.yaml"
    spec.write_text(yaml.safe_dump(LEAST))
    refused(cli("study", "sweep", spec, "--reduced"), f"{spec} has no reduced size")
    spec.write_text("- 1\n")
    line = f"{spec} must hold a mapping of settings such as 'data: mnist'"
    refused(cli("study", "sweep", spec), line)


def test_ready_studies_are_listed(cli: Cli) -> None:
    ended = cli("list", "studies")
    assert ended.status == 0
    names = [line.split()[0] for line in ended.out.splitlines() if not line.startswith(" ")]
    assert names == list(ready_made())
    assert all(read_sweep(name, False).about for name in names)


@pytest.mark.parametrize(
    "reduced",
    [pytest.param(False, marks=pytest.mark.slow, id="full"), pytest.param(True, id="reduced")],
)
@pytest.mark.parametrize("name", ready_made())
def test_every_ready_study_is_valid(name: str, reduced: bool, tmp_path: Path) -> None:
    """All its points can be carried out, and all that it says of a paper has its place."""
    spec = read_sweep(name, reduced)
    points = spec.points()
    for one in points.values():
        check_point(one, tmp_path)
        for component in one.defenses:
            recipe_of(component).trains_against(one.training_threat)
    assert "log-volume" not in spec.measures or {one.norm for one in points.values()} == {"linf"}
    shown = table(spec, imagined(spec))
    assert len(shown) == sum(len(one.defenses) for one in points.values())
    if reduced or not spec.reported:
        return
    told = [{k: v for k, v in row.items() if k not in spec.over} for row in spec.reported.rows]
    count = sum(len(row) - 1 for row in told)
    columns = [column for column in shown if column.endswith(" (reported)")]
    assert int((shown[columns] != "-").to_numpy().sum()) == count
    measured = {column.partition(" [")[0] for column in shown}
    assert {column.removesuffix(" (reported)") for column in columns} <= measured
