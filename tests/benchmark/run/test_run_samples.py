"""The samples of a run: chosen as asked, named in its table, the same wherever they are read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import Tensor

from attacks import PGD, Problem
from benchmark.data.sets import load_dataset
from benchmark.judge.evaluator import Samples
from benchmark.models.trained import load_saved
from benchmark.run.run_folder import read_run
from benchmark.run.run_samples import choice_of, choose_of, data_again, identify_samples
from benchmark.run.run_samples import samples_of as chosen
from benchmark.spec.registry import load_plugin
from benchmark.spec.run_spec import RunSpec, make_spec
from benchmark.studies.coherence import of_members
from tests.benchmark.conftest import Cli, refused

# The digits, sorted by class.
PLUGIN = """
from dataclasses import replace

from benchmark.data.dataset import Split
from benchmark.data.sets import digits


def mine(root):
    ten = digits(root)

    def load(part):
        split = ten.split(part)
        rows = split.y.argsort(stable=True)
        return Split(split.x[rows], split.y[rows])

    return replace(ten, name="mine", load=load)


DATASETS = {"mine": mine}
"""
ATTACK = "pgd/steps=3"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "mine.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for several runs, which train one model together."""
    return tmp_path_factory.mktemp("runs")


def _words(plugin: Path, folder: Path, *words: object) -> list[object]:
    return [
        *("run", "--plugin", plugin, "--data", "mine", "--eps", 0.5, "--quiet", "--block", 16),
        *("--defense", "vanilla/epochs=4", "--attack", ATTACK, "--out", folder, *words),
    ]


def _spec(data: str, **values: Any) -> RunSpec:
    return make_spec(
        {"data": data, "eps": 0.5, "defenses": ["vanilla"], "attacks": ["pgd"]} | values
    )


def _table(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "table.json").read_text())
    return table


def _again(folder: Path) -> Samples:
    spec, manifest, _ = read_run(folder)
    return data_again(folder, spec, manifest, None)[1]


