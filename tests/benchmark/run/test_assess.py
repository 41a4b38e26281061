"""The assessment of one model: its order, what it keeps in cells, and what becomes an error."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks import PGD, Facts, Problem, ThreatModel
from attacks.problem import NotApplicableError
from benchmark import Report, UserError
from benchmark.executors import IN_PROCESS
from benchmark.judge.evaluator import Samples
from benchmark.judge.records import MemoryCell
from benchmark.judge.subject import Terms
from benchmark.models.trained import Trained
from benchmark.run.assess import Settings, assessed, traits
from benchmark.run.looking import suited
from benchmark.spec.components import CERTIFIED, NATURAL
from benchmark.spec.lineup import Entry, Lineup
from tests.benchmark.small import Linear, N, Noted, X, Y

SETTINGS = Settings(ThreatModel("l2", 0.2), "table", "cpu", 4, Terms("float64"))


class _Attack:
    """Moves the samples at some places over the boundary, at a declared number of passes."""

    def __init__(self, *places: int, passes: int | None = None, fails: Any = None) -> None:
        self.places, self.passes, self.fails = places, passes, fails
        self.asked = Noted()

    @property
    def facts(self) -> Facts:
        return Facts("fixed-budget", passes=self.passes)

    def __call__(self, problem: Problem) -> Tensor:
        if self.fails is not None:
            raise self.fails
        self.asked += problem.index.tolist()
        moved = torch.isin(problem.index, torch.tensor(self.places))
        return problem.x + 0.15 * moved[:, None] * torch.tensor([1.0, 0, 0, 0])


class _Certified(Linear):
    def certified_radius(self, x: Tensor) -> Tensor:
        return (0.6 - x[:, 0]).abs()


class _Failing(Linear):
    def certified_radius(self, x: Tensor) -> Tensor:
        raise RuntimeError("no radius today")


def _assess(
    model: Any = None,
    cells: Callable[[str], MemoryCell] | None = None,
    mode: Any = "table",
    notify: Any = lambda report, label: None,
    **attacks: Any,
) -> Report:
    entries = {
        label: attack if isinstance(attack, Entry) else Entry(attack)
        for label, attack in attacks.items()
    }
    work = assessed(
        "small", model or Linear().eval(), Samples(X, Y, np.arange(N)), Lineup(entries), {},
        Settings(SETTINGS.threat, mode, "cpu", 4, Terms("float64")),
        cells or (lambda key: MemoryCell()), {"model": "small"}, notify=notify,
    )  # fmt: skip
    return IN_PROCESS.run(work)


def _order(*costs: int | None, mode: str, model: Any = None) -> list[str]:
    order: list[str] = []
    attacks = {f"costs_{cost}": _Attack(passes=cost) for cost in costs}
    _assess(model, mode=mode, notify=lambda report, label: order.append(label), **attacks)
    return order


def test_each_part_is_told_as_soon_as_it_is_done() -> None:
    order = _order(30, 10, mode="table", model=_Certified().eval())
    assert order == [NATURAL, CERTIFIED, "costs_30", "costs_10"]
    seen: list[tuple[str, bool]] = []
    _assess(
        notify=lambda report, label: seen.append((label, "late" in report.cells)),
        early=_Attack(), late=_Attack(),
    )  # fmt: skip
    assert seen == [(NATURAL, False), ("early", False), ("late", True)]


def test_a_cascade_begins_with_the_cheapest_and_ends_with_unknown_costs() -> None:
    assert _order(30, None, 10, 20, mode="cascade")[1:] == [
        "costs_10",
        "costs_20",
        "costs_30",
        "costs_None",
    ]
    assert _order(30, None, 10, mode="table")[1:] == ["costs_30", "costs_None", "costs_10"]


@pytest.mark.parametrize(
    ("mode", "asked"), [("table", list(range(N))), ("cascade", [0, 2, 4, 5])], ids=str
)
def test_attacks_of_a_cascade_work_on_what_is_left(mode: str, asked: list[int]) -> None:
    first, second = _Attack(1, 3, passes=1), _Attack(3, 4, passes=2)
    report = _assess(mode=mode, first=first, second=second)
    assert (first.asked, second.asked) == (list(range(N)), asked)
    # The best-attack counts each sample that any of them broke: 1, 3 and 4 of 6.
    assert report.survivors().tolist() == [0, 2, 5]


def test_a_member_of_a_series_works_on_what_the_others_left() -> None:
    second = _Attack()
    _assess(first=_Attack(0, 5), second=Entry(second, after=("first",)))
    assert second.asked == [1, 2, 3, 4]


def test_what_a_cell_holds_is_not_measured_again() -> None:
    kept: dict[str, MemoryCell] = {}

    def cells(key: str) -> MemoryCell:
        return kept.setdefault(key, MemoryCell())

    attack = PGD(steps=3)
    before = _assess(cells=cells, pgd=attack)
    count = {key: sum(len(block.index) for block in cell.blocks()) for key, cell in kept.items()}
    assert sorted(count.values()) == [6, 6]  # clean images and the attack
    again = _assess(cells=cells, pgd=attack)
    held = {key: sum(len(block.index) for block in cell.blocks()) for key, cell in kept.items()}
    assert held == count
    assert again.records.equals(before.records)
    _assess(cells=cells, pgd=PGD(steps=4))
    assert len(kept) == 3


def test_the_note_of_a_cell_keeps_the_first_environment() -> None:
    kept: dict[str, MemoryCell] = {}

    def cells(key: str) -> MemoryCell:
        return kept.setdefault(key, MemoryCell())

    _assess(cells=cells)
    (cell,) = kept.values()
    assert cell.note["identity"]["model"] == "small"
    cell.note["environment"] = "of an earlier run"
    _assess(cells=cells)
    assert cell.note["environment"] == "of an earlier run"
    cell.note["error"] = "what is no longer so"
    cell.note["identity"] = {}
    _assess(cells=cells)
    assert cell.note["environment"] != "of an earlier run"


def test_an_attack_that_raises_is_an_error_and_no_score() -> None:
    report = _assess(good=_Attack(2), bad=_Attack(fails=RuntimeError("out of\nluck")))
    assert list(report.errors) == ["bad"]
    assert "luck" in report.errors["bad"]
    assert "\n" not in report.errors["bad"]
    assert report.survivors().tolist() == [0, 1, 3, 4, 5]


def test_an_attack_that_does_not_apply_counts_for_nothing() -> None:
    report = _assess(good=_Attack(2), other=_Attack(fails=NotApplicableError("no arms")))
    assert (report.errors, report.inapplicable) == ({}, {"other": "no arms"})


def test_a_mistake_of_the_user_passes_through() -> None:
    with pytest.raises(UserError, match=r"^mend this$"):
        _assess(bad=_Attack(fails=UserError("mend this")))


def test_a_certificate_is_measured_where_there_is_one() -> None:
    assert _assess().radii is None
    radii = _assess(_Certified().eval()).radii
    assert radii is not None
    failed = _assess(_Failing().eval(), pgd=_Attack())
    assert failed.radii is None
    assert list(failed.errors) == [CERTIFIED]
    assert "no radius today" in failed.errors[CERTIFIED]


def test_a_model_that_fails_on_later_images_is_refused() -> None:
    class Fails(Linear):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 3:  # a block, and not those that are looked at first
                raise RuntimeError("three are a crowd")
            return super().forward(x)

    with pytest.raises(UserError, match=r"^the model fails on some clean images: .*crowd"):
        _assess(Fails().eval())


def test_an_attack_is_suited_to_the_model() -> None:
    class Variant(_Attack):
        def on(self, model: Any) -> PGD:
            return PGD(steps=len(model.weight))

    entry = Entry(Variant(), after=("first",))
    assert suited(Linear(), entry) == Entry(PGD(steps=4), after=("first",))
    plain = Entry(PGD())
    assert suited(Linear(), plain) is plain


def test_points_of_another_model_are_a_transfer() -> None:
    class Crafting:
        facts = Facts("fixed-budget", passes=7, transfers=True)

        def __call__(self, problem: Problem) -> Tensor:
            return problem.x

    class Offering(Linear):
        def surrogate(self) -> Linear:
            return self

    model, other = Linear(), Trained(Linear(), {})
    assert traits(Crafting(), model, {"a": other}) == {
        "minimises": False,
        "passes": 7,
        "transfers": True,
    }
    assert not traits(Crafting(), model, {"a": Trained(model, {})})["transfers"]
    offering = Offering()
    assert traits(Crafting(), offering, {"a": Trained(offering, {})})["transfers"]
    assert not traits(PGD(), model, {"a": other})["transfers"]
