"""Defenses that are made from other rows of a run, or from saved models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from benchmark.data.dataset import Dataset, Split
from benchmark.data.sets import digits, load_dataset
from benchmark.models.trained import load_saved
from benchmark.spec.components import Component
from benchmark.spec.registry import DATASETS, load_plugin
from benchmark.spec.run_spec import make_spec
from defenses import CNN2, Derived, Recipe
from tests.benchmark.conftest import Cli

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from defenses import Derived


class Average(nn.Module):
    def __init__(self, one, two):
        super().__init__()
        self.one, self.two = one, two

    def forward(self, x):
        return (self.one(x) + self.two(x)) / 2


@dataclass(frozen=True, kw_only=True)
class AverageRecipe(Derived):
    one: str
    two: str

    parts: ClassVar[tuple[str, ...]] = ("one", "two")

    def derive(self, shape, classes, one, two):
        return Average(one, two)


class Shifted(nn.Module):
    def __init__(self, model, classes):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.register_buffer("shift", torch.zeros(classes))

    def forward(self, x):
        return self.model(x) + self.shift


@dataclass(frozen=True, kw_only=True)
class ShiftedRecipe(Derived):
    source: str
    parts: ClassVar[tuple[str, ...]] = ("source",)

    def derive(self, shape, classes, source):
        if not hasattr(source, "state_dict"):
            raise ValueError("no model")
        return Shifted(source, classes)

    def finish(self, model, x, y):
        model.shift += y.bincount(minlength=len(model.shift))


@dataclass(frozen=True, kw_only=True)
class PickyRecipe(ShiftedRecipe):
    def derive(self, shape, classes, source):
        raise ValueError("needs another kind of model")


DEFENSES = {"average": AverageRecipe, "shifted": ShiftedRecipe, "picky": PickyRecipe}
"""

ONE, TWO = "vanilla/arch=mlp/widen=0.1/epochs=1", "vanilla/epochs=0"
AVERAGE = {"name": "average", "one": ONE, "two": TWO, "label": "mean"}
SHIFTED = "shifted/source=mean"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "made.py"
    path.write_text(PLUGIN)
    return path


def _spec(folder: Path, plugin: Path, *defenses: object, **changes: object) -> Path:
    spec = {"samples": 16, "eps": 0.5, "attacks": ["pgd/steps=2"], "plugins": [str(plugin)]}
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec | changes | {"defenses": list(defenses)}))
    return path


