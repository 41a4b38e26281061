"""Runs under several threats: specs, folders, resuming, reporting, verifying and refusing."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from attacks import PGD, Problem
from attacks.searches.boundary import Boundary
from benchmark.cli.main import main
from benchmark.errors import UserError
from benchmark.judge.records import FolderCell
from benchmark.run import read_run
from benchmark.spec.run_spec import RunSpec, make_spec
from tests.benchmark.conftest import Cli, refused

L2, LINF = "L2 eps 0.5", "L-infinity eps 8/255"
PLACES = ("l2-0.5", "linf-0.0313725")
SETTING: tuple[object, ...] = (
    *("--quiet", "--samples", 40, "--block", 20, "--defense", "vanilla/epochs=1"),
    *("--defense", "l2nnn/epochs=1", "--attack", "pgd/steps=2"),
)
BOTH = ("--threat", "l2:0.5", "--threat", "linf:8/255")
WORDS = (*SETTING, *BOTH, "--attack", "boundary/steps=5")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run, which no test changes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bestattack", "run", *map(str, WORDS), "--out", str(folder)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def _spec(**changes: Any) -> RunSpec:
    return make_spec({"threats": ["l2:0.5", "linf:8/255"], "defenses": ["vanilla"]} | changes)


def test_a_spec_of_several_threats_is_one_of_each(tmp_path: Path) -> None:
    spec = _spec(threats=["linf:8/255", {"norm": "l2", "eps": 2}])
    assert [(view.norm, view.eps, view.threats) for view in spec.views] == [
        *(("linf", 8 / 255, []), ("l2", 2.0, []))
    ]
    assert spec.training_threat == spec.views[0].threat
    assert spec.views[1] == make_spec({"norm": "l2", "eps": 2, "defenses": ["vanilla"]})
    again = make_spec(yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json"))))
    assert (again, again.views) == (spec, spec.views)
    unbounded = _spec(bounded=False).views[1].threat
    assert (unbounded.lower, unbounded.upper) == (-8 / 255, 1 + 8 / 255)


def test_one_threat_is_as_norm_and_eps_are() -> None:
    spec = _spec(threats=["linf:8/255"])
    assert spec == make_spec({"norm": "linf", "eps": "8/255", "defenses": ["vanilla"]})
    assert spec.views == [spec]
    assert "threats" not in spec.model_dump(mode="json")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"eps": 1}, "give either threats, or norm and eps"),
        ({"norm": "l2"}, "give either threats, or norm and eps"),
        ({"threats": []}, "threats are none: name at least one, such as l2:0.5"),
        ({"threats": ["l2:0.5", "l2:1/2"]}, "threats: l2:0.5 is named twice"),
        ({"threats": ["l2:0.5", "l2"]}, "threats.1: 'l2' is no threat: write it as l2:0.5 or "),
        ({"threats": [0.5]}, "threats.0: 0.5 is no threat: write it as l2:0.5 or {norm: linf, "),
        ({"threats": [{"norm": "l2"}]}, "threats.0: {'norm': 'l2'} is no threat: write it as "),
        ({"threats": ["l7:1"]}, "threats.0.norm: Input should be "),
        ({"threats": ["l2:0"]}, "threats.0.eps: Input should be greater than 0"),
        ({"threats": ["l2:1", "linf:x"]}, "threats.1.eps: 'x' is not a number or a fraction"),
        ({"threats": "l2:1"}, "threats: Input should be a valid list"),
        ({"threats": None}, "threats: Input should be a valid list"),
    ],
)
def test_threats_that_make_no_sense_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        _spec(**changes)
    assert str(error.value).startswith(f"the spec is not valid: {line}")
    assert "\n" not in str(error.value)


def test_the_command_line_gives_threats_as_a_spec_does(tmp_path: Path, cli: Cli) -> None:
    spec, out = tmp_path / "spec.yaml", ("--out", tmp_path / "run")
    spec.write_text("norm: linf\neps: 0.1\n")
    assert cli("run", spec, *SETTING, *BOTH, *out).status == 0
    assert yaml.safe_load((tmp_path / "run" / "spec.yaml").read_text())["threats"] == [
        *({"norm": "l2", "eps": 0.5}, {"norm": "linf", "eps": "8/255"})
    ]
    line = "the spec is not valid: give either threats, or norm and eps"
    refused(cli("run", *SETTING, *BOTH, "--eps", 1, *out), line)
    refused(cli("run", tmp_path / "run" / "spec.yaml", "--eps", 1), line)


def test_the_folder_holds_a_run_under_each_threat_and_the_table_of_all(whole: Path) -> None:
    manifest = _json(whole / "run.json")
    assert (manifest["threats"], "python" in manifest["environment"]) == ([*PLACES], True)
    table = _json(whole / "table.json")
    assert table["run"] == manifest
    natural = set()
    for place, threat in zip(PLACES, (L2, LINF), strict=True):
        home = whole / "threats" / place
        under = _json(home / "table.json")
        for row, combined in zip(under["rows"], table["rows"], strict=True):
            assert row["natural"] == combined["natural"]
            assert row["best_attack"] == combined["best_attack"][threat]
            assert combined["union"] <= row["best_attack"]
        natural |= {row["cells"]["natural"] for row in _json(home / "run.json")["rows"]}
        assert threat in (home / "table.md").read_text()
        assert not (home / "cells").exists()
    assert len(natural) == len(table["rows"]) == 2

    # Each defense is trained once; clean images are judged once.
    cards = list((whole / "defenses").glob("*/card.json"))
    assert len(cards) == 2
    attacked = [path for path in (whole / "cells").iterdir() if "attack" in _identity(path)]
    assert len(list((whole / "cells").iterdir())) == len(attacked) + 2 + 2  # natural, certificates


def test_what_is_measured_under_a_threat_is_what_a_run_of_it_alone_measures(
    whole: Path, tmp_path: Path, cli: Cli
) -> None:
    for threat, place in (("l2:0.5", PLACES[0]), ("linf:8/255", PLACES[1])):
        home = tmp_path / place
        assert cli("run", *SETTING, "--threat", threat, "--out", home).status == 0
        for file, what in (("table.json", "per_attack"), ("run.json", "cells")):
            alone, one = (
                [row[what]["pgd/steps=2"] for row in _json(folder / file)["rows"]]
                for folder in (home, whole / "threats" / place)
            )
            assert alone == one


def _identity(cell: Path) -> dict[str, Any]:
    identity: dict[str, Any] = FolderCell(cell).note["identity"]
    return identity


def test_the_union_is_that_of_the_records(whole: Path) -> None:
    table = pd.read_csv(whole / "table.csv").set_index(["defense", "threat"])
    reports = [read_run(whole / "threats" / place)[2] for place in PLACES]
    for l2, linf in zip(*reports, strict=True):
        records = pd.concat([l2.records, linf.records])
        left = 40 - len(set(records.loc[records["broken"], "index"]))
        assert table.loc[(l2.name, "union"), "accuracy"] == left / 40
        mean = (l2.best_attack + linf.best_attack) / 2
        assert table.loc[(l2.name, "mean"), "accuracy"] == mean


def test_an_l2_radius_certifies_under_either_norm(whole: Path) -> None:
    (_, l2), (_, linf) = (read_run(whole / "threats" / place)[2] for place in PLACES)
    assert l2.radii is not None
    assert linf.radii is not None
    assert linf.radii.radius == pytest.approx(l2.radii.radius / 8)  # of 64 pixels


def test_an_attack_of_one_norm_does_not_apply_under_another(whole: Path) -> None:
    text = (whole / "table.md").read_text()
    line = f"- vanilla/epochs=1 ({LINF}): boundary/steps=5 does not apply: runs under l2 only"
    assert line in text.splitlines()
    l2, linf = (_json(whole / "threats" / place / "table.json")["rows"][0] for place in PLACES)
    assert l2["per_attack"]["boundary/steps=5"] is not None
    assert (linf["per_attack"]["boundary/steps=5"], linf["errors"]) == (None, {})
    assert linf["best_attack"] == linf["per_attack"]["pgd/steps=2"]


def test_each_threat_needs_an_attack(tmp_path: Path, cli: Cli) -> None:
    words = ("run", *BOTH, "--defense", "vanilla", "--out", tmp_path / "run")
    refused(cli(*words, "--attack", "boundary"), "no attack runs under linf: name one that does")
    ended = cli("run", "--threat", "l2:1", "--threat", "l2:2", *words[5:], "--attack", "rays")
    refused(ended, "attack 'rays' runs under linf only")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_run_again_measures_nothing_anew(
    run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, problem: Problem) -> None:
        raise AssertionError

    before = _files(run)
    for attack in (PGD, Boundary):
        monkeypatch.setattr(attack, "__call__", fail)
    ended = cli("run", *WORDS, "--out", run)
    assert (ended.status, ended.err) == (0, "")
    assert _files(run) == before
    ended = cli("report", run, "--wide")
    assert ended.status == 0
    assert ended.out.startswith(before["table.md"].decode() + "\n")
    assert _files(run) == before


def test_an_interrupted_run_is_reported_and_goes_on(
    whole: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = tmp_path / "run", []
    work = PGD.__call__

    def attacked(self: PGD, problem: Problem) -> Any:
        calls.append(problem.threat.norm)
        if calls.count("linf") == 2:
            raise KeyboardInterrupt
        return work(self, problem)

    def noted(self: PGD, problem: Problem) -> Any:
        calls.append(problem.threat.norm)
        return work(self, problem)

    monkeypatch.setattr(PGD, "__call__", attacked)
    assert cli("run", *WORDS, "--out", folder).status == 130
    ended = cli("report", folder)
    assert (ended.status, ended.err) == (0, "")
    vanilla, l2nnn = _json(folder / "table.json")["rows"]
    assert vanilla["best_attack"][L2] is not None
    assert (vanilla["best_attack"][LINF], vanilla["union"], l2nnn["mean"]) == (None, None, None)
    line = cli("verify", folder).err
    assert line.startswith(f"bestattack: the run of {folder} is not finished, what there is holds:")
    assert re.search(rf"{LINF}: vanilla/epochs=1 pgd/steps=2: \d+ of \d+ so far: ", line)

    # It goes on where it was: the block that was lost is measured again, and no other.
    calls.clear()
    monkeypatch.setattr(PGD, "__call__", noted)
    assert cli("run", *WORDS, "--out", folder).status == 0
    assert calls == ["linf", "linf", "linf"]  # one block of four was done
    for name in ("table.json", *(f"threats/{place}/table.json" for place in PLACES)):
        assert _json(folder / name)["rows"] == _json(whole / name)["rows"]
    assert cli("verify", folder).status == 0


def test_a_run_that_has_not_come_to_a_threat_says_so(run: Path, cli: Cli) -> None:
    shutil.rmtree(run / "threats" / PLACES[1])
    ended = cli("report", run)
    assert ended.status == 0
    assert f"{LINF}\n\nNothing is measured yet.\n" in ended.out
    assert f"Not measured yet: {LINF}." in ended.out
    assert f"{LINF}: not measured" in cli("verify", run).err
    shutil.rmtree(run / "threats")
    line = f"{run} holds no results yet: run the same command again"
    refused(cli("report", run), line)
    refused(cli("verify", run), line)


def test_verify_replays_every_threat_and_the_table_of_all(run: Path, cli: Cli) -> None:
    ended = cli("verify", run, "--wide")
    assert (ended.status, ended.err) == (0, "")
    assert f"vanilla/epochs=1 ({L2}) pgd/steps=2: " in ended.out
    assert f"l2nnn/epochs=1 ({LINF}) certified: 40 of 40 radii are found again" in ended.out
    assert (run / "table.md").read_text().split("## All")[1] in ended.out
    assert cli("verify", run / "threats" / PLACES[1]).status == 0

    table = _json(run / "table.json")
    table["rows"][0]["union"] += 0.1
    (run / "table.json").write_text(json.dumps(table))
    line = (
        f"the table of {run} does not hold, the one above is what does: table.json says otherwise"
    )
    assert cli("verify", run).err == f"bestattack: {line}\n"


def test_verify_finds_what_was_changed_under_one_threat(run: Path, cli: Cli) -> None:
    row = _json(run / "threats" / PLACES[0] / "run.json")["rows"][0]
    other = _json(run / "threats" / PLACES[1] / "run.json")
    # The records under L2 in place of those under L-infinity.
    other["rows"][0]["cells"]["pgd/steps=2"] = row["cells"]["pgd/steps=2"]
    (run / "threats" / PLACES[1] / "run.json").write_text(json.dumps(other))
    line = cli("verify", run).err
    assert f"{LINF}: vanilla/epochs=1 pgd/steps=2: " in line
    assert "made with other weights, data or threat" in line
    manifest = _json(run / "run.json")
    manifest["threats"].reverse()
    (run / "run.json").write_text(json.dumps(manifest))
    refused(cli("report", run), f"{run}/run.json was changed: its threats are not its spec's")


def test_what_is_about_one_threat_takes_the_folder_of_one(run: Path, cli: Cli) -> None:
    homes = " or ".join(str(run / "threats" / place) for place in PLACES)
    line = f"{run} holds a run under several threats: name that of one, {homes}"
    refused(cli("study", "lipschitz", run), line)
    home = run / "threats" / PLACES[0]
    assert cli("study", "lipschitz", home).status == 0
    words = ("--eps", "0.1", "--attack", "pgd/steps=2", "--quiet")
    assert cli("study", "budgets", home, *words).status == 0
    before = (home / "table.md").read_bytes()
    assert cli("report", home, "--wide").out.encode().startswith(before + b"\n")


def test_other_runs_in_the_folder_leave_no_tables_of_this_one(run: Path, cli: Cli) -> None:
    assert cli("run", *SETTING, "--eps", 0.5, "--out", run).status == 0
    assert [path.name for path in (run / "threats").glob("*/*") if path.name != ".lock"] == []
    assert "All threats" not in cli("report", run).out
    assert cli("verify", run).status == 0
    assert cli("run", *WORDS, "--out", run).status == 0
    assert cli("verify", run).status == 0


def test_defenses_train_against_the_first_threat_or_their_own(tmp_path: Path, cli: Cli) -> None:
    words = ("--quiet", "--samples", 10, "--suite", "none", "--out", tmp_path / "run")
    named = ("pgd-at/epochs=1/steps=1", "pgd-at/epochs=1/steps=1/norm=linf/eps=0.1")
    defenses = [word for name in named for word in ("--defense", name)]
    assert cli("run", *words, *defenses, *BOTH).status == 0
    cards = [_json(path) for path in (tmp_path / "run" / "defenses").glob("*/card.json")]
    trained = {card["component"]["options"].get("eps"): card["threat"] for card in cards}
    assert (trained[None]["norm"], trained[None]["eps"]) == ("l2", 0.5)
    assert (trained["0.1"]["norm"], trained["0.1"]["eps"]) == ("linf", 0.1)
    (card,) = (card for card in cards if "eps" not in card["component"]["options"])

    # As the same defense in a run under that threat alone.
    assert cli("run", *words[:-1], tmp_path / "alone", *defenses[:2], "--eps", 0.5).status == 0
    (alone,) = (tmp_path / "alone" / "defenses").glob("*/card.json")
    assert _json(alone)["key"] == card["key"]


def test_a_cascade_leaves_the_same_samples(whole: Path, run: Path, cli: Cli) -> None:
    assert cli("run", *WORDS, "--mode", "cascade", "--out", run).status == 0
    union = [row["union"] for row in _json(run / "table.json")["rows"]]
    assert union == [row["union"] for row in _json(whole / "table.json")["rows"]]
    assert cli("verify", run).status == 0


def test_what_failed_or_warns_says_under_which_threat(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = PGD.__call__

    def attacked(self: PGD, problem: Problem) -> Any:
        if problem.threat.norm == "linf":
            raise RuntimeError("no signs")
        return work(self, problem)

    monkeypatch.setattr(PGD, "__call__", attacked)
    words = ("--samples", 5, "--defense", "vanilla/epochs=1", "--attack", "pgd/steps=2")
    ended = cli("run", *words, *BOTH, "--attack", "cw/steps=2/searches=1", "--out", tmp_path / "r")
    assert ended.status == 3
    assert f"failed, and counted for nothing: vanilla/epochs=1 ({LINF}): pgd/steps=2" in ended.err
    assert f"vanilla/epochs=1 ({L2}): pgd/steps=2 broke " in ended.err
    assert f"- vanilla/epochs=1 ({LINF}): pgd/steps=2 failed: RuntimeError: no signs" in " ".join(
        ended.out.split()
    )
    (row,) = _json(tmp_path / "r" / "table.json")["rows"]
    assert row["union"] is not None
    assert row["flags"]["missing-classes"] == [L2, LINF]
