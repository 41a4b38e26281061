"""The study of classes: its binary task in closed form, and its records against its models."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import defenses
from attacks import PGD, CarliniWagner
from benchmark import evaluate
from benchmark.data.sets import load_dataset
from benchmark.models.trained import load_saved
from benchmark.spec.registry import ATTACKS, DEFENSES
from benchmark.spec.run_spec import make_spec
from benchmark.studies.classes.classes_shown import caption
from benchmark.studies.classes.first_against_rest import FirstAgainstRest
from defenses import Vanilla, read_card
from tests.benchmark.conftest import Cli, assert_written, refused

COMMON = "arch=mlp/widen=0.1/epochs=3/batch=64/optimizer=adam/learning_rate=0.01"
ROBUST, STANDARD = f"pgd-at/{COMMON}/steps=3", f"vanilla/{COMMON}"
PGD10, CLOSEST = "pgd/steps=10", "cw/steps=20/searches=2/minimize"
HYBRID = "hybrid/of=vanilla/otherwise=mnist"


def rest(y: Tensor) -> Tensor:
    """1 where a label is not that of the first class."""
    return (y != 0).long()


# The binary task


class Linear(nn.Module):
    """Logits W x of images x (n, 6) around grey."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) @ self.weight.T


def test_the_highest_logit_is_the_binary_decision() -> None:
    logits = torch.randn(500, 5)
    logits[::7] = logits[::7].round()  # ties
    task = FirstAgainstRest(nn.Identity())
    assert torch.equal(task(logits).argmax(1), rest(logits.argmax(1)))
    lead = logits[:, 0] - logits[:, 1:].max(1).values
    two = task(logits)
    assert torch.equal(two[:, 0] - two[:, 1], lead)
    assert torch.equal(FirstAgainstRest(nn.Identity())(logits[:, :2]), logits[:, :2])


@pytest.fixture
def linear() -> tuple[Linear, Tensor, Tensor, Tensor]:
    """A linear model of five classes, images, their classes, and how far the boundary of the first
    class is from each."""
    weight, x = torch.randn(5, 6).double(), 0.5 + 0.05 * torch.randn(400, 6).double()
    model = Linear(weight).eval()
    y = model(x).argmax(1)
    normals = weight[0] - weight[1:]

    def signed(points: Tensor) -> Tensor:
        """Distances (n, 4) into the half-spaces in which the first class beats another."""
        logits = model(points).detach()
        return (logits[:, :1] - logits[:, 1:]) / normals.norm(dim=1)

    leave = signed(x).min(1).values
    # To become the first class is to enter all half-spaces. The furthest must be entered, and where
    # the nearest point of it is in the others too, that is enough.
    enter, which = (-signed(x)).max(1)
    foot = x + (enter / normals[which].norm(dim=1))[:, None] * normals[which]
    kept = (y == 0) | (signed(foot) > -1e-12).all(1)
    assert 20 < int((y[kept] == 0).sum()) < int(kept.sum()) - 20
    distance = torch.where(y == 0, leave, enter)[kept]
    assert distance.max() < 0.3  # the box is further
    return model, x[kept], y[kept], distance


def test_distances_are_those_to_the_boundary_of_the_first_class(
    linear: tuple[Linear, Tensor, Tensor, Tensor],
) -> None:
    model, x, y, distance = linear
    attack = CarliniWagner(steps=200, searches=5, minimize=True)
    for side, task in ((y == 0, model), (y != 0, FirstAgainstRest(model).eval())):
        report = evaluate(
            task, x[side], rest(y[side]), eps=0.1, attacks=[attack], precision="float64"
        )
        found, true = report.minimal_distances(), distance[side].numpy()
        assert found is not None
        assert (found >= true - 1e-9).all()
        assert (found < 1.01 * true + 1e-5).all()
    # Between the other classes, boundaries are nearer.
    plain = evaluate(model, x[side], y[side], eps=0.1, attacks=[attack], precision="float64")
    nearest = plain.minimal_distances()
    assert nearest is not None
    assert (nearest < 0.9 * true).mean() > 0.3


