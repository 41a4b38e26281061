"""Budgets and transfer, on linear models whose accuracy within each budget is known exactly."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.benchmark.conftest import Cli, assert_written, refused

# Of 30 images, two are misclassified; the others are 0.01, 0.02, ..., 0.28 from the boundary of
# "plain" and "arms". That of "other" is at 60 degrees to it.
PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks import PGD
from benchmark.data.dataset import Dataset, Split


class Plain(torch.nn.Module):
    normal = (1.0, 1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.tensor([self.normal, [-n for n in self.normal]]))

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight.T


class Arms(Plain):
    def arms(self, x):
        return self(x)


class Other(Plain):
    normal = (1.0, 1.0, 1.0, -1.0)


@dataclass(frozen=True)
class Timid(PGD):
    def __call__(self, problem):
        return problem.x if problem.threat.eps > 0.2 else super().__call__(problem)


@dataclass(frozen=True)
class Failing(PGD):
    def __call__(self, problem):
        raise RuntimeError("no")


def load(part):
    y = torch.arange(30) % 2
    distance = torch.arange(1, 31) / 100
    x = 0.5 + (1 - 2 * y)[:, None] * distance[:, None] * torch.full((30, 4), 0.5)
    y[28:] = 1 - y[28:]
    return Split(x.reshape(30, 1, 2, 2), y)


ATTACKS = {"timid": Timid, "failing": Failing}
DATASETS = {"line": lambda root: Dataset("line", ("a", "b"), (1, 2, 2), load)}
"""

PGD = "pgd/steps=10/random_start=False"
TRANSFER, BEST_ARM = f"transfer:{PGD}/source=other", f"best-arm:{PGD}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("budgets") / "run"


@pytest.fixture
def run(whole: Path, cli: Cli) -> Path:
    """A run of three foreign models."""
    if not whole.exists():
        plugin, spec = whole.parent / "mine.py", whole.parent / "spec.yaml"
        plugin.write_text(PLUGIN)
        defenses = [
            {"name": "external", "model": f"{plugin}:{name.title()}", "label": name}
            for name in ("plain", "arms", "other")
        ]
        attacks = [PGD, BEST_ARM, TRANSFER]
        values = {"data": "line", "eps": 0.105, "plugins": [str(plugin)], "block": 8}
        values["choose"] = "first"
        spec.write_text(yaml.safe_dump(values | {"defenses": defenses, "attacks": attacks}))
        assert cli("run", spec, "--out", whole, "--quiet").status == 0
    return whole


def left(reach: float, samples: int = 30) -> float:
    """The share of images whose distance is above `reach`."""
    return sum(i / 100 > reach for i in range(1, min(samples, 28) + 1)) / samples


def accuracies(found: pd.DataFrame, defense: str) -> dict[str, dict[float, float]]:
    """Of each attack on a row: eps to accuracy."""
    own = found[found["defense"] == defense]
    return {
        str(attack): dict(zip(rows["eps"], rows["accuracy"], strict=True))
        for attack, rows in own.groupby("attack")
    }


def test_accuracies_are_exact_at_every_budget(run: Path, cli: Cli) -> None:
    ended = cli("study", "budgets", run, "--eps", "0.205,8/255, 0.105", "--quiet")
    found = assert_written(run, "budgets", ended)
    budgets = [8 / 255, 0.105, 0.205]
    direct = {eps: pytest.approx(left(eps)) for eps in budgets}
    crafted = {eps: pytest.approx(left(eps / 2)) for eps in budgets}
    common = {PGD: direct, TRANSFER: crafted, "best-attack": direct}
    assert accuracies(found, "plain") == common
    assert accuracies(found, "arms") == common | {BEST_ARM: direct}
    assert found[found["defense"] != "other"]["natural"].unique().tolist() == [28 / 30]
    head, _, *rows = ended.out.splitlines()[:-2]
    cells = [cell.strip() for cell in head.split("|")[1:-1]]
    assert cells == ["defense", "attack", "natural", "eps 8/255", "eps 0.105", "eps 0.205"]
    cells = [cell.strip() for cell in rows[0].split("|")[1:-1]]
    assert cells == ["plain", PGD, "93.3", "83.3", "60.0", "26.7"]
    assert f"Not applicable to plain: {BEST_ARM}." in ended.out
    assert "Too weak" not in ended.out


