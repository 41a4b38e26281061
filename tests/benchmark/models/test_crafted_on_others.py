"""Attacks that craft their points on other models of the run."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, Facts, Problem
from attacks.wrappers.transfer import Transfer
from attacks.wrappers.wrapper import Wrapper
from benchmark import evaluate
from benchmark.data.sets import load_dataset
from benchmark.models.trained import load_saved
from benchmark.spec.lineup import choose
from benchmark.spec.registry import ATTACKS
from benchmark.spec.run_spec import make_spec
from tests.benchmark.conftest import Cli
from tests.benchmark.small import Dropping, Linear, Returning, evaluate_small, refusal


@dataclass(frozen=True)
class Borrowing:
    """Does with a peer what a function says."""

    use: Callable[[Problem, nn.Module], Tensor]
    source: str | None = "other"

    @property
    def facts(self) -> Facts:
        return Facts("fixed-budget", ("l2",), sources=(self.source,) if self.source else ())

    def __call__(self, problem: Problem) -> Tensor:
        peer = problem.peers[self.source or ""]
        assert isinstance(peer, nn.Module)
        return self.use(problem, peer)


@dataclass(frozen=True)
class Around(Wrapper):
    def __call__(self, problem: Problem) -> Tensor:
        return self.base(problem)


class Turned(Linear):
    """Falls with the second pixel, not the first."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1))


def test_points_are_crafted_on_the_peer() -> None:
    transfer, pgd = Transfer(PGD(steps=5), source="other"), PGD(steps=5)
    on = {
        name: evaluate_small(attacks=[transfer, pgd], peers={"other": model})
        for name, model in (("same", Linear()), ("turned", Turned()))
    }
    for report in on.values():
        assert (report.per_attack["PGD"], report.errors) == (0.0, {})
    assert on["same"].per_attack["Transfer"] == 0.0
    # A step along another pixel does not change this one's class.
    assert on["turned"].per_attack["Transfer"] == 1.0
    named = evaluate_small(
        attacks=["transfer:pgd/steps=5/source=my other/one"], peers={"my other/one": Linear()}
    )
    assert named.best_attack == 0.0


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_an_attack_gets_frozen_copies_of_its_own(precision: str) -> None:
    def use(problem: Problem, peer: nn.Module) -> Tensor:
        assert list(problem.peers) == ["other"]
        assert not any(module.training for module in peer.modules())
        assert not any(parameter.requires_grad for parameter in peer.parameters())
        assert all(parameter.dtype == problem.x.dtype for parameter in peer.parameters())
        assert all(bool((parameter != 7).all()) for parameter in peer.parameters())
        for parameter in peer.parameters():
            parameter.fill_(7)
        peer.train()
        return problem.x

    model = Dropping().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = evaluate_small(
        attacks=[Borrowing(use), Borrowing(use)],
        peers={"other": model, "unused": Linear()},
        precision=precision,
        block=2,
    )
    assert report.errors == {}
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_attack_without_a_source_gets_no_peers() -> None:
    seen: list[int] = []

    def points(problem: Problem) -> Tensor:
        seen.append(len(problem.peers))
        return problem.x

    evaluate_small(attacks=[Returning(points)], peers={"other": Linear()})
    assert seen == [0]


def test_sources_are_found_through_bases() -> None:
    inner = Borrowing(lambda problem, peer: problem.x, "inner")
    assert Around(Around(inner)).facts.sources == ("inner",)
    assert Transfer(Around(inner), source="outer").facts.sources == ("outer", "inner")
    assert PGD().facts.sources == Transfer(PGD()).facts.sources == ()


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("othre", "source 'othre' is unknown: did you mean 'other'?"),
        ("x", "source 'x' is unknown: name other or saved:FOLDER"),
        ("saved:no/where", "source 'saved:no/where': no saved model in no/where"),
    ],
)
def test_a_source_that_is_unknown_is_refused_before_any_attack(source: str, line: str) -> None:
    def use(problem: Problem, peer: nn.Module) -> Tensor:
        raise AssertionError

    name = f"transfer:pgd/source={source}"
    said = refusal(attacks=[Borrowing(use), name], peers={"other": Linear()})
    assert said.startswith(f"attack {name!r}: {line}")


def test_a_peer_that_is_no_model_is_refused() -> None:
    said = refusal(peers={"other": "model"})
    assert said == "peer 'other' must be a torch.nn.Module, not str"


# On disk.

