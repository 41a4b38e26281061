"""Runs with several seeds: specs, folders, resuming, reporting, verifying and refusing."""

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from attacks import PGD, Problem
from benchmark.cli.main import main
from benchmark.errors import UserError
from benchmark.run import read_run
from benchmark.spec.run_spec import RunSpec, make_spec
from tests.benchmark.conftest import Cli, refused

SETTING: tuple[object, ...] = (
    *("--quiet", "--samples", 40, "--block", 20, "--eps", 0.5, "--defense", "vanilla/epochs=1"),
    *("--defense", "l2nnn/epochs=1", "--attack", "pgd/steps=2"),
)
WORDS = (*SETTING, "--seeds", "0,1")


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
    return make_spec({"eps": 0.5, "defenses": ["vanilla"]} | changes)


def _fail(self: object, problem: Problem) -> None:
    raise AssertionError


def test_a_spec_with_several_seeds_is_one_with_each() -> None:
    spec = _spec(seeds=[4, 0])
    assert spec == _spec(seeds="4, 0")
    assert spec.views == [_spec(seed=4), _spec(seed=0)]
    plain = spec.model_dump(mode="json")
    assert (plain["seeds"], "seed" in plain) == ([4, 0], False)
    again = make_spec(yaml.safe_load(yaml.safe_dump(plain)))
    assert (again, again.views) == (spec, spec.views)
    # One seed leaves no trace of there having been several, nor do they in the name of a folder.
    assert "seeds" not in _spec(seed=4).model_dump(mode="json")
    assert spec.place == _spec().place


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seeds": [0, 1], "seed": 0}, "give either seeds or seed"),
        ({"seeds": [1]}, "seeds: name two at least, such as 0,1,2, or give seed"),
        ({"seeds": []}, "seeds: name two at least, such as 0,1,2, or give seed"),
        ({"seeds": [0, 1, 0]}, "seeds: 0 is named twice"),
        ({"seeds": [0, -1]}, "seeds.1: Input should be greater than or equal to 0"),
        ({"seeds": "0,x"}, "seeds.1: Input should be a valid integer"),
        ({"seeds": 3}, "seeds: Input should be a valid list"),
        ({"seeds": None}, "seeds: Input should be a valid list"),
        (
            {"seeds": [0, 1], "threats": ["l2:1", "linf:0.1"]},
            "seeds are for one threat: make a run with them under each threat",
        ),
    ],
)
def test_seeds_that_make_no_sense_are_refused(changes: dict[str, Any], line: str) -> None:
    values = {"defenses": ["vanilla"]} | ({} if "threats" in changes else {"eps": 1})
    with pytest.raises(UserError) as error:
        make_spec(values | changes)
    assert str(error.value).startswith(f"the spec is not valid: {line}")
    assert "\n" not in str(error.value)


def test_the_command_line_overrides_the_seed_of_a_spec(tmp_path: Path, cli: Cli) -> None:
    spec, out = tmp_path / "spec.yaml", tmp_path / "run"
    words = (*SETTING[:-6], "--defense", "vanilla/epochs=1", "--suite", "none", "--out", out)
    spec.write_text("seed: 5\n")
    assert cli("run", spec, *words, "--seeds", "0,1").status == 0
    assert yaml.safe_load((out / "spec.yaml").read_text())["seeds"] == [0, 1]
    assert cli("run", out / "spec.yaml", "--seed", 1, "--quiet", "--out", out).status == 0
    assert yaml.safe_load((out / "spec.yaml").read_text())["seed"] == 1
    ended = cli("run", spec, *words, "--seeds", "0,1", "--seed", 2)
    refused(ended, "the spec is not valid: give either seeds or seed")


