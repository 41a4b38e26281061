"""Keys: what changes them, by content, and what does not."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from attacks import PGD, Facts, Problem, Seeded, Targeted
from benchmark.data.sets import load_dataset
from benchmark.errors import UserError
from benchmark.keys import identify_attack, identify_recipe, key_of, training_key
from benchmark.run import runner
from benchmark.spec.registry import ATTACKS, only_plugins
from benchmark.spec.run_spec import make_spec
from benchmark.user_code import identify_code
from defenses import AdversarialTraining, External, Fractal, Hybrid

ROOT = Path(__file__).parents[2]


def test_a_key_is_of_the_content_and_not_of_its_order() -> None:
    assert key_of({"a": 1, "b": {"c": 2.5, "d": None}}) == key_of(
        {"b": {"d": None, "c": 2.5}, "a": 1}
    )
    keys = [key_of(v) for v in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": 1, "b": 1}, {})]
    assert len(set(keys)) == len(keys)


PLUGIN = """
from dataclasses import dataclass, replace

from attacks import PGD
from benchmark.data.dataset import Dataset, Split
from benchmark.data.sets import digits


@dataclass(frozen=True)
class Mine(PGD):
    size: int = 1


def photos(root):
    ten = digits(root)
    return Dataset("photos", ten.labels, ten.shape, lambda part: Split(ten.test.x / 2, ten.test.y))


ATTACKS = {"mine": Mine}
DATASETS = {"photos": photos}
"""
NET = """
from torch import nn


def net():
    return nn.Sequential(Net())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))
