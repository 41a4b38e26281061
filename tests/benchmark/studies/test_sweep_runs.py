"""Studies as specs, carried out: what they measure, what they keep, and how they are shown."""

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor
from torch.autograd.functional import jacobian

from benchmark.data.sets import load_dataset
from benchmark.errors import UserError
from benchmark.models.trained import load_saved
from benchmark.run.run_folder import read_run
from benchmark.studies.sweep.sweep_runs import POINTS, load_sweep
from benchmark.studies.sweep.sweep_shown import draw
from benchmark.studies.sweep.sweep_spec import make_sweep, read_sweep
from tests.benchmark.conftest import Cli, assert_written, refused

LEAST: dict[str, Any] = {"eps": 0.1, "defenses": ["vanilla"], "over": {"epochs": [1]}}

# Two sizes of the training set, and how long to train on them; two variants of the images.
SIZES = {60: {"variant": "train=60", "epochs": 2}, 200: {"variant": "train=200", "epochs": 1}}
SAMPLES, EPS = 40, 0.05
STUDY: dict[str, Any] = {
    "about": "four points",
    "over": {"training images": SIZES, "variant": ["original", "binarize"]},
    "samples": SAMPLES,
    "norm": "linf",
    "eps": EPS,
    "defenses": [
        {"label": "standard training", "name": "vanilla"},
        {"label": "PGD training", "name": "pgd-at", "steps": 1},
    ],
    "attacks": ["pgd/steps=2"],
    "measures": [
        *("train", "predictions", "unbounded", "gap", "jacobian"),
        *("inter-class-distance", "log-volume"),
    ],
    "reported": {
        "source": "a table",
        "rows": [
            {
                "training images": 200, "variant": "binarize", "defense": "PGD training",
                "natural": 12.5, "best-attack, train": 99, "never measured": 1,
            },
            {
                "training images": 60, "variant": "original", "defense": "standard training",
                "natural": 50,
            },
        ],
    },
    "reduced": {"over": {"epochs": [0]}, "defenses": ["vanilla"], "attacks": [], "measures": [],
                "reported": None},
}  # fmt: skip
GRID = list(product(("60", "200"), ("original", "binarize")))
DEFENSES = ["standard training", "PGD training"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep") / "study"


@pytest.fixture
def study(whole: Path, cli: Cli) -> Path:
    """The study, carried out; its spec is beside it."""
    spec = whole.parent / "mine.yaml"
    if not (whole / "sweep.md").exists():
        spec.write_text(yaml.safe_dump(STUDY))
        ended = cli("study", "sweep", spec, "--out", whole, "--quiet")
        assert_written(whole, "sweep", ended)
    return whole


def records_of(study: Path) -> pd.DataFrame:
    records = pd.read_csv(study / "sweep.csv", dtype={"training images": str})
    return records.fillna({"defense": ""})


def lines_of(study: Path) -> list[dict[str, str]]:
    """The table, line by line."""
    head, _, *rows = (study / "sweep.md").read_text().split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (head, *rows)]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def homes(study: Path) -> dict[tuple[str, ...], Path]:
    spec, found = load_sweep(study)
    return {at: study / POINTS / spec.at(at) for at in found}


def test_the_spec_in_the_folder_is_the_study(study: Path) -> None:
    spec, found = load_sweep(study)
    assert list(found) == GRID
    assert spec.points() == read_sweep(str(study.parent / "mine.yaml"), False).points()
    assert [[report.name for report in reports] for reports in found.values()] == [DEFENSES] * 4


def test_what_is_reduced_replaces_its_setting_whole(study: Path) -> None:
    small = read_sweep(str(study.parent / "mine.yaml"), True)
    ((at, one),) = small.points().items()
    assert at == ("0",)
    assert (one.suite, one.attacks, one.samples, one.eps) == ("none", [], SAMPLES, EPS)


