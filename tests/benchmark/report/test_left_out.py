"""A table names the attacks that it leaves out, though its folder holds that they broke more."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.report.left_out import written
from benchmark.run.run_folder import read_run
from tests.benchmark.conftest import Cli

STRONG, WEAK = "pgd/steps=20", "pgd/steps=1/step_size=0.1/random_start=no"
SETTING: tuple[object, ...] = (
    *("run", "--quiet", "--samples", 96, "--block", 32, "--eps", 0.5),
    *("--defense", "vanilla/epochs=4"),
)


def _attacks(*names: str) -> list[str]:
    return [word for name in names for word in ("--attack", name)]


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """A copy of a folder in which a run with a strong attack was carried out."""
    strong = tmp_path_factory.getbasetemp() / "strong"
    if not strong.exists():
        assert cli(*SETTING, *_attacks(STRONG), "--out", strong).status == 0
    shutil.copytree(strong, tmp_path / "run")
    return tmp_path / "run"


def _row(folder: Path) -> dict[str, Any]:
    (row,) = json.loads((folder / "table.json").read_text())["rows"]
    return dict(row)


def _cell(folder: Path, label: str) -> Path:
    (row,) = json.loads((folder / "run.json").read_text())["rows"]
    return folder / "cells" / row["cells"][label]


def test_a_weaker_attack_does_not_hide_a_stronger_one(run: Path, cli: Cli) -> None:
    strong = _row(run)["best_attack"]
    assert _row(run)["left_out"] is None
    cli(*SETTING, *_attacks(WEAK), "--out", run)
    row = _row(run)
    assert row["best_attack"] > strong
    assert "left-out" in row["flags"]
    assert row["left_out"] == {"attacks": {STRONG: strong}, "best_attack": strong}
    share = f"{100 * strong:.1f}%"
    line = (
        f"- vanilla/epochs=4: left out, though the folder holds it: {STRONG} (leaves {share}); "
        f"with it best-attack would be {share}\n"
    )
    for out in (cli("report", run, "--wide").out, cli("verify", run, "--wide").out):
        assert line in out
        assert "- vanilla/epochs=4: left-out: " in out
    assert _row(run) == row

    # With both, nothing is left out; nor by the strong one alone, which the weak one adds nothing.
    for attacks in ([WEAK, STRONG], [STRONG]):
        ended = cli(*SETTING, *_attacks(*attacks), "--out", run)
        assert "left out, though" not in ended.out
        assert (_row(run)["left_out"], _row(run)["best_attack"]) == (None, strong)


def test_in_a_cascade_and_of_a_cascade_too(run: Path, cli: Cli) -> None:
    strong = _row(run)["best_attack"]
    cascade = ("--mode", "cascade")
    assert cli(*SETTING, *_attacks(WEAK), *cascade, "--out", run).status == 0
    assert _row(run)["left_out"]["best_attack"] == strong
    # An attack of a cascade met only what others left, which is all that could count.
    cell = _cell(run, WEAK)
    shutil.rmtree(run / "cells")
    assert cli(*SETTING, *_attacks(WEAK, STRONG), *cascade, "--out", run).status == 0
    lowest = _row(run)["best_attack"]
    assert cli(*SETTING, *_attacks(WEAK), "--out", run).status == 0
    assert cell.exists()
    assert _row(run)["left_out"] == {"attacks": {STRONG: lowest}, "best_attack": lowest}


def _without_a_block(cell: Path) -> None:
    min(cell.glob("*.npz")).unlink()


def _never_closed(cell: Path) -> None:
    (cell / "cell.json").unlink()


def _failed(cell: Path) -> None:
    note = json.loads((cell / "cell.json").read_text())
    (cell / "cell.json").write_text(json.dumps(note | {"error": "ValueError: no"}))


@pytest.mark.parametrize("spoil", [_without_a_block, _never_closed, _failed])
def test_what_failed_or_was_interrupted_does_not_count(
    run: Path, cli: Cli, spoil: Callable[[Path], None]
) -> None:
    spoil(_cell(run, STRONG))
    assert cli(*SETTING, *_attacks(WEAK), "--out", run).status == 0
    assert _row(run)["left_out"] is None


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        (("--eps", 0.4), False),
        (("--norm", "linf"), False),
        (("--seed", 1), False),
        (("--labels", "predictions"), False),
        (("--split", "train"), False),
        (("--choose", "random"), False),
        (("--samples", 97), False),  # of which the folder does not hold all
        (("--samples", 64), True),
        (("--block", 7), True),
    ],
)
def test_only_what_is_of_the_same_model_samples_threat_and_seed_counts(
    run: Path, cli: Cli, changed: tuple[object, ...], counts: bool
) -> None:
    assert cli(*SETTING, *_attacks(WEAK), *changed, "--out", run).status == 0
    assert (_row(run)["left_out"] is not None) == counts
    (report,) = read_run(run)[2]
    assert ("left-out" in report.flags) == counts


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        ({"name": "strong", "options": {}}, "strong"),
        ({"name": "pgd", "options": {"steps": 7, "random_start": False}}, None),
        (
            {
                "name": "best-arm",
                "options": {"base": {"name": "pgd", "options": {"steps": 7}}, "peer": {"a": 1}},
            },
            "best-arm:pgd/steps=7",
        ),
        (
            {"name": "foolbox", "options": {"attack": "L2PGD", "options": {"steps": 3}}},
            "foolbox:L2PGD",
        ),
        ({"name": "of a plugin", "options": {"a": True, "b": None}}, "of a plugin/a/b=none"),
    ],
)
def test_an_attack_is_named_as_a_user_would_write_it(
    identity: dict[str, Any], words: str | None
) -> None:
    assert written(identity) == (words or "pgd/steps=7/random_start=no")