def _records(folder: Path) -> pd.DataFrame:
    """What became of each sample, by its number in the data set."""
    (report,) = read_run(folder)[2]
    frame = report.frames[ATTACK]
    number = _again(folder).number
    return frame.assign(number=number[frame["index"]]).set_index("number").drop(columns="index")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of the samples that PGD is asked to attack."""
    numbers: list[int] = []
    work = PGD.__call__

    def attacked(self: PGD, problem: Problem) -> Tensor:
        numbers.extend(problem.index.tolist())
        return work(self, problem)

    monkeypatch.setattr(PGD, "__call__", attacked)
    return numbers


def test_a_choice_that_lacks_classes_says_so(plugin: Path, home: Path, cli: Cli) -> None:
    ended = cli(*_words(plugin, home, "--samples", 20, "--choose", "first"))
    assert ended.status == 0, ended.err
    caption, (row,) = _table(home)["caption"], _table(home)["rows"]
    assert caption.startswith("Accuracy in % over the first 20 of 355 mine test images, L2 eps 0.5")
    assert "No image is of the classes 1, 2, 3, 4, 5, 6, 7, 8, 9. " in caption
    assert "missing-classes" in row["flags"]
    for command in ("report", "verify"):
        wide = cli(command, home, "--wide").out
        assert caption in wide
        assert "- vanilla/epochs=4: missing-classes: " in wide
    told = " ".join(ended.out.split())
    assert "No image is of the classes 1, 2, 3, 4, 5, 6, 7, 8, 9. " in told
    assert "- missing-classes (vanilla/epochs=4): " in told


def test_of_a_users_own_data_a_choice_is_stratified(plugin: Path, home: Path, cli: Cli) -> None:
    ended = cli(*_words(plugin, home, "--samples", 20))
    assert ended.status == 0, ended.err
    caption, (row,) = _table(home)["caption"], _table(home)["rows"]
    said = "Accuracy in % over 20 of 355 mine test images (stratified by class, seed 0), L2 eps 0.5"
    assert caption.startswith(said)
    assert "No image" not in caption
    assert "missing-classes" not in row["flags"]
    assert json.loads((home / "run.json").read_text())["choice"]["choose"] == "stratified"
    assert sorted(np.bincount(_again(home).y)) == [2] * 10
    # The same where it is asked for, and where the folder is read again.
    before = _table(home)["rows"]
    assert cli(*_words(plugin, home, "--samples", 20, "--choose", "stratified")).status == 0
    assert cli("report", home).status == 0
    assert _table(home)["rows"] == before
    assert cli("verify", home).status == 0
    assert cli("study", "confidence", home, "--bins", 2).out.count("(stratified by class") == 1


def test_a_sample_has_one_outcome_in_every_choice(plugin: Path, home: Path, cli: Cli) -> None:
    assert cli(*_words(plugin, home)).status == 0
    assert _table(home)["caption"].startswith("Accuracy in % over all 355 mine test images, ")
    whole = _records(home)
    for choose in ("first", "random", "stratified"):
        assert cli(*_words(plugin, home, "--samples", 50, "--choose", choose)).status == 0
        assert cli("verify", home).status == 0
        records = _records(home)
        of_whole = whole.loc[records.index]
        for name in ("label", "predicted", "broken", "forwards"):
            assert (records[name] == of_whole[name]).all(), (choose, name)
        np.testing.assert_allclose(records["distance"], of_whole["distance"], rtol=1e-4)


def test_a_larger_choice_attacks_only_what_is_new(
    plugin: Path, home: Path, cli: Cli, asked: list[int]
) -> None:
    seen: set[int] = set()
    for count in (70, 90):
        assert cli(*_words(plugin, home, "--samples", count, "--choose", "random")).status == 0
        number = set(_again(home).number.tolist())
        assert seen < number
        assert len(number) == count
        assert set(asked) <= number - seen
        seen = number
        asked.clear()
    # A smaller one has all that it needs.
    assert cli(*_words(plugin, home, "--samples", 30, "--choose", "random")).status == 0
    assert asked == []


def test_the_seed_names_the_choice(plugin: Path) -> None:
    load_plugin(plugin)
    data = load_dataset("mine")
    numbers = [
        chosen(data, _spec("mine", samples=40, choose="random", seed=seed)).number.tolist()
        for seed in (0, 1)
    ]
    assert len({*numbers[0]}) == len({*numbers[1]}) == 40
    assert numbers[0] != numbers[1]


def test_choices_have_keys_of_their_own_and_the_first_the_one_that_they_had(plugin: Path) -> None:
    load_plugin(plugin)
    for name in ("digits", "digits/pair=4-9", "mine"):
        data = load_dataset(name)
        plain = {"name": data.name, "sha256": data.fingerprint("test")}
        assert identify_samples(data, _spec(name, samples=20, choose="first")) == plain
        assert identify_samples(data, _spec(name)) == plain
        # Of all samples, there is nothing to choose.
        every = len(data.test.y)
        assert identify_samples(data, _spec(name, samples=every, choose="random")) == plain
        drawn = [
            identify_samples(data, _spec(name, samples=20, choose=choose, seed=seed))
            for choose in ("random", "stratified")
            for seed in (0, 1)
        ]
        assert all(drawn.count(identity) == 1 for identity in drawn)
        assert plain not in drawn
        # How many are chosen is not in the key.
        more = identify_samples(data, _spec(name, samples=30, choose="random"))
        assert more == drawn[0]
    assert choose_of(_spec("digits/pair=4-9")) == "first"
    assert choose_of(_spec("mine/pair=4-9")) == "stratified"
    assert choice_of(load_dataset("digits"), _spec("digits", samples=40)).missing == []


def test_a_run_from_before_there_was_a_choice_took_the_first(
    plugin: Path, tmp_path: Path, cli: Cli
) -> None:
    assert cli(*_words(plugin, tmp_path, "--samples", 20, "--choose", "first")).status == 0
    manifest = json.loads((tmp_path / "run.json").read_text())
    del manifest["choice"], manifest["spec"]["choose"]
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    assert _again(tmp_path).number.tolist() == list(range(20))
    ended = cli("verify", tmp_path)
    assert (ended.status, ended.err) == (0, "")


def test_a_choice_that_was_changed_is_noticed(plugin: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli(*_words(plugin, tmp_path, "--samples", 20, "--choose", "first")).status == 0
    written = (tmp_path / "run.json").read_text()
    manifest = json.loads(written)
    manifest["choice"]["missing"] = []
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    line = f"{tmp_path / 'run.json'} was changed: its choice is not its samples'"
    refused(cli("verify", tmp_path), line)
    (tmp_path / "run.json").write_text(written.replace('"choose": "first"', '"choose": "random"'))
    line = f"mine is not the data that {tmp_path} was measured on"
    refused(cli("verify", tmp_path), line)


def test_studies_look_at_the_images_of_the_run(plugin: Path, tmp_path: Path, cli: Cli) -> None:
    words = ("--plugin", plugin, "--data", "mine", "--samples", 20, "--eps", 0.5, "--quiet")
    model = ("--defense", "ensemble/epochs=0", "--attack", "pgd/steps=1")
    assert cli("run", *words, *model, "--out", tmp_path).status == 0
    assert cli("study", "coherence", tmp_path).status == 0
    found = pd.read_csv(tmp_path / "coherence.csv")["coherence"]
    saved = load_saved(tmp_path / read_run(tmp_path)[1]["rows"][0]["model"]).model
    split, number = load_dataset("mine").test, _again(tmp_path).number
    assert number.max() > 300
    wanted = of_members(saved.members, split.x[number], split.y[number])  # type: ignore[arg-type]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