def test_each_point_and_defense_has_a_line(study: Path) -> None:
    lines = lines_of(study)
    assert [(line["training images"], line["variant"], line["defense"]) for line in lines] == [
        (*point, defense) for point in GRID for defense in DEFENSES
    ]
    # The only attack says what best-attack does.
    assert not any("pgd" in column for column in lines[0])
    records = records_of(study).set_index([*STUDY["over"], "defense", "setting", "measure"])
    for line in lines:
        at = (line["training images"], line["variant"], line["defense"])
        for setting in ("train", "predictions", "unbounded"):
            value = records.loc[(*at, setting, "best-attack"), "value"]
            assert line[f"best-attack, {setting}"] == f"{100 * value:.1f}"
        best = records.loc[(*at, "test", "best-attack")]
        shares = [f"{100 * best[column]:.1f}" for column in ("value", "low", "high")]
        assert line["best-attack [95% interval]"] == "{} [{}, {}]".format(*shares)
        assert line["gap"] == f"{records.loc[(*at, 'test', 'gap'), 'value']:.4g}"
        of_data = records.loc[(*at[:2], "", "test", "log-volume"), "value"]
        assert line["log-volume"] == f"{of_data:.4g}"


def test_reported_numbers_stand_beside_their_lines(study: Path) -> None:
    lines = {
        (line["training images"], line["variant"], line["defense"]): line
        for line in lines_of(study)
    }
    columns = [column for column in next(iter(lines.values())) if column.endswith("(reported)")]
    found = {
        (at, column): line[column]
        for at, line in lines.items()
        for column in columns
        if line[column] != "-"
    }
    trained = ("200", "binarize", "PGD training")
    expected = {
        (trained, "natural"): 12.5,
        (trained, "best-attack, train"): 99,
        (trained, "never measured"): 1,
        (("60", "original", "standard training"), "natural"): 50,
    }
    assert {key: float(value) for key, value in found.items()} == {
        (at, f"{column} (reported)"): value for (at, column), value in expected.items()
    }
    order = list(next(iter(lines.values())))
    assert order.index("natural (reported)") == order.index("natural") + 1
    assert "reported: a table." in (study / "sweep.md").read_text()


def test_records_have_one_row_per_number(study: Path) -> None:
    records = records_of(study)
    keys = [*STUDY["over"], "defense", "setting", "measure"]
    assert list(records.columns) == [*keys, "value", "images", "low", "high"]
    assert not records.duplicated(keys).any()
    assert records["value"].notna().all()
    assert records.groupby(list(STUDY["over"])).size().nunique() == 1
    assert set(records["images"]) == {SAMPLES}
    own = records[(records["variant"] == "original") & (records["training images"] == "60")]
    attacked = ["natural", "pgd/steps=2", "best-attack", "gap", "jacobian"]
    for defense in DEFENSES:
        of_defense = own[own["defense"] == defense].groupby("setting")["measure"].apply(list)
        assert sorted(of_defense["test"]) == sorted(of_defense["train"]) == sorted(attacked)
        assert of_defense["predictions"] == of_defense["unbounded"] == attacked[1:3]
    of_data = own.loc[own["defense"] == "", ["setting", "measure"]].to_numpy().tolist()
    names = ("inter-class-distance", "log-volume")
    assert of_data == [[setting, name] for setting in ("test", "train") for name in names]
    shares = records["measure"].isin(attacked[:3])
    assert records["low"].notna().equals(shares)
    assert records[shares].eval("0 <= low <= value <= high <= 1").all()


def test_accuracies_are_those_of_the_runs(study: Path, cli: Cli) -> None:
    records = records_of(study).set_index([*STUDY["over"], "defense", "setting", "measure"])
    places = {"test": ".", "train": "train", "predictions": "predictions", "unbounded": "unbounded"}
    for at, home in homes(study).items():
        for setting, place in places.items():
            spec, manifest, reports = read_run(home / place)
            assert (spec.split, spec.labels, spec.bounded) == (
                "train" if setting == "train" else "test",
                "predictions" if setting == "predictions" else "data",
                setting != "unbounded",
            )
            for report, row in zip(reports, manifest["rows"], strict=True):
                best = records.loc[(*at, report.name, setting, "best-attack"), "value"]
                assert best == report.best_attack
                # Models are those of the point, not trained again.
                assert (home / place / row["model"]).resolve().parent == home / "defenses"
    home = homes(study)["60", "binarize"]
    for place in places.values():
        assert cli("verify", home / place).status == 0