def test_ascents_break_exactly_what_can_be_broken(
    linear: tuple[Linear, Tensor, Tensor, Tensor],
) -> None:
    model, x, y, distance = linear
    attack = PGD(steps=50, objective="margin", restarts=5)
    for eps in (0.05, 0.15):
        for side, task in ((y == 0, model), (y != 0, FirstAgainstRest(model).eval())):
            clear = side & ((distance < 0.98 * eps) | (distance > eps))
            report = evaluate(
                task, x[clear], rest(y[clear]), eps=eps, attacks=[attack], precision="float64"
            )
            assert report.best_attack == float((distance[clear] > eps).double().mean())


# The study


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classes") / "study"


def words(**options: object) -> list[object]:
    chosen: dict[str, object] = {
        "data": "digits", "defense": ROBUST, "standard": STANDARD, "eps": 0.3,
        "budgets": "1/2,0.2", "classes": "10,2", "orders": 2, "samples": 60,
    } | options  # fmt: skip
    return [
        "study", "classes", "--quiet",
        *(word for key, value in chosen.items() for word in (f"--{key}", value)),
    ]  # fmt: skip


BOTH = ["--attack", PGD10, "--attack", CLOSEST]


@pytest.fixture
def records(home: Path, cli: Cli) -> pd.DataFrame:
    """Two orders, of 2 and of 10 classes: eight models."""
    if not home.exists():
        assert_written(home, "classes", cli(*words(out=home), *BOTH))
    return pd.read_csv(home / "classes.csv")


def models(home: Path) -> dict[tuple[str, str], nn.Module]:
    """By data and defense."""
    cards = {folder: read_card(folder) for folder in (home / "defenses").iterdir()}
    return {
        (card["data"]["name"], card["component"]["name"]): load_saved(folder).model
        for folder, card in cards.items()
    }


def test_records_are_those_of_the_models(records: pd.DataFrame, home: Path) -> None:
    known = models(home)
    names = [f"digits/order={o}{variant}" for o in (1, 2) for variant in ("/other=2", "")]
    assert sorted(known) == sorted((n, d) for n in names for d in ("pgd-at", "vanilla"))
    by_key = records.set_index(["order", "classes", "defense", "attack", "eps"])
    accuracy = by_key["accuracy"]
    keys = [(a, e) for a in (PGD10, CLOSEST, "best-attack") for e in (0.2, 0.5)]
    assert len(accuracy) == 2 * 2 * (1 + len(keys) + 1)
    for number in (1, 2):
        for count in (2, 10):
            name = f"digits/order={number}" + ("/other=2" if count == 2 else "")
            test = load_dataset(name).test
            x, y = test.x[:60], rest(test.y[:60])
            # Their own classes, merged after: what the table of another study would not say.
            clean = {
                d: (rest(known[name, d](x).argmax(1)) == y).double().mean().item()
                for d in ("pgd-at", "vanilla")
            }
            assert accuracy[number, count, STANDARD, "natural", 0.0] == clean["vanilla"]
            own = accuracy[number, count, ROBUST]
            sides = by_key.loc[(number, count, ROBUST), ["first", "rest"]]
            assert own["natural", 0.0] == clean["pgd-at"]
            far, closest = np.zeros(60), np.full(60, np.inf)
            broken = {0.2: np.zeros(60, dtype=bool), 0.5: np.zeros(60, dtype=bool)}
            for side in (0, 1):
                task = known[name, "pgd-at"]
                at = np.flatnonzero(y == side)
                images: dict[str, Any] = {"x": x[at], "y": y[at], "index": at}
                task = FirstAgainstRest(task).eval() if side else task
                report = evaluate(task, eps=0.3, attacks=[CLOSEST], **images)
                found = report.minimal_distances()
                assert found is not None
                far[at], closest[at] = found, np.fmin(closest[at], found)
                for eps in (0.2, 0.5):
                    report = evaluate(task, eps=eps, attacks=[PGD10], **images)
                    rows = report.records
                    places = at[rows["index"]]
                    np.minimum.at(closest, places, rows["distance"].fillna(np.inf))
                    broken[eps][places[rows["broken"]]] = True
            for eps in (0.2, 0.5):
                assert own[PGD10, eps] == (~broken[eps]).mean()
                assert own[CLOSEST, eps] == (far > eps).mean()
                assert own["best-attack", eps] == (closest > eps).mean()
                apart = [(closest[y == side] > eps).mean() for side in (0, 1)]
                assert sides.loc["best-attack", eps].tolist() == apart
    assert accuracy.max() > accuracy.min()


