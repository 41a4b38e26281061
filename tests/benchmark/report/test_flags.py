"""Each sign that a number is not to be trusted: raised where it should be, and nowhere else."""

import ast
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, ThreatModel
from benchmark import evaluate
from benchmark.data.sets import load_dataset
from benchmark.executors.executor import IN_PROCESS, silent
from benchmark.judge import evaluator, examination, probes, records, subject
from benchmark.judge.evaluator import Samples
from benchmark.judge.examination import examine
from benchmark.judge.probes import PROBED, probe
from benchmark.judge.records import Block, MemoryCell
from benchmark.report.flags import FLAGS
from benchmark.report.report import Report
from benchmark.spec.components import NATURAL
from benchmark.spec.run_spec import Mode
from benchmark.studies import outputs
from defenses import AdversarialTraining, Vanilla, initialise, train
from tests.benchmark.conftest import Cli
from tests.benchmark.small import Linear, Returning, Wrapped, evaluate_small

# From records made by hand.

TOTAL = 200


def _cell(
    index: range, broken: set[int], forwards: int | dict[int, int], backwards: int, **note: Any
) -> MemoryCell:
    """One block; `forwards` of each sample, or of those named, where others take 100."""
    cell, places = MemoryCell(), np.array(index)
    hit = np.array([i in broken for i in index])
    if isinstance(forwards, int):
        spent = np.full(len(places), forwards)
    else:
        spent = np.array([forwards.get(i, 100) for i in index])
    cell.add(
        Block(
            places, np.ones_like(places), np.where(hit, 0, 1), hit, np.where(hit, 0.1, np.nan),
            spent, np.full_like(places, backwards), np.zeros_like(hit), np.zeros(len(hit)),
            np.zeros((int(hit.sum()), 1), np.float32),
        )
    )  # fmt: skip
    cell.close(note)
    return cell


def _report(mode: Mode = "table") -> Report:
    report = Report("a defense", ThreatModel("l2", 0.5), mode, TOTAL)
    report.add(NATURAL, "k", _cell(range(TOTAL), set(), 0, 0), None)
    return report


def _flags(mode: Mode = "table", **cells: MemoryCell) -> list[str]:
    report = _report(mode)
    for label, cell in cells.items():
        report.add(label, label, cell, None)
    return list(report.flags)


def _attack(broken: range, backwards: int = 10, **note: Any) -> MemoryCell:
    return _cell(range(TOTAL), set(broken), 100, backwards, **note)


def test_an_attack_without_gradients_that_beats_those_with_them_is_flagged() -> None:
    square, pgd, weak = _attack(range(50), 0), _attack(range(40)), _attack(range(2))
    assert _flags(pgd=pgd, square=square, weak=weak) == ["gradient-free"]
    # The best of each kind are compared.
    assert _flags(pgd=pgd, cw=_attack(range(60)), square=square) == []
    assert _flags(square=square) == []


def test_what_chance_would_have_is_not_flagged() -> None:
    pgd = _attack(range(40))
    # 5 samples to none are unlikely by chance, 4 to none are not, nor are 20 to 15.
    assert _flags(pgd=pgd, square=_attack(range(45), 0)) == ["gradient-free"]
    assert _flags(pgd=pgd, square=_attack(range(44), 0)) == []
    assert _flags(pgd=pgd, square=_attack(range(15, 60), 0)) == []


def test_a_transfer_attack_that_beats_the_white_box_ones_is_flagged() -> None:
    transfer = _attack(range(60), transfers=True)
    assert _flags(pgd=_attack(range(40)), transfer=transfer) == ["transfer"]
    assert _flags(pgd=_attack(range(60)), transfer=transfer) == []
    # It is no gradient-based attack on the model itself.
    found = _flags(pgd=_attack(range(40)), transfer=transfer, square=_attack(range(60), 0))
    assert found == ["gradient-free", "transfer"]


def test_points_crafted_on_the_model_itself_are_no_transfer() -> None:
    x = torch.full((200, 4), 0.5)
    options: dict[str, Any] = {
        "x": x, "y": torch.zeros(200, dtype=torch.int64), "eps": 0.4,
        "attacks": ["pgd/steps=1/step_size=1e-3/random_start=no", "transfer:pgd/source=other"],
    }  # fmt: skip
    model = Linear()
    other = evaluate(model, peers={"other": Linear()}, **options)
    itself = evaluate(model, peers={"other": model}, **options)
    assert other.per_attack == itself.per_attack
    assert "transfer" in other.flags
    assert "transfer" not in itself.flags