def test_each_seed_is_a_run_with_it_alone(whole: Path, tmp_path: Path, cli: Cli) -> None:
    rows = _json(whole / "table.json")["rows"]
    per_seed = []
    for seed in (0, 1):
        alone, home = tmp_path / str(seed), whole / "seeds" / str(seed)
        assert cli("run", *SETTING, "--seed", seed, "--out", alone).status == 0
        for name in ("table.json", "run.json"):
            of_alone, of_seed = (_json(folder / name) for folder in (alone, home))
            if name == "table.json":
                assert of_seed["rows"] == of_alone["rows"]
                per_seed.append(of_seed["rows"])
            else:
                cells = [[row["cells"] for row in one["rows"]] for one in (of_alone, of_seed)]
                assert cells[0] == cells[1]
        for kind in ("cells", "defenses"):
            made = {path.name for path in (alone / kind).iterdir()}
            assert made < {path.name for path in (whole / kind).iterdir()}
            for path in (alone / kind).glob("*/model.safetensors"):
                there = whole / path.relative_to(alone)
                assert path.read_bytes() == there.read_bytes()

    # The table over both is of these numbers, and of no others.
    for place, row in enumerate(rows):
        for name in ("natural", "best_attack"):
            values = [of_seed[place][name] for of_seed in per_seed]
            spread = {"mean": statistics.mean(values), "sd": statistics.stdev(values)}
            assert row[name] == spread
            assert [numbers[name] for numbers in row["with_seed"].values()] == values
    # No cell is of both seeds, and none is left over.
    every = [
        set(row["cells"].values())
        for seed in (0, 1)
        for row in _json(whole / "seeds" / str(seed) / "run.json")["rows"]
    ]
    assert (
        sum(map(len, every)) == len(set().union(*every)) == len(list((whole / "cells").iterdir()))
    )


def test_the_folder_holds_a_run_with_each_seed_and_the_table_of_all(whole: Path) -> None:
    manifest, table = _json(whole / "run.json"), _json(whole / "table.json")
    assert (manifest["seeds"], manifest["spec"]["seeds"]) == (["0", "1"], [0, 1])
    assert table["run"] == manifest
    for seed in (0, 1):
        home = whole / "seeds" / str(seed)
        spec, _, reports = read_run(home)
        assert (spec.seed, spec.seeds) == (seed, [])
        assert [report.called for report in reports] == [
            *(f"vanilla/epochs=1 (seed {seed})", f"l2nnn/epochs=1 (seed {seed})")
        ]
        assert {path.name for path in home.iterdir()} == {
            *(".lock", "run.json", "table.md", "table.csv", "table.json"),
            *("curves.png", "report.html"),
        }
    text = (whole / "table.md").read_text()
    assert "±" in text.splitlines()[2]
    assert "n = 2 seeds (0, 1)" in text
    assert len((whole / "table.csv").read_text().splitlines()) == 1 + 3 + 4
    page = (whole / "report.html").read_text()
    assert "digits, with several seeds" in page
    for seed in (0, 1):
        assert f'<a href="seeds/{seed}/report.html">seed {seed}</a>' in page
    for cell in text.splitlines()[2].split("|")[2:5]:
        assert f"<td>{cell.strip()}</td>" in page


