"""Studies against their runs' own records, and against conditions counted by hand."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from benchmark.data.sets import load_dataset
from benchmark.models.trained import load_saved
from benchmark.run.run_folder import read_run
from defenses import BeliefEnsemble
from tests.benchmark.conftest import Cli, assert_written, refused

DATA, OFFSET = "digits/pair=3-8", 0.3
FRACTAL, NBR = "fractal/epochs=6/batch=64/levels=2+3+2", "nbr/epochs=3/batch=64"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies") / "run"


@pytest.fixture
def run(whole: Path, cli: Cli) -> Path:
    """One run of two rows with certificates and one without."""
    if not whole.exists():
        words = ["--data", DATA, "--eps", 0.5, "--attack", "pgd/steps=10", "--quiet"]
        for defense in (FRACTAL, NBR, "vanilla/epochs=2"):
            words += ["--defense", defense]
        assert cli("run", *words, "--out", whole).status == 0
    return whole


def model_of(run: Path, name: str) -> Path:
    (folder,) = (run / "defenses").glob(f"{name}-*")
    return folder


def test_predictions_are_those_of_the_records(run: Path, cli: Cli) -> None:
    found = assert_written(run, "lipschitz", cli("study", "lipschitz", run))
    assert found["defense"].unique().tolist() == [FRACTAL, NBR]
    _, _, reports = read_run(run)
    for report in reports[:2]:
        rows = found[found["defense"] == report.name].set_index("bound")
        assert rows.index.tolist() == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
        records = report.records
        natural = records[records["attack"] == "natural"].set_index("index")
        broken = records.groupby("index")["broken"].any()
        for bound, row in zip(rows.index.tolist(), rows.to_dict("records"), strict=True):
            predicted = ~natural["broken"] & (natural["radius"] / bound >= 0.5 - 1e-12)
            assert row["prediction"] == pytest.approx(predicted.mean())
            assert row["correctness"] == pytest.approx((~broken[predicted]).mean())
        assert rows["prediction"].is_monotonic_increasing
        # What is proven is right, and is what the table says.
        assert rows["prediction"].iloc[0] == report.certified
        assert rows["correctness"].iloc[0] == 1


def test_without_attacks_nothing_is_known_of_correctness(
    run: Path, cli: Cli, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    manifest = json.loads((run / "run.json").read_text())
    for row in manifest["rows"]:
        row["cells"] = {k: v for k, v in row["cells"].items() if not k.startswith("pgd")}
    (tmp_path / "run" / "run.json").write_text(json.dumps(manifest))
    ended = cli("study", "lipschitz", tmp_path / "run")
    found = assert_written(tmp_path / "run", "lipschitz", ended)
    assert found["correctness"].isna().all()
    assert "no attack broke (none yet)" in ended.out


def test_runs_that_hold_no_certificate_are_refused(run: Path, cli: Cli, tmp_path: Path) -> None:
    line = f"{tmp_path} holds no run with results: name the folder of a run"
    refused(cli("study", "lipschitz", tmp_path), line)
    shutil.copytree(run, tmp_path / "run")
    manifest = json.loads((run / "run.json").read_text())
    manifest["rows"] = manifest["rows"][2:]
    (tmp_path / "run" / "run.json").write_text(json.dumps(manifest))
    line = f"no defense of {tmp_path / 'run'} offers a certificate: run it with one that does"
    refused(cli("study", "lipschitz", tmp_path / "run"), line)


@pytest.mark.parametrize(("split", "samples"), [("test", None), ("train", 200)])
@pytest.mark.parametrize("offset", [0.0, OFFSET])
def test_conditions_are_counted(
    run: Path, cli: Cli, split: str, samples: int | None, offset: float
) -> None:
    folder = model_of(run, "fractal")
    words = ["--split", split, *(["--samples", samples] if samples else []), "--offset", offset]
    found = assert_written(folder, "dont-care", cli("study", "dont-care", folder, *words))
    model, dataset = load_saved(folder).model, load_dataset(DATA)
    assert isinstance(model, BeliefEnsemble)
    images = dataset.train if split == "train" else dataset.test
    x, y = images.x[:samples], images.y[:samples]
    for side, label in ((0, "3"), (1, "8")):
        rows = found[found["label"] == label].set_index("condition")
        assert (rows["frame"] == "3 against 8").all()
        assert (rows["images"] == int((y == side).sum())).all()
        outputs = model.outputs(x[y == side]).detach()
        moved = outputs - (1 - 2 * side) * offset
        for column, points in (("correct", outputs), ("robust", moved)):
            right = (model.aggregate(points).argmax(1) == side).double().mean().item()
            assert rows[column].tolist() == [pytest.approx(right)] * len(rows)
        # With two labels, robust is that the certificate reaches the offset.
        kept = (model.threshold(outputs) >= offset) & (model.aggregate(outputs).argmax(1) == side)
        assert rows["robust"].iloc[0] == pytest.approx(kept.double().mean().item(), abs=1e-9)
        # Each robust image is explained once, those without a condition as such.
        assert rows["explains"].sum() == pytest.approx(rows["robust"].iloc[0])
        sign = moved * (1 - 2 * side) > 0
        first, second, third = sign[:, :2], sign[:, 2:5], sign[:, 5:]
        if side == 0:
            holds = {
                "one of level 1": first.any(1),
                "one of level 3, all of level 2": third.any(1) & second.all(1),
            }
            exact = ["one of level 1, exact"]
            assert rows.loc[exact, "robust then"].fillna(1).tolist() == [1]
        else:
            holds = {
                "one of level 2, all of level 1": second.any(1) & first.all(1),
                "all of level 1, all of level 3": first.all(1) & third.all(1),
            }
            exact = []
        assert rows.index.tolist() == [*exact, *holds, "none"]
        for name, which in holds.items():
            assert rows.loc[name, "holds"] == pytest.approx(which.double().mean().item())
        none = ~torch.stack(list(holds.values())).any(0)
        assert rows.loc["none", "holds"] == pytest.approx(none.double().mean().item())


def test_models_without_a_structure_and_too_many_samples_are_refused(
    run: Path, cli: Cli, tmp_path: Path
) -> None:
    for name in ("nbr", "vanilla"):
        folder = model_of(run, name)
        line = f"{folder} holds no fractal structure: name the model of a fractal defense"
        refused(cli("study", "dont-care", folder), line)
    refused(cli("study", "dont-care", tmp_path), f"no saved model in {tmp_path}: train it first")
    line = f"{DATA} has 70 test images, not 71: lower samples"
    refused(cli("study", "dont-care", model_of(run, "fractal"), "--samples", 71), line)


@pytest.mark.parametrize(
    "words", [("--split", "both"), ("--offset", "-1"), ("--samples", "0"), ("--offset", "x")]
)
def test_flags_that_are_not_valid_get_one_line(run: Path, cli: Cli, words: tuple[str, str]) -> None:
    ended = cli("study", "dont-care", model_of(run, "fractal"), *words)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert words[0] in ended.err


@pytest.mark.parametrize(
    ("defense", "line"),
    [
        ("nbr/frames=4", "a frame is written as 4-9 or 1+7+9-3+5+8, not '4'"),
        ("nbr/frames=4-12", "frame 4-12: labels are the numbers from 0 to 9"),
        ("nbr/frames=4-9", "label 0 is in no frame, so nothing speaks against it"),
        ("fractal/levels=4+x", "levels are numbers as in 4+4+4, not '4+x'"),
        ("fractal/levels=4+0", "each level needs at least one subtask, not '4+0'"),
        ("fractal/replaced=9-4", "replaced (9,)-(4,) is none of the frames"),
        ("fractal/variant=9", "variant is from 0 to 7, every at least 1"),
        ("nbr/arch=lenet5", "arch is one of default, mlp, deep, conv, scaling one of"),
    ],
)
def test_frames_and_levels_that_are_none_get_one_line(
    defense: str, line: str, cli: Cli, tmp_path: Path
) -> None:
    words = ("--data", "digits", "--eps", 0.5, "--attack", "pgd", "--defense", defense)
    ended = cli("run", *words, "--out", tmp_path, "--quiet")
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert f"defense {defense!r}: {line}" in ended.err


def test_without_an_offset_linf_runs_get_one_line(cli: Cli, tmp_path: Path) -> None:
    words = ("--data", "digits", "--eps", 0.1, "--norm", "linf", "--attack", "pgd")
    ended = cli("run", *words, "--defense", "nbr", "--out", tmp_path, "--quiet")
    refused(ended, "defense 'nbr': give an offset: there is no L2 eps to take it from")


def test_training_that_diverges_ends_in_one_line(cli: Cli, tmp_path: Path) -> None:
    defense = "fractal/epochs=4/learning_rate=1e30/levels=2+2"
    words = ("--data", DATA, "--eps", 0.5, "--attack", "pgd", "--defense", defense)
    ended = cli("run", *words, "--out", tmp_path, "--quiet")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert ended.err.endswith(": lower learning_rate\n")