def test_resuming_measures_nothing_again(study: Path, cli: Cli, tmp_path: Path) -> None:
    copy = tmp_path / "study"
    shutil.copytree(study, copy)
    patterns = ("*.npz", "*.safetensors", "card.json")
    before = {path: path.stat().st_mtime_ns for one in patterns for path in copy.rglob(one)}
    records, text = (copy / "sweep.csv").read_bytes(), (copy / "sweep.md").read_text()
    ended = cli("study", "sweep", study.parent / "mine.yaml", "--out", copy, "--quiet")
    assert ended == (0, text + "\n", "")
    after = {path: path.stat().st_mtime_ns for one in patterns for path in copy.rglob(one)}
    assert after == before
    assert (copy / "sweep.csv").read_bytes() == records


def test_sizes_of_the_training_set_leave_the_test_images_alone(study: Path) -> None:
    digits = load_dataset("digits")
    for (size, variant), home in homes(study).items():
        spec, _, reports = read_run(home)
        dataset = load_dataset(spec.data)
        assert len(dataset.train.y) == int(size)
        assert torch.equal(dataset.test.y, digits.test.y)
        if variant == "original":
            assert torch.equal(dataset.test.x, digits.test.x)
            assert torch.equal(dataset.train.x, digits.train.x[: int(size)])
        assert {report.total for report in reports} == {SAMPLES}