def test_a_run_of_one_seed_is_reused_and_nothing_is_measured_twice(
    whole: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, work, calls = tmp_path / "run", PGD.__call__, []

    def noted(self: PGD, problem: Problem) -> Any:
        calls.append(problem.seed)
        return work(self, problem)

    assert cli("run", *SETTING, "--seed", 1, "--out", folder).status == 0
    monkeypatch.setattr(PGD, "__call__", noted)
    assert cli("run", *WORDS, "--out", folder).status == 0
    assert set(calls) == {0}
    assert _json(folder / "table.json")["rows"] == _json(whole / "table.json")["rows"]
    monkeypatch.setattr(PGD, "__call__", _fail)
    # A run with one of them again, which leaves no table of several.
    assert cli("run", *SETTING, "--seed", 0, "--out", folder).status == 0
    assert [path.name for path in (folder / "seeds").glob("*/*") if path.name != ".lock"] == []
    assert "±" not in cli("report", folder).out
    assert cli("verify", folder).status == 0


def test_a_run_that_is_run_again_measures_nothing_anew(
    run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _files(run)
    monkeypatch.setattr(PGD, "__call__", _fail)
    ended = cli("run", *WORDS, "--out", run)
    assert (ended.status, ended.err) == (0, "")
    assert _files(run) == before
    ended = cli("report", run, "--wide")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(before["table.md"].decode() + "\n")
    assert "±" in cli("report", run).out
    assert _files(run) == before


def test_an_interrupted_run_is_reported_and_goes_on(
    whole: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = tmp_path / "run", []
    work = PGD.__call__

    def attacked(self: PGD, problem: Problem) -> Any:
        calls.append(problem.seed)
        if calls.count(1) == 2:
            raise KeyboardInterrupt
        return work(self, problem)

    def noted(self: PGD, problem: Problem) -> Any:
        calls.append(problem.seed)
        return work(self, problem)

    monkeypatch.setattr(PGD, "__call__", attacked)
    assert cli("run", *WORDS, "--out", folder).status == 130
    ended = cli("report", folder)
    assert (ended.status, ended.err) == (0, "")
    assert "not finished" in ended.out
    assert "seed 1: pgd/steps=2 11 of 22 so far: 6 broken" in " ".join(ended.out.split())
    vanilla, l2nnn = _json(folder / "table.json")["rows"]
    assert vanilla["natural"] is not None
    assert (vanilla["best_attack"], l2nnn["natural"]) == (None, None)
    assert vanilla["with_seed"]["0"]["best_attack"] is not None
    line = cli("verify", folder).err
    assert line.startswith(f"bestattack: the run of {folder} is not finished, what there is holds:")
    assert "seed 1: vanilla/epochs=1 pgd/steps=2: 11 of 22 so far: 6 broken" in line

    # It goes on where it was: the block that was lost is measured again, and no other.
    calls.clear()
    monkeypatch.setattr(PGD, "__call__", noted)
    assert cli("run", *WORDS, "--out", folder).status == 0
    assert calls == [1, 1, 1]  # one block of four was done
    for name in ("table.json", "seeds/0/table.json", "seeds/1/table.json"):
        assert _json(folder / name)["rows"] == _json(whole / name)["rows"]
    assert cli("verify", folder).status == 0


def test_a_run_that_has_not_come_to_a_seed_says_so(run: Path, cli: Cli) -> None:
    shutil.rmtree(run / "seeds" / "1")
    assert cli("report", run).status == 0
    assert "seed 1: not measured" in cli("verify", run).err
    shutil.rmtree(run / "seeds")
    line = f"{run} holds no results yet: run the same command again"
    refused(cli("report", run), line)
    refused(cli("verify", run), line)


def test_verify_replays_every_seed_and_the_table_of_all(run: Path, cli: Cli) -> None:
    ended = cli("verify", run, "--wide")
    assert (ended.status, ended.err) == (0, "")
    assert "vanilla/epochs=1 (seed 0) pgd/steps=2: " in ended.out
    assert "l2nnn/epochs=1 (seed 1) certified: 40 of 40 radii are found again" in ended.out
    assert (run / "table.md").read_text() in ended.out
    assert cli("verify", run / "seeds" / "1").status == 0

    table = _json(run / "table.json")
    table["rows"][0]["best_attack"]["sd"] += 0.1
    (run / "table.json").write_text(json.dumps(table))
    line = (
        f"the table of {run} does not hold, the one above is what does: table.json says otherwise"
    )
    assert cli("verify", run).err == f"bestattack: {line}\n"


def test_verify_finds_a_record_that_was_changed_with_one_seed(run: Path, cli: Cli) -> None:
    key = _json(run / "seeds" / "1" / "run.json")["rows"][0]["cells"]["pgd/steps=2"]
    for block in (run / "cells" / key).glob("*.npz"):
        with np.load(block) as arrays:
            content = dict(arrays)
        content["adversarial"] = np.full_like(content["adversarial"], 0.5)
        np.savez(block, **content)
    line = cli("verify", run).err
    assert line.startswith(f"bestattack: the table of {run} does not hold")
    assert "seed 1: vanilla/epochs=1 pgd/steps=2: " in line
    assert "seed 0: vanilla" not in line


def test_verify_finds_the_records_of_another_seed(run: Path, cli: Cli) -> None:
    of_zero = _json(run / "seeds" / "0" / "run.json")
    of_one = _json(run / "seeds" / "1" / "run.json")
    of_one["rows"][0]["cells"] = of_zero["rows"][0]["cells"]
    (run / "seeds" / "1" / "run.json").write_text(json.dumps(of_one))
    line = cli("verify", run).err
    assert "seed 1: vanilla/epochs=1 natural: " in line
    assert "made with other weights, data or threat" in line
    manifest = _json(run / "run.json")
    manifest["seeds"].reverse()
    (run / "run.json").write_text(json.dumps(manifest))
    refused(cli("report", run), f"{run}/run.json was changed: its seeds are not its spec's")
    of_one["choice"]["seed"] = 2
    (run / "seeds" / "1" / "run.json").write_text(json.dumps(of_one))
    home = run / "seeds" / "1"
    line = f"{home}/run.json was changed: its threat, mode or seed is not its spec's"
    refused(cli("report", home), line)


def test_what_is_about_one_seed_takes_the_folder_of_one(run: Path, cli: Cli) -> None:
    homes = " or ".join(str(run / "seeds" / seed) for seed in "01")
    line = f"{run} holds a run with several seeds: name that of one, {homes}"
    refused(cli("study", "lipschitz", run), line)
    home = run / "seeds" / "0"
    assert cli("study", "lipschitz", home).status == 0
    before = (home / "table.md").read_bytes()
    assert cli("report", home, "--wide").out.encode().startswith(before + b"\n")


def test_each_seed_has_to_reach_a_threshold(run: Path, cli: Cli) -> None:
    with_seed = _json(run / "table.json")["rows"][0]["with_seed"]
    each = [numbers["natural"] for numbers in with_seed.values()]
    assert cli("report", run, "--fail-under", "natural=1").status == 0
    least = 100 * max(each)
    assert min(each) < max(each)
    ended = cli("report", run, "--fail-under", f"natural={least}")
    low = each.index(min(each))
    assert f"vanilla/epochs=1 (seed {low}): natural" in ended.err
    assert f"vanilla/epochs=1 (seed {1 - low})" not in ended.err


def test_models_that_are_not_trained_differ_in_their_attacks_alone(
    whole: Path, tmp_path: Path, cli: Cli
) -> None:
    saved = next((whole / "defenses").glob("vanilla-*"))
    words = ("--quiet", "--samples", 20, "--eps", 0.5, "--attack", "pgd/steps=2")
    named = ("--defense", f"saved:{saved}", "--defense", "vanilla/epochs=1")
    out = tmp_path / "run"
    assert cli("run", *words, *named, "--seeds", "0,1", "--out", out).status == 0
    of_saved, _ = _json(out / "table.json")["rows"]
    assert of_saved["natural"]["sd"] == 0.0
    caption = _json(out / "table.json")["caption"]
    line = f"saved:{saved}: the same model with each seed, so that only its attacks differ."
    assert line in caption
    assert "vanilla/epochs=1: the same model" not in caption
    keys = [
        _json(out / "seeds" / seed / "run.json")["rows"][0]["cells"]["pgd/steps=2"] for seed in "01"
    ]
    assert keys[0] != keys[1]
    assert cli("verify", out).status == 0


def test_a_choice_of_images_is_that_of_each_seed(tmp_path: Path, cli: Cli) -> None:
    words = ("--quiet", "--samples", 20, "--choose", "random", "--eps", 0.5)
    named = ("--defense", "vanilla/epochs=1", "--attack", "pgd/steps=2", "--out", tmp_path / "run")
    assert cli("run", *words, *named, "--seeds", "0,1").status == 0
    data = [_json(tmp_path / "run/seeds" / seed / "run.json")["data"]["order"] for seed in "01"]
    assert data[0] != data[1]
    caption = _json(tmp_path / "run/table.json")["caption"]
    assert "With each seed other images are chosen, which is in ± too." in caption
    assert cli("verify", tmp_path / "run").status == 0


def test_a_plan_has_the_rows_of_each_seed(tmp_path: Path, cli: Cli) -> None:
    ended = cli("run", *WORDS, "--out", tmp_path / "run", "--plan")
    assert ended.status == 0
    rows = [line.split("|")[1].strip() for line in ended.out.splitlines() if "| training" in line]
    assert rows == [
        f"{name}/epochs=1 (seed {seed})" for seed in (0, 1) for name in ("vanilla", "l2nnn")
    ]


def test_what_failed_says_with_which_seed(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = PGD.__call__

    def attacked(self: PGD, problem: Problem) -> Any:
        if problem.seed == 1:
            raise RuntimeError("no signs")
        return work(self, problem)

    monkeypatch.setattr(PGD, "__call__", attacked)
    words = ("--samples", 5, "--eps", 0.5, "--defense", "vanilla/epochs=1", "--seeds", "0,1")
    more = ("--attack", "pgd/steps=2", "--attack", "cw/steps=2/searches=1")
    ended = cli("run", *words, *more, "--out", tmp_path / "r")
    assert ended.status == 3
    assert "failed, and counted for nothing: vanilla/epochs=1 (seed 1): pgd/steps=2" in ended.err
    assert "vanilla/epochs=1 (seed 0): pgd/steps=2 broke " in ended.err
    assert "- vanilla/epochs=1 (seed 1): pgd/steps=2 failed: RuntimeError: no signs" in ended.out
    (row,) = _json(tmp_path / "r" / "table.json")["rows"]
    assert (row["per_attack"]["pgd/steps=2"], row["best_attack"]) == (None, None)
    assert row["per_attack"]["cw/steps=2/searches=1"] is not None
    assert row["flags"]["missing-classes"] == [0, 1]
