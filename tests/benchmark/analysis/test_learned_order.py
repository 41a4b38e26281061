"""The cascade that is learned from a run: found, recorded, and repeated without that run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark import UserError, evaluate, load_dataset
from benchmark.analysis.learned_order import learn, reports_of, spec_of
from benchmark.models.trained import load_saved
from benchmark.report.breaks import cost_of
from benchmark.run.run_folder import read_run
from benchmark.spec.lineup import attacks_of, choose, lineup_of
from benchmark.spec.run_spec import make_spec
from tests.benchmark.conftest import Cli, refused
from tests.benchmark.small import Linear, X, Y, evaluate_small

SETTING: tuple[object, ...] = (
    *("run", "--quiet", "--samples", 64, "--block", 32, "--defense", "vanilla/epochs=4"),
)
WEAK, STRONG = "pgd/steps=1/step_size=0.1/random_start=no", "pgd/steps=10"
ATTACKS = ("--attack", WEAK, "--attack", "pgd/steps=5,10")


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """A copy of the folder of a run."""
    made = tmp_path_factory.getbasetemp() / "to-learn-from"
    if not made.exists():
        ended = cli(*SETTING, *ATTACKS, "--eps", 0.5, "--out", made)
        assert ended.status == 0, ended.err
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def _spec(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((folder / "spec.yaml").read_text()))


def _cells(folder: Path) -> dict[str, str]:
    (row,) = json.loads((folder / "run.json").read_text())["rows"]
    return dict(row["cells"])


def test_what_was_learned_is_recorded_and_repeated_without_the_run(
    run: Path, tmp_path: Path, cli: Cli
) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    ended = cli(*SETTING, "--eps", 0.5, "--suite", f"learned:{run}", "--out", out)
    assert ended.status == 0, ended.err
    spec, _, (table,) = read_run(run)
    _, _, (cascade,) = read_run(out)
    suite = learn(run)
    assert suite.of == "digits, L2 eps 0.5, 1 row of 64 samples"
    assert [attack.label for attack in suite.attacks] == cascade.attacks
    assert {attack.label for attack in suite.attacks} <= attacks_of(spec).keys()
    told = " ".join(ended.out.split())
    assert f"attacks and their order learned from {run} (digits, L2 eps 0.5" in told

    # It is what the records of the first run said, and it is as low.
    assert cascade.mode == "cascade"
    assert cascade.best_attack == table.best_attack
    done = cascade.attribution().orders.given
    assert done.passes == cost_of(done.order, [table]).passes

    # The spec needs the first run no more, and its records are found by what they are of.
    assert _spec(out)["suite"]["learned"] == str(run)
    assert spec_of(_spec(out)).suite == suite
    shutil.rmtree(run)
    assert cli("run", "--quiet", out / "spec.yaml", "--out", again).status == 0
    assert _spec(again) == _spec(out)
    assert _cells(again) == _cells(out)
    assert cli("verify", again).status == 0


def test_records_are_found_again_by_what_they_are_of(run: Path, cli: Cli) -> None:
    cells = _cells(run)
    suite = learn(run)
    assert cli(*SETTING, "--eps", 0.5, "--suite", f"learned:{run}", "--out", run).status == 0
    learned = _cells(run)
    assert learned == {label: cells[label] for label in learned}
    # In a run that was learned, there is as much to learn.
    assert [attack.label for attack in learn(run).attacks] == [a.label for a in suite.attacks]


def test_the_user_may_want_a_table_and_further_attacks(run: Path, tmp_path: Path, cli: Cli) -> None:
    out, suite = tmp_path / "out", ("--suite", f"learned:{run}")
    further = ("--attack", "pgd/steps=3")
    assert (
        cli(*SETTING, "--eps", 0.5, *suite, *further, "--mode", "table", "--out", out).status == 0
    )
    (report,) = read_run(out)[2]
    assert report.mode == "table"
    assert report.attacks == [*(attack.label for attack in learn(run).attacks), "pgd/steps=3"]


def test_a_spec_may_name_the_run(run: Path, tmp_path: Path, cli: Cli) -> None:
    values = {
        "suite": f"learned:{run}",
        "samples": 16,
        "eps": 0.5,
        "defenses": ["vanilla/epochs=1"],
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(values))
    out = tmp_path / "out"
    assert cli("run", "--quiet", tmp_path / "spec.yaml", "--out", out).status == 0
    assert (_spec(out)["mode"], _spec(out)["suite"]["learned"]) == ("cascade", str(run))


def test_evaluate_takes_it_too(run: Path) -> None:
    test = load_dataset("digits").test
    (row,) = json.loads((run / "run.json").read_text())["rows"]
    model = load_saved(run / row["model"]).model
    asked: dict[str, Any] = {
        "x": test.x[:64],
        "y": test.y[:64],
        "eps": 0.5,
        "suite": f"learned:{run}",
    }
    report = evaluate(model, **asked)
    (table,) = read_run(run)[2]
    assert (report.mode, report.best_attack) == ("cascade", table.best_attack)
    assert evaluate(model, mode="table", **asked).mode == "table"


def _learned(*attacks: str) -> dict[str, Any]:
    return {"learned": "runs/gone", "attacks": list(attacks)}


def test_the_order_is_kept_though_another_begins_with_the_cheapest() -> None:
    values = {"eps": 0.5, "defenses": ["vanilla"]}
    learned = make_spec(values | {"suite": _learned(STRONG, WEAK)})
    assert learned.mode == "cascade"
    assert lineup_of(learned).in_order
    named = make_spec(values | {"attacks": [STRONG, WEAK], "mode": "cascade"})
    assert not lineup_of(named).in_order
    assert evaluate_small(attacks=[STRONG, WEAK], mode="cascade").attacks == [WEAK, STRONG]


def test_a_run_carries_out_the_order_that_was_recorded(tmp_path: Path, cli: Cli) -> None:
    values = {"suite": _learned(STRONG, WEAK), "samples": 16, "eps": 0.5, "data": "digits"}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(values | {"defenses": ["vanilla/epochs=1"]}))
    assert cli("run", "--quiet", tmp_path / "spec.yaml", "--out", tmp_path / "out").status == 0
    (report,) = read_run(tmp_path / "out")[2]
    assert report.attacks == [STRONG, WEAK]


def test_rows_and_threats_of_a_run_are_learned_from_together(tmp_path: Path, cli: Cli) -> None:
    out, threats = tmp_path / "run", ("--threat", "l2:0.5", "--threat", "linf:0.1")
    assert cli(*SETTING, *threats, *ATTACKS, "--out", out).status == 0
    assert learn(out).of == "digits, L2 eps 0.5, L-infinity eps 0.1, 2 rows of 64 samples"
    _, reports = reports_of(out)
    assert [report.called for report in reports] == [
        "vanilla/epochs=4 (L2 eps 0.5)",
        "vanilla/epochs=4 (L-infinity eps 0.1)",
    ]
    order = [attack.label for attack in learn(out).attacks]
    best = sum(report.best_attack for report in reports) / 2
    assert cost_of(order, reports).best_attack.value == best


def test_mistakes_are_one_line(run: Path, tmp_path: Path, cli: Cli) -> None:
    def asked(suite: str, *more: object) -> Any:
        threat = more or ("--eps", 0.5)
        return cli(*SETTING, *threat, "--suite", suite, "--out", tmp_path / "out")

    gone = tmp_path / "gone"
    refused(asked(f"learned:{gone}"), f"{gone} holds no run with results: name the folder of a run")
    refused(asked("learned:"), "learned: names no run: write learned:RUN, with the folder of a run")
    clean = tmp_path / "clean"
    assert cli(*SETTING, "--eps", 0.5, "--suite", "none", "--out", clean).status == 0
    refused(
        asked(f"learned:{clean}"),
        f"{clean} holds no finished attack: nothing can be learned from it",
    )
    harmless = tmp_path / "harmless"
    assert cli(*SETTING, "--eps", 1e-6, "--attack", WEAK, "--out", harmless).status == 0
    refused(
        asked(f"learned:{harmless}"),
        f"no attack broke anything in {harmless}: there is no order to learn",
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="holds no run with results"):
        evaluate(Linear().eval(), X, Y, eps=0.2, suite=f"learned:{gone}")


def test_attacks_under_another_norm_are_left_out_and_none_is_an_error() -> None:
    values = {"eps": 0.5, "defenses": ["vanilla"], "norm": "linf"}
    both = make_spec(values | {"suite": _learned("boundary", "pgd")})
    lineup = choose(both.suite, both.attacks, both.threat)
    assert list(lineup.entries) == ["pgd"]
    assert lineup.notes == (
        "attacks and their order learned from runs/gone: boundary, pgd",
        "left out of suite learned:runs/gone: boundary (runs under l2 only)",
    )
    alone = make_spec(values | {"suite": _learned("boundary")})
    with pytest.raises(UserError, match="no attack of suite 'learned:runs/gone' runs under linf"):
        lineup_of(alone)


@pytest.mark.parametrize(
    ("suite", "why"),
    [
        ({"learned": "runs/a", "attacks": []}, "attacks: List should have at least 1 item"),
        ({"learned": "runs/a"}, "give attacks, "),
        ({"learned": "runs/a", "attacks": ["pgd"], "order": 1}, "unknown setting 'order'"),
        (3, "Input should be a valid dictionary"),
    ],
)
def test_what_is_no_suite_is_refused_in_a_line(suite: Any, why: str) -> None:
    with pytest.raises(UserError) as error:
        make_spec({"eps": 0.5, "defenses": ["vanilla"], "suite": suite})
    begin = "the spec is not valid: suite: neither the name of a suite nor a learned one: "
    assert str(error.value).startswith(begin + why)
    assert "\n" not in str(error.value)