"""
Keys = Callable[..., tuple[str, str]]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """The keys of the natural and of the attack's cell of a tiny run, with a plugin's text."""
    (tmp_path / "net.py").write_text(NET)

    def make(plugin: str = PLUGIN, **changes: Any) -> tuple[str, str]:
        (tmp_path / "plugin.py").write_text(plugin)
        spec = make_spec(
            {"samples": 8, "eps": 0.5, "defenses": ["vanilla/epochs=0"]}
            | {"attacks": ["mine/steps=1"], "plugins": [str(tmp_path / "plugin.py")]}
            | changes
        )
        runner.run(spec, tmp_path / "run", None, False, lambda line: None)
        manifest = json.loads((tmp_path / "run" / "run.json").read_text())
        natural, attack = manifest["rows"][0]["cells"].values()
        return natural, attack

    return make


@pytest.mark.parametrize(
    "change",
    [
        {"defenses": ["vanilla/epochs=0/widen=0.5"]},
        {"defenses": ["vanilla/epochs=1"]},
        {"data": "digits/pair=3-8"},
        {"data": "photos"},
        {"precision": "float64"},
        {"seed": 1},  # of the training too, and so the weights are others
    ],
)
def test_what_determines_clean_verdicts_changes_both_cells(
    keys: Keys, change: dict[str, Any]
) -> None:
    before, after = keys(), keys(**change)
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    "change",
    [
        {"eps": 0.6},
        {"norm": "linf"},
        {"attacks": ["mine/steps=2"]},
        {"attacks": ["mine/steps=1/size=2"]},
        {"attacks": ["pgd/steps=1"]},
        {"plugin": PLUGIN + "# Changed.\n"},
    ],
)
def test_what_determines_an_attack_changes_its_cell_alone(
    keys: Keys, change: dict[str, Any]
) -> None:
    before, after = keys(), keys(**change)
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_the_seed_changes_the_attacks_cell_where_the_weights_do_not(
    keys: Keys, tmp_path: Path
) -> None:
    keys()
    (saved,) = (tmp_path / "run" / "defenses").iterdir()
    one, other = (keys(defenses=[f"saved:{saved}"], seed=seed) for seed in (0, 1))
    assert one[0] == other[0]
    assert one[1] != other[1]


@pytest.mark.parametrize(
    "change", [{"block": 3}, {"device": "cpu"}, {"attacks": ["mine/steps=01"]}]
)
def test_what_determines_nothing_changes_no_cell(keys: Keys, change: dict[str, Any]) -> None:
    assert keys() == keys(**change)


@pytest.mark.parametrize("wrapped", [{}, {"mean": [0.5], "std": [0.5]}])
def test_the_code_of_a_foreign_model_changes_both_cells(
    keys: Keys, tmp_path: Path, wrapped: dict[str, Any]
) -> None:
    foreign = {"name": "external", "model": f"{tmp_path / 'net.py'}:net", **wrapped}
    before = keys(defenses=[foreign])
    assert keys(defenses=[foreign]) == before
    (tmp_path / "net.py").write_text(NET.replace("x.flatten(1)", "x.flatten(1).square()"))
    after = keys(defenses=[foreign])
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("changed", ["prep.py", "deeper/more.py"])
def test_what_the_code_of_a_foreign_model_imports_changes_both_cells(
    keys: Keys, tmp_path: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "__init__.py").write_text("")
    (tmp_path / "deeper" / "more.py").write_text("SCALE = 1.0\n")
    (tmp_path / "prep.py").write_text("from deeper.more import SCALE\n\nSHIFT = 0.0\n")
    net = "import prep\n" + NET.replace("x.flatten(1)", "(prep.SCALE * x - prep.SHIFT).flatten(1)")
    (tmp_path / "net.py").write_text(net)

    def measured() -> tuple[str, str]:
        for name in ("prep", "deeper", "deeper.more"):
            sys.modules.pop(name, None)  # as a new process would have it
        return keys(defenses=[{"name": "external", "model": f"{tmp_path / 'net.py'}:net"}])

    before = measured()
    assert measured() == before
    path = tmp_path / changed
    path.write_text(path.read_text() + "\n# Another line.\n")
    after = measured()
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("epochs", [0, 1])
def test_other_weights_in_a_file_of_the_same_name_change_both_cells(
    keys: Keys, tmp_path: Path, epochs: int
) -> None:
    weights = tmp_path / "weights.safetensors"
    foreign = {
        "name": "external", "layers": "Flatten(), Linear(64, 10)", "weights": str(weights),
        "epochs": epochs,
    }  # fmt: skip

    def measured(seed: int) -> tuple[str, str]:
        torch.manual_seed(seed)
        layer = nn.Linear(64, 10)
        save_file({"1.weight": layer.weight.data, "1.bias": layer.bias.data}, weights)
        return keys(defenses=[foreign])

    before, after = measured(0), measured(1)
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert measured(0) == before
    weights.rename(tmp_path / "other.safetensors")
    foreign["weights"] = str(tmp_path / "other.safetensors")
    assert keys(defenses=[foreign]) == before


def test_another_number_of_samples_changes_no_cell(keys: Keys) -> None:
    assert keys() == keys(samples=9)


def test_the_name_of_a_source_is_none_of_what_determines_an_attack() -> None:
    model = {"weights": "of a model"}
    attacks = [Seeded(PGD(), source=name) for name in ("first", "second")]
    one, other = (identify_attack(a, {"first": model, "second": model}) for a in attacks)
    assert one == other
    assert one != identify_attack(attacks[0], {"first": {"weights": "of another"}})


def test_options_of_attacks_inside_an_attack_count() -> None:
    identities = [
        identify_attack(attack, {})
        for attack in (
            Targeted(PGD()), Targeted(PGD(steps=9)), Targeted(PGD(), classes=2), PGD(),
        )
    ]  # fmt: skip
    assert len({key_of(identity) for identity in identities}) == len(identities)
    assert identities[0]["name"] == "targeted"
    assert identities[0]["options"]["base"]["name"] == "pgd"


def test_the_models_that_a_recipe_names_are_none_of_its_options() -> None:
    first = Hybrid(of="sure", otherwise="saved:/some/where", threshold=0.5)
    assert identify_recipe(first) == identify_recipe(
        dataclasses.replace(first, of="renamed", otherwise="accurate")
    )
    assert identify_recipe(first) != identify_recipe(dataclasses.replace(first, threshold=0.6))
    assert identify_recipe(External(weights="a.pt")) == identify_recipe(External(weights="b.pt"))


def test_a_later_option_is_in_a_key_where_it_is_given_and_nowhere_else() -> None:
    recipe = AdversarialTraining()
    lower = dataclasses.replace(recipe, compute="bfloat16")
    options = identify_recipe(recipe)["options"]
    assert "compute" not in options
    assert identify_recipe(lower)["options"] == options | {"compute": "bfloat16"}

    def key(configured: AdversarialTraining) -> str:
        dataset = load_dataset("digits")
        model, cpu = nn.Linear(2, 2), torch.device("cpu")
        torch.nn.init.ones_(model.weight), torch.nn.init.ones_(model.bias)
        return training_key(configured, model, dataset, None, 0, cpu, 1, {})

    assert key(recipe) == key(AdversarialTraining(compute="float32")) != key(lower)


def test_our_code_is_named_by_its_version_alone() -> None:
    assert identify_code(["attacks.searches.pgd", "defenses", "benchmark.keys", "torch.nn"]) == {}
    assert "code" not in identify_attack(PGD(), {})
    assert "code" not in identify_recipe(Fractal())


def test_a_plugin_is_what_it_was_when_it_was_loaded(tmp_path: Path) -> None:
    path = tmp_path / "plug.py"
    path.write_text(PLUGIN)
    with only_plugins([path]):
        first = identify_attack(ATTACKS.get("mine")(), {})
        path.write_text(PLUGIN + "# Edited while models are trained.\n")
        assert identify_attack(ATTACKS.get("mine")(), {}) == first
    with only_plugins([path]):
        assert identify_attack(ATTACKS.get("mine")(), {}) != first


def test_a_new_version_of_ours_invalidates_the_users_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plug.py"
    path.write_text(PLUGIN)
    with only_plugins([path]):
        first = identify_attack(ATTACKS.get("mine")(), {})
        monkeypatch.setattr(PGD, "version", 2)
        assert identify_attack(ATTACKS.get("mine")(), {}) != first


@dataclasses.dataclass(frozen=True)
class OnVictim:
    """An attack that crafts its points on a model, which another option than `source` names."""

    victim: str = "other"

    @property
    def facts(self) -> Facts:
        return Facts("fixed-budget", sources=(self.victim,))

    def __call__(self, problem: Problem) -> torch.Tensor:
        return problem.x


def test_every_model_that_points_are_crafted_on_counts() -> None:
    first, second = (
        identify_attack(OnVictim(), {"other": {"weights": weights}}) for weights in ("a", "b")
    )
    assert first != second


@pytest.mark.parametrize("kind", ["buffer", "attribute"])
def test_tensors_that_no_state_dict_holds_count(keys: Keys, tmp_path: Path, kind: str) -> None:
    keep = {"buffer": "self.register_buffer('bias', bias, persistent=False)"}
    bias = f"bias = torch.load({str(tmp_path / 'bias.pt')!r})\n        "
    net = "import torch\n" + NET.replace(
        "    def forward", f"        {bias}{keep.get(kind, 'self.bias = bias')}\n\n    def forward"
    ).replace("x.flatten(1)", "x.flatten(1) + self.bias")
    (tmp_path / "net.py").write_text(net)
    foreign = {"name": "external", "model": f"{tmp_path / 'net.py'}:net"}
    found = []
    for value in (0.0, 0.0, 1.0):
        torch.save(torch.full((64,), value), tmp_path / "bias.pt")
        found.append(keys(defenses=[foreign]))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][1] != found[2][1]


def test_an_option_counts_by_its_content() -> None:
    @dataclasses.dataclass(frozen=True)
    class Own(PGD):
        extra: Any = None

    def key(extra: Any) -> str:
        return key_of(identify_attack(Own(extra=extra), {}))

    torch.manual_seed(0)
    networks = [nn.Linear(2, 2), nn.Linear(2, 2)]
    assert key(networks[0]) != key(networks[1])
    assert key(json.dumps) != key(json.loads)
    assert key(PGD(steps=1)) == key(PGD(steps=1)) != key(PGD(steps=2))
    with pytest.raises(UserError, match="which cannot be told from another"):
        key(object())


SCRIPT = """
import json
from attacks import PGD, Targeted
from benchmark.errors import UserError
from benchmark.keys import identify_attack, identify_recipe
from defenses import Fractal, RoBin
found = [identify_attack(a, {}) for a in (PGD(), Targeted(PGD(steps=3)))]
print(json.dumps(found + [identify_recipe(r) for r in (Fractal(), RoBin())]))
"""


def test_a_comment_and_a_move_of_our_own_code_change_no_key(tmp_path: Path) -> None:
    for package in ("attacks", "benchmark", "defenses"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )

    def found() -> str:
        ended = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True,
            env={"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    before = found()
    objectives = tmp_path / "attacks" / "objectives.py"
    objectives.write_text(objectives.read_text() + "\n# A comment.\n")
    # Projected gradient descent moves into a file of another name in another room.
    moved = tmp_path / "attacks" / "wrappers" / "descent.py"
    (tmp_path / "attacks" / "searches" / "pgd.py").rename(moved)
    for path in tmp_path.rglob("*.py"):
        text = path.read_text()
        path.write_text(text.replace("attacks.searches.pgd", "attacks.wrappers.descent"))
    assert found() == before
