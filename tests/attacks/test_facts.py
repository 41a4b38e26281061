"""What attacks say of themselves, and what wrappers make of what their bases say."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from torch import Tensor, nn

from attacks import (
    APGD,
    PGD,
    Attack,
    Boundary,
    CanMaximise,
    CanMinimise,
    CarliniWagner,
    Facts,
    HasVariants,
    Problem,
    Seeded,
    Square,
    Strong,
    Targeted,
    Transfer,
    Wrapper,
)
from attacks.problem import minimising
from attacks.threat import NORMS
from attacks.wrappers import BestArm, RoBinEvaluation, Top2


@dataclass(frozen=True)
class Around(Wrapper):
    """Says nothing of its passes."""

    def __call__(self, problem: Problem) -> Tensor:
        return self.base(problem)


@dataclass(frozen=True)
class OfAnyKind:
    """Has the facts that it is given."""

    facts: Facts

    def __call__(self, problem: Problem) -> Tensor:
        return problem.x


def test_the_least_that_an_attack_says_is_its_family() -> None:
    facts = Facts("fixed-budget")
    assert facts.norms == ("l2", "linf")
    assert facts.passes is None
    assert (facts.minimises, facts.by_block, facts.transfers) == (False, False, False)
    assert facts.sources == ()


def test_only_a_minimal_norm_attack_minimises() -> None:
    with pytest.raises(ValueError, match="only a minimal-norm attack minimises"):
        Facts("fixed-budget", minimises=True)


@pytest.mark.parametrize(
    ("attack", "facts"),
    [
        (PGD(steps=7, restarts=2), Facts("fixed-budget", NORMS, passes=16)),
        (APGD(steps=7), Facts("fixed-budget", NORMS, passes=8)),
        (Square(steps=50, restarts=2), Facts("fixed-budget", NORMS, passes=101)),
        (
            CarliniWagner(steps=10, searches=3, restarts=2),
            Facts("minimal-norm", passes=2 * 3 * (1 + 10 + 10)),
        ),
        (
            CarliniWagner(steps=10, searches=1, minimize=True),
            Facts("minimal-norm", passes=21, minimises=True),
        ),
        (Boundary(steps=100), Facts("minimal-norm", ("l2",), passes=2 + 4 * 35 + 100)),
        (
            Boundary(steps=100, minimize=True),
            Facts("minimal-norm", ("l2",), passes=2 + 9 * 35 + 100, minimises=True),
        ),
    ],
)
def test_facts_follow_from_options(attack: Attack, facts: Facts) -> None:
    assert attack.facts == facts


def test_strong_counts_the_attacks_that_it_ends_with() -> None:
    more, fewer = (Strong(queries=n).facts.passes or 0 for n in (2000, 1000))
    asked = [
        (Square(steps=n).facts.passes or 0) + (Boundary(steps=n).facts.passes or 0) + n // 8
        for n in (2000, 1000)
    ]
    assert more - fewer == asked[0] - asked[1] > 0


EVERYTHING = Facts("minimal-norm", ("linf",), 10, True, True, True, ("a",))


@pytest.mark.parametrize(
    ("wrapper", "changed"),
    [
        (Around, {"passes": None}),
        (BestArm, {"passes": None}),
        (RoBinEvaluation, {"passes": None}),
        (Top2, {"passes": 11}),
        (Targeted, {"passes": 1 + 9 * 11}),
        (Transfer, {"passes": 12}),
        (Seeded, {"passes": 22}),
    ],
)
def test_a_wrapper_has_the_facts_of_its_base_but_for_the_passes(
    wrapper: Any, changed: dict[str, Any]
) -> None:
    assert wrapper(OfAnyKind(EVERYTHING)).facts == replace(EVERYTHING, **changed)
    unknown = replace(EVERYTHING, passes=None)
    assert wrapper(OfAnyKind(unknown)).facts == unknown


def test_transfers_and_their_sources_are_said_through_wrappers() -> None:
    plain = PGD()
    assert not plain.facts.transfers
    assert Transfer(plain).facts.sources == Seeded(plain).facts.sources == ()
    assert Around(Transfer(plain)).facts.transfers
    assert not Seeded(plain).facts.transfers
    nested = Seeded(Around(Transfer(plain, source="inner")), source="outer")
    assert nested.facts.sources == ("outer", "inner")


def test_minimising_reaches_the_base_and_leaves_what_has_no_choice() -> None:
    for attack in (CarliniWagner(), Boundary()):
        assert isinstance(attack, CanMinimise)
        assert not attack.facts.minimises
        assert minimising(attack) == replace(attack, minimize=True)
        assert minimising(Targeted(Around(attack))).facts.minimises
    for other in (PGD(), OfAnyKind(EVERYTHING), Targeted(PGD())):
        assert minimising(other) == other


def test_what_only_some_attacks_can_do_is_told_by_their_methods() -> None:
    assert [isinstance(a, CanMaximise) for a in (PGD(), APGD(), Square())] == [True, True, False]
    robin = RoBinEvaluation(PGD())
    assert isinstance(robin, HasVariants)
    assert not isinstance(PGD(), HasVariants)
    assert robin.on(nn.Identity()) == PGD()


def test_what_lacks_facts_is_no_attack() -> None:
    @dataclass(frozen=True)
    class Bare:
        family: ClassVar = "fixed-budget"

        def __call__(self, problem: Problem) -> Tensor:
            return problem.x

    bare: Any = Bare()
    assert not isinstance(bare, Attack)
    assert not isinstance(Around(bare), Attack)