def test_each_budget_is_a_run_that_resumes_and_holds(run: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    words = ("study", "budgets", tmp_path / "run", "--eps", "0.105,0.205", "--quiet")
    first = cli(*words)
    assert first.status == 0
    for eps in ("0.105", "0.205"):
        assert cli("verify", tmp_path / "run" / "budgets" / f"eps-{eps}").status == 0
    # At the run's own budget, what it measured itself.
    table = (tmp_path / "run" / "table.csv").read_text().splitlines()
    again = (tmp_path / "run" / "budgets" / "eps-0.105" / "table.csv").read_text().splitlines()
    assert [row.rsplit(",", 2)[0] for row in table] == [row.rsplit(",", 2)[0] for row in again]
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert cli(*words) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == made
    # Another run in the folder would make them a lie.
    assert cli("run", tmp_path / "run" / "spec.yaml", "--out", tmp_path / "run").status == 0
    assert not list((tmp_path / "run").glob("budgets.*"))


def test_rows_and_attacks_and_samples_can_be_chosen(run: Path, cli: Cli) -> None:
    # The row that points are crafted on is left out.
    words = ("--eps", "0.105", "--defense", "arms", "--samples", "10")
    found = assert_written(
        run, "budgets", cli("study", "budgets", run, *words, "--quiet", "--device", "cpu")
    )
    assert accuracies(found, "arms") == {
        PGD: {0.105: left(0.105, 10)},
        BEST_ARM: {0.105: left(0.105, 10)},
        TRANSFER: {0.105: pytest.approx(left(0.0525, 10))},
        "best-attack": {0.105: left(0.105, 10)},
    }
    assert set(found["defense"]) == {"arms"}
    words = ("--eps", "0.105", "--defense", "plain", "--attack", "pgd/steps=1,4/random_start=False")
    ended = cli("study", "budgets", run, *words, "--quiet")
    found = assert_written(run, "budgets", ended)
    one, four = (f"pgd/steps={steps}/random_start=False" for steps in (1, 4))
    assert set(accuracies(found, "plain")) == {one, four, "best-attack"}
    assert f"{one}, {four} are a series" in ended.out


def test_a_cascade_has_no_line_per_attack(run: Path, cli: Cli, tmp_path: Path) -> None:
    words = ("--mode", "cascade", "--out", tmp_path / "run", "--quiet")
    assert cli("run", run.parent / "spec.yaml", *words).status == 0
    ended = cli("study", "budgets", tmp_path / "run", "--eps", "0.105,0.205", "--quiet")
    found = assert_written(tmp_path / "run", "budgets", ended)
    expected = {eps: pytest.approx(left(eps)) for eps in (0.105, 0.205)}
    assert accuracies(found, "arms") == {"best-attack": expected}
    assert "so there is no line per attack" in ended.out


def test_attacks_that_fail_or_weaken_are_told(run: Path, cli: Cli) -> None:
    words = ("--eps", "0.105,0.205", "--defense", "plain", "--attack", "failing")
    ended = cli("study", "budgets", run, *words, "--attack", f"timid{PGD[3:]}", "--quiet")
    found = accuracies(assert_written(run, "budgets", ended), "plain")
    assert pd.isna(list(found["failing"].values())).all()
    assert found["best-attack"] == {0.105: pytest.approx(left(0.105)), 0.205: 28 / 30}
    row = next(line for line in ended.out.splitlines() if "failing" in line)
    assert [cell.strip() for cell in row.split("|")[3:-1]] == ["93.3", "error", "error"]
    assert "Flags: plain: attack-error" in ended.out
    timid = f"timid{PGD[3:]} on plain, best-attack on plain"
    assert f"Too weak at some larger eps: {timid}." in ended.out


@pytest.mark.parametrize(("target", "reference"), [("arms", "softmax"), ("plain", "no transfer")])
def test_transfer_is_exact_at_every_budget(
    run: Path, cli: Cli, target: str, reference: str
) -> None:
    words = ("--source", "other", "--target", target, "--eps", "0.105,0.205", "--base", PGD)
    ended = cli("study", "transfer", run, *words, "--quiet")
    found = assert_written(run, "transfer", ended)
    direct = {eps: pytest.approx(left(eps)) for eps in (0.105, 0.205)}
    crafted = {eps: pytest.approx(left(eps / 2)) for eps in (0.105, 0.205)}
    assert accuracies(found, target) == {
        "untargeted transfer": crafted,
        "targeted transfer": crafted,
        reference: direct,
        "best-attack": direct,
    }
    assert f"Each attack is with {PGD}; transfer is of its points on other." in ended.out
    assert cli("verify", run / "transfer" / "eps-0.105").status == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--eps", "0.1,x"), "'x' is not a number or a fraction such as 8/255"),
        (("--eps", ""), "'' is not a number or a fraction such as 8/255"),
        (("--eps", "0"), "eps must be above 0 and finite, not 0.0"),
        (
            ("--eps", "0.1", "--defense", "arm"),
            "the run has no row 'arm': did you mean 'arms'?",
        ),
        (
            ("--eps", "0.1", "--defense", "vanilla"),
            "the run has no row 'vanilla': it has plain, arms, other",
        ),
        (("--eps", "0.1", "--attack", "pdg"), "unknown attack 'pdg': did you mean 'pgd'?"),
        (("--eps", "0.1", "--suite", "quik"), "unknown suite 'quik': did you mean 'quick'?"),
        (("--eps", "0.1", "--samples", "31"), "line has 30 test images, not 31: lower samples"),
        (
            ("--eps", "0.1", "--attack", "pgd", "--attack", "pgd"),
            "the spec is not valid: attack 'pgd' is named twice",
        ),
        (
            ("--eps", "0.1", "--attack", "hierarchical:pgd"),
            "none of the attacks applies to these models: name others",
        ),
    ],
)
def test_mistakes_get_one_line(run: Path, cli: Cli, words: tuple[str, ...], line: str) -> None:
    refused(cli("study", "budgets", run, *words, "--quiet"), line)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--source", "othr", "--target", "arms"),
            "the run has no row 'othr': did you mean 'other'?",
        ),
        (
            ("--source", "other", "--target", "x"),
            "the run has no row 'x': it has plain, arms, other",
        ),
        (
            ("--source", "other", "--target", "arms", "--base", "pgd/steps=1/steps=2"),
            "the spec is not valid: attacks.0: 'pgd/steps=1/steps=2' gives an option twice",
        ),
        (
            ("--source", "arms", "--target", "arms"),
            "source and target are both 'arms': name two rows of the run",
        ),
        *(
            (
                ("--source", "other", "--target", "arms", "--base", base),
                f"base {base!r} wraps another attack: name one that does not, such as pgd",
            )
            for base in ("best-arm:pgd", "robin:pgd/steps=1,2", "transfer:pgd/source=plain")
        ),
    ],
)
def test_mistakes_in_transfer_get_one_line(
    run: Path, cli: Cli, words: tuple[str, ...], line: str
) -> None:
    refused(cli("study", "transfer", run, "--eps", "0.1", *words, "--quiet"), line)


def test_folders_without_a_run_are_refused(cli: Cli, tmp_path: Path) -> None:
    line = f"{tmp_path} holds no run with results: name the folder of a run"
    refused(cli("study", "budgets", tmp_path, "--eps", "0.1"), line)
    words = ("--source", "a", "--target", "b", "--eps", "0.1")
    refused(cli("study", "transfer", tmp_path, *words), line)


def test_a_run_that_is_moved_takes_its_budgets_with_it(run: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    asked = ("study", "budgets", tmp_path / "run", "--eps", "0.205", "--defense", "plain")
    assert cli(*asked, "--attack", PGD, "--quiet").status == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    assert cli("verify", tmp_path / "moved" / "budgets" / "eps-0.205").status == 0