def test_the_table_is_over_orders(records: pd.DataFrame, home: Path) -> None:
    text = (home / "classes.md").read_text()
    (line,) = [one for one in text.splitlines() if "best-attack" in one and " 1/2 " in one]
    chosen = records[(records["attack"] == "best-attack") & (records["eps"] == 0.5)]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    for count, cell in zip((2, 10), cells[3:], strict=True):
        both = chosen[chosen["classes"] == count]
        a, b = both["accuracy"]
        balanced = both[["first", "rest"]].to_numpy().mean()
        spread = f"{100 * (a + b) / 2:.1f} ± {100 * abs(a - b) / math.sqrt(2):.1f}"
        assert cell == f"{spread} ({100 * balanced:.1f})"
    labels = [load_dataset(f"digits/order={number}").test.y[:60] for number in (1, 2)]
    share = rest(torch.cat(labels)).double().mean().item()
    assert f"Always answering the rest is right on {100 * share:.1f}." in text
    assert f" {ROBUST} is trained for L2 eps 0.3. {STANDARD} is measured clean only." in text
    assert "Mean distance" in text


def test_what_is_there_is_not_made_again(
    records: pd.DataFrame, home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> dict[Path, int]:
        found = [*home.glob("defenses/*/*"), *home.glob("cells/*/*")]
        return {path: path.stat().st_mtime_ns for path in found}

    trained = []
    train = defenses.train

    def counting(recipe: defenses.Recipe, *args: object, **options: object) -> float:
        trained.append(type(recipe).__name__)
        return train(recipe, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(defenses, "train", counting)
    before = files()
    again = assert_written(home, "classes", cli(*words(out=home), *BOTH))
    pd.testing.assert_frame_equal(again, records)
    assert (files(), trained) == (before, [])
    # A budget more needs no model, a number more one of each recipe and order.
    more = cli(*words(out=home, orders=1, budgets="0.5,0.2,0.1", classes="2,4,10"), *BOTH)
    wider = assert_written(home, "classes", more)
    assert sorted(trained) == ["AdversarialTraining", "Vanilla"]
    assert before.items() <= files().items()
    old = records[records["order"] == 1]
    both = old.merge(wider, on=["classes", "defense", "attack", "eps"])
    assert (both["accuracy_x"] == both["accuracy_y"])[both["attack"] != "best-attack"].all()
    assert (both["accuracy_x"] >= both["accuracy_y"]).all()
    assert len(both) == len(old)
    # Fewer images are among those that were measured.
    before = files()
    assert_written(home, "classes", cli(*words(out=home, orders=1, samples=20), *BOTH))
    assert files() == before


def test_progress_is_a_line_for_each_model(home: Path, records: pd.DataFrame, cli: Cli) -> None:
    call = [word for word in words(out=home, orders=1) if word != "--quiet"]
    lines = cli(*call, *BOTH).err.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith(f"order 1, 2 classes, {ROBUST}: getting the model")
    assert lines[1].startswith(f"order 1, 2 classes, {ROBUST}: natural ")
    assert " at eps 0.2, best-attack " in lines[1]
    assert lines[1].endswith(" at eps 1/2")


@dataclass(frozen=True, kw_only=True)
class Constant(Vanilla):
    """Answers the last class."""

    epochs: int = 0

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        weight = torch.zeros(classes, math.prod(shape))
        last = nn.Linear(math.prod(shape), classes)
        last.weight.data, last.bias.data = weight, torch.arange(classes).float()
        return nn.Sequential(nn.Flatten(), last)


def test_a_model_that_ignores_the_first_class_is_told(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DEFENSES._local, "constant", ("test", Constant))
    call = words(out=tmp_path, defense="constant", orders=1, classes="2,3")
    without = call.index("--standard")
    found = assert_written(tmp_path, "classes", cli(*call[:without], *call[without + 2 :]))
    share = rest(load_dataset("digits/order=1").test.y[:60]).double().mean().item()
    assert (found["accuracy"] == share).all()
    assert (found["first"] == 0).all()
    assert (found["rest"] == 1).all()
    text = (tmp_path / "classes.md").read_text()
    assert f" {100 * share:.1f} (50.0) |" in text
    assert "one-sided, 2 of 2 models: right on under 10% of one side's clean images" in text
    for wrong in ("large-eps", "chance", "Mean distance", "is trained for"):
        assert wrong not in text


def test_the_caption_tells_what_a_recipe_trains_against() -> None:
    def told(defense: str, **changes: object) -> str:
        values = {"eps": 0.3, "defenses": [defense], "attacks": ["pgd"]} | changes
        return caption(make_spec(values), "digits", 60, None, 1, 0.9, {}, [{}])

    assert " pgd-at is trained for L2 eps 0.3." in told("pgd-at")
    assert " pgd-at/eps=0.5 is trained for L2 eps 0.5." in told("pgd-at/eps=0.5")
    other = "pgd-at/norm=linf/eps=0.1"
    assert f" {other} is trained for L-infinity eps 0.1." in told(other)
    assert "is trained for" not in told("vanilla")
    assert "within its L-infinity eps" in told("vanilla", norm="linf")


@dataclass(frozen=True)
class Failing(PGD):
    def __call__(self, problem: object) -> Tensor:
        raise RuntimeError("no\nluck")


@pytest.mark.parametrize(
    ("options", "extra", "line"),
    [
        ({"defense": "saved:x"}, [], "defense 'saved:x': a model is trained for each number"),
        ({"standard": HYBRID}, [], f"defense {HYBRID!r}: a model is"),
        ({"defense": STANDARD}, [], "is named twice"),
        ({}, ["--attack", "transfer:pgd/source=saved:x"], "its other model does not know the"),
        ({}, ["--attack", "best-arm:pgd"], "best-arm:pgd does not apply: the model offers no arms"),
        ({}, ["--attack", "failing"], "failing failed: RuntimeError: no luck"),
        ({"classes": "2,11"}, [], "classes are 2 to 10, as in 2,10, not '2,11'"),
        ({"classes": "2,ten"}, [], "classes are 2 to 10, as in 2,10, not '2,ten'"),
        ({"budgets": "0.5,much"}, [], "'much' is not a number"),
        ({"samples": 1000}, [], "has 355 test images, not 1000"),
        ({"data": "digits/order=x"}, [], "order needs an integer"),
    ],
)
def test_what_cannot_be_studied_is_refused(
    options: dict[str, object],
    extra: list[str],
    line: str,
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ATTACKS._local, "failing", ("test", Failing))
    quick = {"defense": "vanilla/epochs=0/arch=mlp", "out": tmp_path, "classes": "2,3"}
    ended = cli(*words(**(quick | options)), *extra)
    assert line in ended.err
    refused(ended, ended.err.removeprefix("bestattack: ").removesuffix("\n"))
    assert ended.err.count("\n") == 1