@pytest.fixture(scope="module")
def whole(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def run(tmp_path: Path, cli: Cli, plugin: Path, whole: Path) -> Path:
    """A copy of a run with two models, their average, and that with what was fitted to it."""
    if not (whole / "run").exists():
        spec = _spec(whole, plugin, ONE, TWO, AVERAGE, SHIFTED)
        ended = cli("run", spec, "--quiet", "--out", whole / "run")
        assert (ended.status, ended.err) == (0, "")
    shutil.copytree(whole / "run", tmp_path / "run")
    load_plugin(plugin)
    return tmp_path / "run"


def _home(run: Path, label: str) -> Path:
    rows = json.loads((run / "run.json").read_text())["rows"]
    (model,) = (row["model"] for row in rows if row["defense"] == label)
    return run / model


def _card(home: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((home / "card.json").read_text())
    return card


def _logits(home: Path, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = load_saved(home).model(x)
    return logits


X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_derived_defense_is_what_its_recipe_makes_of_its_parts(run: Path) -> None:
    one, two, mean = (_logits(_home(run, label), X) for label in (ONE, TWO, "mean"))
    torch.testing.assert_close(mean, (one + two) / 2)
    # What is fitted without epochs sees the whole training set, and one part made of others.
    counts = load_dataset("digits").train.y.bincount()
    torch.testing.assert_close(_logits(_home(run, SHIFTED), X), mean + counts)


def test_a_saved_derived_defense_is_whole_without_its_parts(
    run: Path, tmp_path: Path, cli: Cli, plugin: Path
) -> None:
    home, before = _home(run, SHIFTED), _logits(_home(run, SHIFTED), X)
    for other in (run / "defenses").iterdir():
        if other != home:
            shutil.rmtree(other)
    moved = tmp_path / "moved"
    shutil.copytree(home, moved)
    assert torch.equal(_logits(moved, X), before)
    card = _card(moved)
    assert card["parts"]["source"]["defense"] == "mean"
    assert list(card["parts"]["source"]["parts"]) == ["one", "two"]
    words = ("run", "--eps", 0.5, "--samples", 16, "--attack", "pgd/steps=2", "--quiet")
    ended = cli(*words, "--defense", f"saved:{moved}", "--out", tmp_path / "again")
    assert (ended.status, ended.err) == (0, "")
    before_rows = json.loads((run / "table.json").read_text())["rows"]
    (row,) = json.loads((tmp_path / "again" / "table.json").read_text())["rows"]
    assert row == before_rows[3] | {"defense": f"saved:{moved}"}
    assert cli("verify", tmp_path / "again").status == 0


def test_running_again_makes_nothing_anew(run: Path, cli: Cli) -> None:
    def times() -> dict[Path, int]:
        kept = [*run.rglob("*.npz"), *run.rglob("model.safetensors")]
        # What has no epochs and no parts is built anew each time, at no cost.
        return {path: path.stat().st_mtime_ns for path in kept if path.parent != _home(run, TWO)}

    before = times()
    assert len(before) == 3 + 4 * 2
    assert cli("run", run / "spec.yaml", "--quiet", "--out", run).status == 0
    assert times() == before
    assert cli("verify", run).status == 0


def test_training_a_derived_defense_leaves_its_parts_as_they_are(
    run: Path, tmp_path: Path, cli: Cli, plugin: Path
) -> None:
    spec = _spec(tmp_path, plugin, ONE, TWO, AVERAGE | {"epochs": 1, "learning_rate": 0.1})
    assert cli("run", spec, "--quiet", "--out", run).status == 0
    trained = load_saved(_home(run, "mean")).model
    for label, part in ((ONE, trained.one), (TWO, trained.two)):
        assert isinstance(part, nn.Module)
        weights = dict(load_saved(_home(run, label)).model.named_parameters())
        changed = [not torch.equal(value, weights[name]) for name, value in part.named_parameters()]
        assert all(changed)
    assert (_home(run, "mean") / "log.csv").exists()
    assert cli("verify", run).status == 0


def test_other_parts_make_another_model_and_other_labels_the_same(
    run: Path, tmp_path: Path, cli: Cli, plugin: Path
) -> None:
    def made(row: dict[str, object], **average: object) -> str:
        spec = _spec(tmp_path, plugin, row, TWO, AVERAGE | average)
        assert cli("run", spec, "--quiet", "--out", run).status == 0
        return _home(run, "mean").name

    before = _home(run, "mean").name
    small = {"name": "vanilla", "arch": "mlp", "widen": 0.1, "epochs": 1}
    assert made(small | {"label": "first"}, one="first") == before
    assert made(small | {"label": ONE, "learning_rate": 0.01}) != before
    saved = tmp_path / "saved"
    shutil.copytree(_home(run, TWO), saved)
    assert made(small | {"label": ONE}, two=f"saved:{saved}") == before


def test_only_what_is_fitted_loads_the_training_set(
    tmp_path: Path, cli: Cli, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def noted(root: Path | None) -> Dataset:
        real = digits(root)

        def load(part: Any) -> Split:
            loaded.append(part)
            return real.train if part == "train" else real.test

        return Dataset("noted", real.labels, real.shape, load)

    monkeypatch.setitem(DATASETS._local, "noted", ("a test", noted))
    weights = tmp_path / "foreign.pt"
    torch.save(CNN2((1, 8, 8), 10).state_dict(), weights)
    foreign = {"name": "external", "model": "cnn2", "weights": str(weights), "label": "foreign"}
    average = AVERAGE | {"one": "foreign"}
    spec = _spec(tmp_path, plugin, foreign, TWO, average, data="noted")
    run = tmp_path / "run"
    assert cli("run", spec, "--quiet", "--out", run).status == 0
    assert "train" not in loaded
    # The foreign weights are in the derived model's folder too.
    before = _logits(_home(run, "mean"), X)
    weights.unlink()
    shutil.rmtree(_home(run, "foreign"))
    assert torch.equal(_logits(_home(run, "mean"), X), before)

    spec = _spec(tmp_path, plugin, TWO, f"shifted/source={TWO}", data="noted")
    assert cli("run", spec, "--out", run).status == 0
    assert loaded.count("train") == 1


@pytest.mark.parametrize(
    ("defenses", "line"),
    [
        ([ONE, {**AVERAGE, "two": "vanila"}, "vanilla"],
         "two='vanila' is unknown: name {ONE} or saved:FOLDER"),
        (["vanilla", {**AVERAGE, "one": "vanila"}], "one='vanila' is unknown: did you mean "
         "'vanilla'?"),
        ([TWO, {**AVERAGE, "one": TWO, "two": ONE}, ONE], "two='{ONE}' is below it: move it up"),
        ([ONE, {**AVERAGE, "two": "mean"}], "two='mean' is itself: name {ONE} or saved:FOLDER"),
        (["shifted/source=x"], "source='x' is unknown: name saved:FOLDER"),
        (["shifted/source=saved:/no/where"], "source='saved:/no/where': no saved model in "
         "/no/where: train it first"),
        ([{"name": "average", "one": ONE, "label": "mean"}], "give two=..."),
        ([TWO, f"picky/source={TWO}"], "needs another kind of model"),
    ],
)  # fmt: skip
def test_parts_that_will_not_do_are_one_line(
    tmp_path: Path, cli: Cli, plugin: Path, defenses: list[object], line: str
) -> None:
    run = tmp_path / "run"
    ended = cli("run", _spec(tmp_path, plugin, *defenses), "--quiet", "--out", run)
    line = line.replace("{ONE}", ONE)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert ended.err.endswith(f": {line}\n")
    assert ended.err.startswith("bestattack: defense '")
    assert run.exists() == ("kind" in line)


def test_a_saved_part_for_other_labels_is_refused_before_any_training(
    tmp_path: Path, cli: Cli, plugin: Path
) -> None:
    saved = tmp_path / "pair"
    train = ("train", "digits/pair=4-9", "vanilla/epochs=0", "--quiet", "--out", saved)
    assert cli(*train).status == 0
    says = "is for images [1, 8, 8] and 2 classes, and digits has images [1, 8, 8] and 10 classes"
    direct, row = f"shifted/source=saved:{saved}", {"name": f"saved:{saved}", "label": "two"}
    for defenses in ([ONE, direct], [ONE, row, "shifted/source=two"]):
        spec = _spec(tmp_path, plugin, *defenses)
        ended = cli("run", spec, "--quiet", "--out", tmp_path / "run")
        assert (ended.status, ended.err.count("\n")) == (1, 1)
        assert says in ended.err
        assert not (tmp_path / "run").exists()
    ended = cli("train", "digits", direct, "--plugin", plugin, "--out", tmp_path / "m")
    assert ended.status == 1
    assert says in ended.err


def test_one_part_is_named_in_text_and_found_from_everywhere(
    tmp_path: Path, cli: Cli, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("train", "digits", TWO, "--quiet", "--out", "plain").status == 0
    words = ("train", "digits", "shifted/source=saved:plain", "--plugin", plugin, "--quiet")
    assert cli(*words, "--out", "made").status == 0
    counts = load_dataset("digits").train.y.bincount()
    here = Path()
    torch.testing.assert_close(_logits(here / "made", X), _logits(here / "plain", X) + counts)
    assert _card(here / "made")["component"]["options"]["source"] == f"saved:{tmp_path}/plain"
    again = cli(*words, "--out", "made")
    assert again.status == 0

    spec = make_spec({"eps": 1, "defenses": [{**AVERAGE, "two": "saved:m"}], "attacks": ["pgd"]})
    assert spec.defenses[0].options["two"] == f"saved:{tmp_path}/m"
    assert spec.defenses[0].label == "mean"


def test_a_derived_recipe_is_built_from_its_parts_alone() -> None:
    class Mine(Derived):
        parts = ()

        def derive(self, shape: Any, classes: int, **models: Any) -> nn.Module:
            return nn.Flatten()

    assert isinstance(Mine(), Recipe)
    assert Mine().epochs == 0
    with pytest.raises(ValueError, match="made from other models"):
        Mine().build((1, 2, 2), 4)


def test_a_label_is_taken_whole() -> None:
    component = Component.model_validate(f"shifted/epochs=2/source={ONE}")
    assert component.options == {"epochs": "2", "source": ONE}