def test_in_a_cascade_attacks_are_not_compared() -> None:
    square = _cell(range(40, TOTAL), set(range(40, 100)), 100, 0)
    assert _flags("cascade", pgd=_attack(range(40)), square=square) == []


def _slow(late: int, **note: Any) -> MemoryCell:
    """50 samples broken, the last so many of them in the last quarter of 100 forwards."""
    spent = dict.fromkeys(range(50 - late), 10) | dict.fromkeys(range(50 - late, 50), 80)
    return _cell(range(TOTAL), set(range(50)), spent, 10, **note)


def test_samples_broken_in_the_last_quarter_are_flagged() -> None:
    assert _flags(pgd=_slow(4, passes=100)) == ["not-converged"]
    assert _flags(pgd=_slow(3, passes=100)) == []
    # It counts for nothing that an attack breaks late what another broke early,
    assert _flags(pgd=_slow(4, passes=100), cw=_slow(0, passes=100)) == []
    assert _flags(pgd=_slow(4, passes=100), cw=_slow(9, passes=100)) == ["not-converged"]
    # or where it minimises, or goes on with what it has broken, or does not say that it stops.
    assert _flags(cw=_slow(4, passes=100, minimises=True)) == []
    assert _flags(fgsm=_attack(range(50), passes=100)) == []
    assert _flags(foreign=_slow(4)) == []


def test_an_attack_that_is_its_base_on_a_model_is_judged_as_that() -> None:
    """So that the evaluation of arms hides nothing about models that have none."""
    report = evaluate_small(attacks=["robin:pgd/steps=5", "pgd/steps=5"])
    assert report.keys["robin:pgd/steps=5"] == report.keys["pgd/steps=5"]


def test_where_hardly_a_sample_is_left_nothing_could_fall_further() -> None:
    spent = dict.fromkeys(range(150), 10) | dict.fromkeys(range(150, 199), 80)
    cell = _cell(range(TOTAL), set(range(199)), spent, 10, passes=100)
    assert _flags(pgd=cell) == []


@pytest.mark.parametrize(("last", "flags"), [(3, []), (4, ["not-converged"])])
@pytest.mark.parametrize("mode", ["table", "cascade"])
def test_a_series_that_still_falls_at_its_end_is_flagged(
    last: int, flags: list[str], mode: Mode
) -> None:
    report = _report(mode)
    report.add("a", "a", _attack(range(50)), None)
    cell = _cell(range(50, TOTAL), set(range(50, 50 + last)), 100, 10)
    report.add("b", "b", cell, None, ("a",))
    assert list(report.flags) == flags


def test_a_series_that_a_cascade_turns_round_ends_with_its_last_in_time() -> None:
    report = _report("cascade")
    report.add("cheap", "b", _attack(range(50)), None, ("dear",))
    report.add("dear", "a", _cell(range(50, TOTAL), set(), 100, 10), None)
    assert report.flags == {}


@pytest.mark.parametrize(
    ("of_class", "right", "flagged"),
    [
        # Of ten classes, a guess is right on a tenth, and one answer on half of the samples.
        (100, 100, True),
        (100, 101, False),
        (20, 20, True),
        (20, 21, False),
        (1, 20, True),  # a guess is better than any one answer
        (1, 21, False),
        # Of samples of one class, one answer says nothing, as nothing is better.
        (TOTAL, TOTAL, False),
        (TOTAL, 20, True),
    ],
)
def test_what_a_guess_or_one_answer_could_do_is_flagged(
    of_class: int, right: int, flagged: bool
) -> None:
    cell = _cell(range(TOTAL), set(range(right, TOTAL)), 0, 0)
    (block,) = cell.blocks()
    labels = np.where(np.arange(TOTAL) < of_class, 0, 1 + np.arange(TOTAL))
    predicted = np.where(block.broken, TOTAL + 1, labels)
    cells = MemoryCell()
    cells.add(dataclasses.replace(block, label=labels, predicted=predicted))
    report = Report("a defense", ThreatModel("l2", 0.5), "table", TOTAL, logits=10)
    report.add(NATURAL, "k", cells, None)
    assert list(report.flags) == (["chance"] if flagged else [])