SETTING = ("run", "--quiet", "--samples", 48, "--block", 16, "--eps", 0.5)
VANILLA, ROBUST = "vanilla/epochs=4", "pgd-at/epochs=2/steps=2"
TRANSFER = f"transfer:pgd/steps=5/source={VANILLA}"
WORDS = (*SETTING, "--defense", ROBUST, "--defense", VANILLA, "--attack", TRANSFER)


def _rows(folder: Path, name: str = "table.json") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / name).read_text())["rows"]
    return rows


def test_a_run_transfers_from_one_of_its_defenses_to_the_others(tmp_path: Path, cli: Cli) -> None:
    ended = cli(*WORDS, "--attack", "pgd/steps=5", "--out", tmp_path)
    assert (ended.status, ended.err) == (0, "")
    robust, vanilla = _rows(tmp_path)
    assert robust["errors"] == vanilla["errors"] == {}
    # It is what `evaluate` says of the two models.
    models = {
        row["defense"]: load_saved(tmp_path / row["model"]).model
        for row in _rows(tmp_path, "run.json")
    }
    test = load_dataset("digits").test
    for row in (robust, vanilla):
        by_hand = evaluate(
            models[row["defense"]], test.x[:48], test.y[:48],
            eps=0.5, attacks=[TRANSFER], peers=models, block=16,
        )  # fmt: skip
        assert by_hand.per_attack[TRANSFER] == row["per_attack"][TRANSFER] < row["natural"]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert cli(*WORDS, "--attack", "pgd/steps=5", "--out", tmp_path).status == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == times
    assert cli("verify", tmp_path).status == 0


def test_another_model_of_the_same_name_is_measured_anew(tmp_path: Path, cli: Cli) -> None:
    saved = tmp_path / "saved"
    train = ("train", "digits", "vanilla/epochs=1", "--quiet", "--out")
    assert cli(*train, saved).status == 0
    words = (*SETTING, "--defense", VANILLA, "--attack", f"transfer:pgd/source=saved:{saved}")
    folder = tmp_path / "run"
    assert cli(*words, "--out", folder).status == 0
    first = _rows(folder, "run.json")[0]["cells"]
    assert cli(*words, "--out", folder).status == 0
    assert _rows(folder, "run.json")[0]["cells"] == first

    saved.rename(tmp_path / "before")
    assert cli(*train, saved, "--seed", 1).status == 0
    assert cli(*words, "--out", folder).status == 0
    second = _rows(folder, "run.json")[0]["cells"]
    assert second["natural"] == first["natural"]
    label = f"transfer:pgd/source=saved:{saved}"
    assert second[label] != first[label]
    assert cli("verify", folder).status == 0


def test_a_run_that_names_an_unknown_source_does_no_work(tmp_path: Path, cli: Cli) -> None:
    words = (*SETTING, "--defense", "vanilla", "--attack", "transfer:pgd/source=vanila")
    ended = cli(*words, "--out", tmp_path / "run")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == (
        "bestattack: attack 'transfer:pgd/source=vanila': source 'vanila' is unknown: "
        "did you mean 'vanilla'?\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_saved_source_in_a_spec_is_found_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    attacks = ["transfer:pgd/steps=3,4/source=saved:m"]
    spec = make_spec({"eps": 1, "defenses": ["vanilla"], "attacks": attacks})
    entries = choose(None, spec.attacks, spec.threat).entries
    assert list(entries) == [f"transfer:pgd/steps={n}/source=saved:m" for n in (3, 4)]
    for entry in entries.values():
        assert entry.attack.facts.sources == (f"saved:{tmp_path}/m",)


def test_a_base_of_a_plugin_is_part_of_what_tells_cells_apart(tmp_path: Path, cli: Cli) -> None:
    plugin = tmp_path / "mine.py"
    text = "from attacks import PGD\n\n\nclass Mine(PGD):\n    pass\n\n\nATTACKS = {'mine': Mine}\n"
    words = (*SETTING, "--defense", "vanilla/epochs=1", "--attack", "targeted:mine/steps=2")
    keys = []
    for comment in ("", "# changed\n"):
        plugin.write_text(text + comment)
        ATTACKS._local.clear()
        assert cli(*words, "--plugin", plugin, "--out", tmp_path / "run").status == 0
        keys.append(_rows(tmp_path / "run", "run.json")[0]["cells"])
    assert keys[0]["natural"] == keys[1]["natural"]
    assert keys[0]["targeted:mine/steps=2"] != keys[1]["targeted:mine/steps=2"]
