"""Canaries: their functions are those of their twins, and no strong attack is fooled by one."""

import pytest
import torch

from attacks.threat import Norm
from benchmark import UserError
from benchmark.canaries import CANARIES, qualify, twins
from benchmark.canaries.qualify import tabulated
from benchmark.data.sets import load_dataset
from tests.conftest import Cli

X = load_dataset("digits").test.x[:60]

# What takes seconds under `strong`.
QUICK = ["sigmoid", "quantised-input", "thermometer", "jpeg", "winner-take-all", "large-logits"]


@pytest.mark.parametrize("name", [name for name, canary in CANARIES.items() if not canary.changes])
def test_what_changes_no_function_decides_as_its_twin(name: str) -> None:
    twin, masked = twins()[0], CANARIES[name].build(twins()).eval()
    with torch.no_grad():
        assert masked(X).argmax(1).equal(twin(X).argmax(1))


@pytest.mark.parametrize("name", [name for name, canary in CANARIES.items() if canary.changes])
def test_what_changes_it_is_nearly_as_accurate(name: str) -> None:
    y = load_dataset("digits").test.y[:60]
    masked = CANARIES[name].build(twins()).eval()
    with torch.no_grad():
        assert (masked(X).argmax(1) == y).double().mean() > 0.6


@pytest.mark.parametrize("name", QUICK)
def test_the_first_stages_of_strong_see_through_what_smoothing_knows(name: str) -> None:
    (outcome,) = qualify(["strong/quick"], samples=30, names=[name])
    assert outcome.is_broken


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", CANARIES)
def test_strong_breaks_each_or_a_flag_says_so(name: str, norm: Norm) -> None:
    (outcome,) = qualify(["strong"], norm, names=[name])
    assert not outcome.is_fooled
    # All but these are broken to the level of their twins.
    assert outcome.is_broken or name in ("shattered", "lying-certificate")


def test_a_table_counts_who_is_fooled() -> None:
    outcomes = list(qualify(["pgd/steps=5", "strong/quick"], samples=10, names=["softmax"]))
    lines = tabulated(outcomes).splitlines()
    columns = [column.strip() for column in lines[0].split("|")]
    assert columns == ["", "canary", "what it does", "pgd/steps=5", "strong/quick", ""]
    assert lines[-1].startswith("| **fooled by** |")


def test_an_attack_that_fails_is_said_to(cli: Cli) -> None:
    ended = cli("canaries", "--attack", "pgd/steps=2", "--canary", "argmax", "--samples", "20")
    assert "| error" in ended.out
    assert "pgd/steps=2 failed on argmax: NoGradientError: the model gives no" in ended.out


def test_an_unknown_canary_and_norm_are_refused(cli: Cli) -> None:
    with pytest.raises(UserError, match="did you mean 'softmax'"):
        next(qualify(["pgd"], names=["softmx"]))
    ended = cli("canaries", "--norm", "l3")
    assert ended.status != 0
    assert "'l3' is not one of 'l2', 'linf', 'l1'" in ended.err