def test_a_constant_model_is_flagged_where_classes_are_not_balanced() -> None:
    x, y = torch.rand(20, 4), (torch.arange(20) >= 14).long()
    constant = Wrapped(lambda z: 0 * z + torch.tensor([1.0, 0.0])).eval()
    report = evaluate(constant, x, y, eps=0.1, attacks=[PGD(steps=1)])
    assert report.natural == 0.7
    assert "chance" in report.flags


def test_flags_of_records_hold_after_report_and_verify(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    words = ["--plugin", tmp_path / "mine.py", "--samples", 100, "--eps", 0.5, "--quiet"]
    words += ["--defense", "vanilla/epochs=2", "--defense", "detached/epochs=2"]
    words += ["--attack", "pgd/steps=5", "--attack", "square/steps=200"]
    words += ["--attack", "transfer:pgd/source=vanilla/epochs=2"]
    folder = tmp_path / "run"
    ended = cli("run", *words, "--out", folder)
    assert ended.status == 0, ended.err
    for out in (cli("report", folder, "--wide").out, cli("verify", folder, "--wide").out):
        lines = [line for line in out.splitlines() if line.startswith("- detached/epochs=2: ")]
        found = [line.split(": ")[1] for line in lines]
        assert {"gradient-free", "large-eps", "transfer", "zero-gradient"} <= set(found)
        assert not [line for line in out.splitlines() if line.startswith("- vanilla/epochs=2: ")]


PLUGIN = """
from dataclasses import dataclass

from torch import nn

from defenses import Vanilla


class Detached(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        # As long as it trains, parameters get gradients; images never do.
        return self.network(x.detach()) + 0 * x.sum()


@dataclass(frozen=True, kw_only=True)
class DetachedRecipe(Vanilla):
    def build(self, shape, classes):
        return Detached(super().build(shape, classes))


DEFENSES = {"detached": DetachedRecipe}
"""


# From probes.


def _probed(model: nn.Module, eps: float = 0.2, x: Tensor | None = None) -> set[str]:
    x = torch.full((70, 4), 0.5) if x is None else x
    samples = Samples(x, torch.zeros(len(x), dtype=torch.int64), np.arange(len(x)))
    subject = IN_PROCESS.hold(examine(model.eval(), x, torch.device("cpu")))
    threat, batch = ThreatModel("l2", eps), samples.at(np.arange(len(x))[:PROBED])
    found = [probe(subject, threat, 0, block, batch, silent) for block in (7, 256)]
    assert found[0] == found[1]
    return found[0]


class _Sharp(Linear):
    """The linear model, with a ripple whose slope is far steeper than that of what it hides."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 1e-3 * torch.sin(1e5 * x))


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        (lambda z: z, set()),
        (lambda z: 1e4 * z, set()),
        (lambda z: 1e-30 * z, set()),
        (lambda z: z.detach() + 0 * z, {"zero-gradient", "large-eps"}),
        (lambda z: torch.sigmoid(400 * z), {"zero-gradient"}),
        # Another class is nowhere: by no fault of the gradient, but no attack can show that.
        (lambda z: z + torch.tensor([5.0, 0]), {"zero-gradient", "large-eps"}),
        (lambda z: z.detach().requires_grad_() * 1, {"zero-gradient", "large-eps"}),
    ],
)
def test_a_model_is_probed(change: Callable[[Tensor], Tensor], flags: set[str]) -> None:
    assert flags <= _probed(Wrapped(change))
    assert flags or not _probed(Wrapped(change))


def test_a_loss_that_does_not_rise_along_its_gradient_is_flagged() -> None:
    x = 0.5 + 0.05 * torch.rand(70, 4, generator=torch.Generator().manual_seed(0))
    assert "no-ascent" in _probed(_Sharp(), x=x)
    assert _probed(Linear(), x=x) == set()


def test_an_eps_within_rounding_is_no_reason_for_a_flag() -> None:
    assert _probed(Linear(), eps=1e-7) == set()


def test_a_backward_that_fails_is_flagged() -> None:
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = Wrapped(lambda z: Failing.apply(z))  # type: ignore[no-untyped-call]
    assert _probed(model) == {"zero-gradient"}


def test_without_a_sample_that_is_classified_correctly_there_is_nothing_to_see() -> None:
    model = Wrapped(lambda z: -z.detach()).eval()
    report = evaluate_small(model, attacks=[Returning(lambda p: p.x)])
    assert list(report.flags) == ["chance"]


def test_probes_cost_little_and_no_attack_is_charged_for_them() -> None:
    calls = 0

    def count(logits: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return logits.detach() + 0 * logits

    _probed(Wrapped(count))
    assert calls / (10 + 1) <= 100
    report = evaluate_small(attacks=[Returning(lambda p: p.x)])
    assert report.records["forwards"].sum() == 0


def test_every_flag_says_what_to_do_next() -> None:
    assert {"gradient-free", "transfer", "not-converged", "large-eps", "no-ascent"} <= set(FLAGS)
    for code in ("gradient-free", "transfer", "not-converged", "large-eps", "no-ascent"):
        assert any(word in FLAGS[code].remedy for word in ("add ", "attack a", "give more"))
    for flag in FLAGS.values():
        assert flag.remedy
        assert flag.remedy in flag.line or flag.joint is None


def test_every_flag_is_raised_by_records_or_by_a_look_at_the_model() -> None:
    assert all((flag.holds is None) != (flag.seen_by is None) for flag in FLAGS.values())


def test_the_codes_that_looks_at_a_model_raise_are_those_of_flags() -> None:
    """A code that is misspelt where it is raised would be that of no flag."""
    raised = {
        (code, f"{module.__name__}.{function.name}")
        for module in (evaluator, examination, probes, records, subject, outputs)
        for function in ast.parse(inspect.getsource(module)).body
        if isinstance(function, ast.FunctionDef | ast.ClassDef)
        for code in _codes(function)
    }
    named = {
        (code, f"{flag.seen_by.__module__}.{flag.seen_by.__qualname__}")
        for code, flag in FLAGS.items()
        if flag.seen_by is not None
    }
    assert raised == named


def _codes(function: ast.AST) -> Iterator[str]:
    """The texts in sets, in calls of `flags.add`, and that are keys of the dictionary `flagged`."""
    for node in ast.walk(function):
        texts: list[Any] = []
        if isinstance(node, ast.Set):
            texts = node.elts
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("flags.add"):
            texts = node.args
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "flagged":
            assert isinstance(node.value, ast.Dict)
            texts = node.value.keys
        yield from (text.value for text in texts if isinstance(text, ast.Constant))


def test_flags_are_listed_in_lines_that_can_be_read(cli: Cli) -> None:
    ended = cli("list", "flags")
    assert (ended.status, ended.err) == (0, "")
    assert max(map(len, ended.out.splitlines())) <= 100
    listed = [entry.split() for entry in ended.out.strip().split("\n\n")]
    assert [words[0] for words in listed] == list(FLAGS)
    for words, flag in zip(listed, FLAGS.values(), strict=True):
        for said in (flag.meaning, flag.remedy, flag.raised_by, flag.rule):
            assert said in " ".join(words)


# Ordinary models raise none.


@pytest.fixture(scope="module")
def ordinary() -> dict[str, nn.Module]:
    digits = load_dataset("digits").train
    threat, models = ThreatModel("l2", 0.5), {}
    for recipe in (Vanilla(epochs=15), AdversarialTraining(epochs=15, steps=5)):
        model = initialise(recipe, (1, 8, 8), 10, 0)
        train(recipe, model, digits.x, digits.y, threat=threat, seed=0)
        models[type(recipe).__name__] = model
    return models


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.5), ("linf", 0.1)])
@pytest.mark.parametrize(
    "suite", ["strong", *(pytest.param(s, marks=pytest.mark.slow) for s in ("quick", "standard"))]
)
@pytest.mark.parametrize("name", ["Vanilla", "AdversarialTraining"])
def test_ordinary_models_are_not_flagged(
    ordinary: dict[str, nn.Module], name: str, suite: str, norm: Any, eps: float
) -> None:
    test = load_dataset("digits").test
    report = evaluate(ordinary[name], test.x[:100], test.y[:100], norm=norm, eps=eps, suite=suite)
    assert 0.1 < report.best_attack < report.natural
    assert report.flags == {}


def test_the_linear_model_is_not_flagged() -> None:
    for suite in ("quick", "standard", "strong"):
        for eps in (0.05, 0.2):
            assert evaluate_small(attacks=[], suite=suite, eps=eps).flags == {}
    assert evaluate_small(attacks=[PGD(restarts=3)]).flags == {}