def tenth(values: Tensor) -> Tensor:
    """The mean of the least 10%, rounded up."""
    return values.sort().values[: -(-len(values) // 10)].mean()


def test_measures_are_what_they_say(study: Path) -> None:
    records = records_of(study).set_index([*STUDY["over"], "defense", "setting", "measure"])
    for at, home in homes(study).items():
        spec, manifest, _ = read_run(home)
        dataset = load_dataset(spec.data)
        for setting in ("test", "train"):
            images = getattr(dataset, setting)
            x, y = images.x[:SAMPLES].double(), images.y[:SAMPLES]
            found = records["value"]
            for row in manifest["rows"]:
                model = load_saved(home / row["model"]).model.double().requires_grad_(False)
                top = model(x).topk(2).values
                own = (*at, row["defense"], setting)
                mean = float((top[:, 0] - top[:, 1]).mean())
                assert found[*own, "gap"] == pytest.approx(mean, rel=1e-4)
                if setting == "test":
                    each = [jacobian(model, one[None]).reshape(10, -1) for one in x[:SAMPLES]]
                    mean = float(torch.linalg.matrix_norm(torch.stack(each), 2).mean())
                    assert found[*own, "jacobian"] == pytest.approx(mean, rel=1e-4)
            distance = (x.flatten(1)[:, None] - x.flatten(1)).norm(dim=2)
            classes = [
                tenth(torch.stack([tenth(row[y != label]) for row in distance[y == label]]))
                for label in y.unique()
            ]
            apart = float(torch.stack(classes).mean())
            own = (*at, "", setting)
            assert found[*own, "inter-class-distance"] == pytest.approx(apart, rel=1e-5)
            sides = (x + EPS).clamp_max(1) - (x - EPS).clamp_min(0)
            volume = float(sides.log2().flatten(1).sum(1).mean())
            assert found[*own, "log-volume"] == pytest.approx(volume, rel=1e-4)


def test_without_attacks_accuracy_is_natural_alone(tmp_path: Path, cli: Cli) -> None:
    spec = tmp_path / "mine.yaml"
    values = {"samples": 20, "over": {"epochs": [0], "seed": [0, 1]}, "measures": ["train"]}
    spec.write_text(yaml.safe_dump(LEAST | values))
    ended = cli("study", "sweep", spec, "--out", tmp_path / "study", "--quiet", "--device", "cpu")
    found = assert_written(tmp_path / "study", "sweep", ended)
    assert found[["setting", "measure"]].to_numpy().tolist() == [
        ["test", "natural"], ["train", "natural"],
    ] * 2  # fmt: skip
    lines = lines_of(tmp_path / "study")
    assert list(lines[0]) == ["epochs", "seed", "defense", "natural", "natural, train"]
    assert "Accuracy in % over 20 test images of digits (the first), natural." in ended.out
    assert "best-attack" not in ended.out


def test_a_study_over_seeds_has_the_runs_of_a_study_of_each(tmp_path: Path, cli: Cli) -> None:
    values = LEAST | {"samples": 20, "attacks": ["pgd/steps=1"], "measures": ["train"]}
    values |= {"over": {"variant": ["original"]}, "defenses": ["vanilla/epochs=1"]}
    spec, found = tmp_path / "mine.yaml", {}
    for seeds in ({"seed": 0}, {"seed": 1}, {}):
        spec.write_text(yaml.safe_dump(values | seeds))
        out = tmp_path / "-".join(map(str, seeds.values()))
        more = ("--seeds", "0,1") if not seeds else ()
        ended = cli("study", "sweep", spec, "--out", out, "--quiet", *more)
        found[seeds.get("seed")] = assert_written(out, "sweep", ended)
    over = found[None]
    for seed in (0, 1):
        same = over[over["seed"] == seed].drop(columns="seed").reset_index(drop=True)
        assert same.equals(found[seed])
    (line,) = lines_of(tmp_path)
    natural = 100 * over[(over["measure"] == "natural") & (over["setting"] == "test")]["value"]
    assert line["natural"] == f"{natural.mean():.1f} ± {natural.std():.1f}"
    assert list(line) == ["variant", "defense", "natural", "best-attack", "natural, train",
                          "best-attack, train"]  # fmt: skip
    for home in homes(tmp_path).values():
        assert cli("verify", home).status == 0
    line_of = f"{tmp_path} is a study over variant, seed: ranks need one over variant alone"
    refused(cli("study", "ranks", tmp_path), line_of)


def test_bars_are_the_standard_deviation_over_seeds() -> None:
    spec = make_sweep(LEAST | {"over": {"epochs": [1, 2]}, "seeds": [0, 1]})
    records = pd.DataFrame(
        [
            {"epochs": at[0], "seed": at[1], "defense": "vanilla", "setting": "test"}
            | {"measure": measure, "value": value, "low": 0.0, "high": 1.0, "images": 9}
            for at, value in zip(spec.points(), (0.2, 0.4, 0.5, 0.5), strict=True)
            for measure in ("natural", "best-attack")
        ]
    )
    (plot,) = draw(spec, records).axes
    for container in plot.containers:
        line, _, (bars,) = container
        assert line.get_ydata() == pytest.approx([30, 50])
        ends = [segment[:, 1] for segment in bars.get_segments()]
        assert ends[0] == pytest.approx([30 - 200**0.5, 30 + 200**0.5])
        assert ends[1] == pytest.approx([50, 50])
    assert len(plot.containers) == 2


def test_the_caption_names_every_budget(tmp_path: Path, cli: Cli) -> None:
    spec = tmp_path / "mine.yaml"
    over = {"eps": [0.1, "8/255"], "samples": [10, 20]}
    values = {"over": over, "defenses": ["vanilla/epochs=0"], "attacks": ["pgd/steps=1"]}
    spec.write_text(yaml.safe_dump(LEAST | values))
    ended = cli("study", "sweep", spec, "--out", tmp_path / "study", "--quiet")
    assert_written(tmp_path / "study", "sweep", ended)
    said = "natural and within L2 eps 0.1 or L2 eps 8/255."
    assert f"over 10 to 20 test images of digits (the first), {said}" in ended.out


def test_another_study_in_the_folder_takes_it_over(study: Path, cli: Cli, tmp_path: Path) -> None:
    copy, spec = tmp_path / "study", tmp_path / "other.yaml"
    shutil.copytree(study, copy)
    # Refused before any work: what was found stays.
    spec.write_text(yaml.safe_dump(LEAST | {"samples": 10_000}))
    line = "digits has 355 test images, not 10000: lower samples"
    refused(cli("study", "sweep", spec, "--out", copy, "--quiet"), line)
    assert records_of(copy).equals(records_of(study))
    # It fails at work: what is in the folder is no finished study then.
    lost = {"over": {"learning_rate": [1e30]}, "defenses": ["vanilla/epochs=1"]}
    spec.write_text(yaml.safe_dump(LEAST | lost))
    assert cli("study", "sweep", spec, "--out", copy, "--quiet").status == 1
    assert not list(copy.glob("sweep.*"))
    with pytest.raises(UserError, match="holds no finished study"):
        load_sweep(copy)
