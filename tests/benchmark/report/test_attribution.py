"""Which attack broke what, and which order would have been sooner, of records made by hand."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from attacks import ThreatModel
from benchmark.errors import UserError
from benchmark.judge.records import Block, MemoryCell
from benchmark.report.breaks import cost_of, soonest
from benchmark.report.breaks.attribution import render
from benchmark.report.breaks.cascades import MOST_EXACT
from benchmark.report.report import Report
from benchmark.spec.components import BEST, NATURAL
from benchmark.spec.run_spec import Mode
from tests.benchmark.small import Linear, evaluate_small


@dataclass
class Did:
    """What an attack did: the samples that it broke, at so many passes, and those it did not, at
    `full` passes. `shares` are those of draws of a randomised model instead."""

    broke: Mapping[int, int]
    full: int
    after: tuple[str, ...] = ()
    stages: Mapping[int, str] | None = None
    shares: Mapping[int, float] | None = None


def _cell(index: Sequence[int], did: Did) -> MemoryCell:
    """One backward pass on each sample, all else forward ones; 0.5 seconds in all."""
    cell = MemoryCell()
    if not len(index):
        return cell
    places = np.array(index, dtype=np.int64)
    rate = np.array([float(i in did.broke) for i in index])
    if did.shares is not None:
        rate = np.array([did.shares.get(i, 0.0) for i in index])
    broken = rate > 0.5
    passes = np.array([did.broke.get(i, did.full) for i in index], dtype=np.int64)
    backwards = np.minimum(passes, 1)
    stage = np.array([(did.stages or {}).get(i, "") for i in index])
    cell.add(
        Block(
            places, np.zeros_like(places), np.where(broken, 1, 0),
            broken, np.where(rate > 0, 0.1, np.nan), passes - backwards, backwards,
            np.zeros(len(index), bool), np.full(len(index), 0.5 / len(index)),
            np.zeros((int((rate > 0).sum()), 2), np.float32), rate, rate, stage,
        )
    )  # fmt: skip
    return cell


def _report(
    total: int, attacks: Mapping[str, Did | str], mode: Mode = "table", name: str = "d"
) -> Report:
    """A report on samples of which the last one is misclassified clean; a text is why an attack
    fails."""
    report = Report(name, ThreatModel("l2", 0.5), mode, total)
    report.add(NATURAL, "k", _cell(range(total), Did({total - 1: 0}, 0)), None)
    for label, did in attacks.items():
        if isinstance(did, str):
            report.add(label, "k", MemoryCell(), did)
        else:
            cell = _cell(report.remaining(did.after).tolist(), did)
            report.add(label, "k", cell, None, did.after)
    assert report.lacking == set()
    return report


# Four samples, of which the last is misclassified clean: `thorough` breaks what `quick` does, and
# one more; `odd` breaks one that no other does.
QUICK = Did({0: 2}, 3)
THOROUGH = Did({0: 4, 1: 6}, 10, stages={0: "survey", 1: "restarts"})
ODD = Did({2: 5}, 8)


def _table() -> Report:
    return _report(4, {"quick": QUICK, "thorough": THOROUGH, "odd": ODD})


def test_a_table_of_which_all_numbers_are_known() -> None:
    told = _table().attribution()
    samples = told.per_sample.drop(columns=["first seconds", "cheapest seconds"])
    assert samples.values.tolist() == [
        [0, "quick", "", 2, "quick", "", 2, 2],
        [1, "thorough", "restarts", 3 + 6, "thorough", "restarts", 6, 1],
        [2, "odd", "", 3 + 10 + 5, "odd", "", 5, 1],
    ]
    # Half a second is divided by passes: 2, 3 and 3 of quick; 4, 6 and 10; 8, 8 and 5.
    assert told.per_sample["first seconds"].tolist() == pytest.approx(
        [0.5 * 2 / 8, 0.5 * (3 / 8 + 6 / 20), 0.5 * (3 / 8 + 10 / 20 + 5 / 21)]
    )
    assert told.per_sample["cheapest seconds"].tolist() == pytest.approx(
        [0.5 * 2 / 8, 0.5 * 6 / 20, 0.5 * 5 / 21]
    )
    # Per pass, quick breaks 1/8; of what it leaves, thorough breaks 1/16 and odd 1/13.
    assert told.per_attack.set_index("attack").T.to_dict() == {
        "quick": _numbers(3, 1, 0, 1, newly=1, so_far=1, work=8, passes=8),
        "odd": _numbers(3, 1, 1, 1, newly=1, so_far=2, work=13, passes=21),
        "thorough": _numbers(3, 2, 1, 1, newly=1, so_far=3, work=6, passes=20),
    }
    assert list(told.per_attack["attack"]) == ["quick", "odd", "thorough"]
    assert told.per_stage.values.tolist() == [
        ["thorough", "survey", 1, 0, 4.0],
        ["thorough", "restarts", 1, 1, 6.0],
    ]


def _numbers(
    attacked: int, broken: int, only: int, first: int, newly: int, so_far: int, work: int,
    passes: int,
) -> dict[str, float]:  # fmt: skip
    return {
        "attacked": attacked, "broken": broken, "only it": only, "first": first, "newly": newly,
        "so far": so_far, "passes for that": work, "passes": passes, "seconds": pytest.approx(0.5),
        "per 1000 passes": pytest.approx(1000 * broken / passes),
        "per second": pytest.approx(2 * broken),
    }  # fmt: skip


def test_the_order_that_is_soonest_and_what_it_saves() -> None:
    report = _table()
    told = report.attribution()
    # thorough: 4 + 6 + 10, then odd on what is left: 5. In the order given quick is in vain.
    assert told.order == ("thorough", "odd")
    assert told.orders.left_out == ("quick",)
    assert told.orders.learned.passes == 25
    assert told.orders.given.passes == (2 + 3 + 3) + (6 + 10) + 5
    assert told.orders.table is not None
    assert told.orders.table.passes == 8 + 20 + 21
    assert told.orders.table.seconds == pytest.approx(1.5)
    for cost in (told.orders.learned, told.orders.given, told.orders.table):
        assert cost.best_attack == report.accuracy(BEST)
    without = cost_of(["thorough", "quick"], [report])
    assert (without.passes, without.best_attack.value) == (20 + 3, 1 / 4)
    assert cost_of([], [report]).best_attack == report.accuracy(NATURAL)


def test_an_attack_that_breaks_nothing_of_its_own_stays_where_it_saves_passes() -> None:
    slow = Did({0: 90, 1: 90, 2: 95}, 100)
    report = _report(5, {"slow": slow, "quick": Did({0: 1, 1: 1}, 2)})
    assert report.attribution().order == ("quick", "slow")
    assert report.attribution().orders.learned.passes == 1 + 1 + 2 + 2 + 95 + 100


def _random(
    seed: int, count: int, total: int = 12, mode: Mode = "table", name: str = "d"
) -> Report:
    draw = np.random.default_rng(seed)
    attacks: dict[str, Did | str] = {}
    for place in range(count):
        full = int(draw.integers(1, 30))
        hit = np.flatnonzero(draw.random(total - 1) < draw.random())
        broke = {int(i): int(draw.integers(1, full + 1)) for i in hit}
        after = tuple(attacks) if place and draw.random() < 0.2 and mode == "table" else ()
        attacks[f"a{place}"] = Did(broke, full, after)
    return _report(total, attacks, mode, name)


@pytest.mark.parametrize("mode", ["table", "cascade"])
@pytest.mark.parametrize("seed", range(25))
def test_no_order_of_any_of_the_attacks_is_sooner(seed: int, mode: Mode) -> None:
    reports = [_random(seed, 4, mode=mode), _random(seed + 100, 4, mode=mode, name="e")]
    labels = reports[0].attacks
    least, known = None, 0
    for size in range(len(labels) + 1):
        for order in itertools.permutations(labels, size):
            try:
                cost = cost_of(order, reports)
            except UserError:  # what an attack of a series would do to some samples is not known
                continue
            known += 1
            if cost.best_attack == cost_of(labels, reports).best_attack:
                least = min(cost.passes, least) if least is not None else cost.passes
    learned = cost_of(soonest(reports), reports)
    assert known > 1
    assert learned.passes == least
    assert learned.best_attack == cost_of(labels, reports).best_attack


@pytest.mark.parametrize("seed", range(5))
def test_of_many_attacks_the_order_leaves_the_same_and_takes_no_more_than_given(seed: int) -> None:
    report = _random(seed, MOST_EXACT + 2, total=40)
    orders = report.attribution().orders
    assert orders.learned.best_attack == orders.given.best_attack == report.accuracy(BEST)
    assert orders.learned.passes <= orders.given.passes
    assert len(report.attribution().per_attack) == MOST_EXACT + 2


def test_costs_of_parts_of_the_samples_add_up_to_that_of_all() -> None:
    report, order = _random(3, 4, total=30), ["a0", "a1", "a2", "a3"]
    part = np.arange(30) % 3 == 0
    fit, rest = np.flatnonzero(part), np.flatnonzero(~part)
    costs = [cost_of(order, [report], index) for index in (fit, rest)]
    whole = cost_of(order, [report])
    assert sum(cost.passes for cost in costs) == whole.passes
    assert sum(cost.seconds for cost in costs) == pytest.approx(whole.seconds)
    assert sum(cost.best_attack.count for cost in costs) == whole.best_attack.count
    assert [cost.best_attack.n for cost in costs] == [10, 20]


def test_an_order_is_learned_on_some_samples_and_priced_on_others() -> None:
    # On the first half quick does all; on the second it does nothing.
    quick, slow = Did({0: 1, 1: 1}, 2), Did({0: 9, 1: 9, 2: 9}, 20)
    report = _report(5, {"quick": quick, "slow": slow})
    fitted = soonest([report], [0, 1])
    assert fitted == ("quick",)
    held_back = cost_of(fitted, [report], [2, 3])
    assert (held_back.passes, held_back.best_attack.value) == (4, 1.0)
    assert cost_of(soonest([report]), [report], [2, 3]).best_attack.value == 0.5


def test_what_a_later_attack_of_a_series_did_not_meet_is_not_guessed() -> None:
    short, long = Did({0: 2}, 3), Did({1: 7}, 9, after=("short",))
    report = _report(4, {"short": short, "long": long, "other": Did({1: 1}, 5)})
    told = report.attribution()
    # Nobody knows whether `long` would have broken the first; `other` broke the second as well.
    by_attack = told.per_attack.set_index("attack")
    assert by_attack["attacked"].to_dict() == {"short": 3, "long": 2, "other": 3}
    assert np.isnan(by_attack["only it"]["short"])
    assert by_attack["only it"][["long", "other"]].tolist() == [0, 0]
    with pytest.raises(UserError, match="it is not known what long does"):
        cost_of(["long", "short"], [report])
    # What `short` leaves is known.
    assert cost_of(["other", "short", "long"], [report]).passes == (5 + 1 + 5) + (2 + 3) + 9
    assert told.order == ("short", "other")
    assert [note for note in told.notes if "later in a series" in note]


def test_a_cascade_tells_what_it_knows() -> None:
    report = _report(5, {"quick": Did({0: 2}, 3), "vain": Did({}, 4), "slow": Did({1: 7}, 9)},
                     "cascade")  # fmt: skip
    told = report.attribution()
    assert told.orders.table is None
    assert told.orders.given.passes == int(
        report.records[report.records["attack"] != NATURAL][["forwards", "backwards"]].sum().sum()
    )
    # The last one met only what the others had left: these are known not to break what it broke.
    only = told.per_attack.set_index("attack")["only it"]
    assert (only["slow"], only["vain"]) == (1, 0)
    assert np.isnan(only["quick"])
    # Whether slow alone would do is not known: it cannot come first.
    assert told.order == ("quick", "slow")
    assert told.per_sample["cheapest"].isna().all()
    assert told.per_sample["cheapest passes"].isna().all()
    assert told.per_sample["first passes"].tolist() == [2, 3 + 4 + 7]
    assert "- d: a cascade: " in told.to_markdown()


def test_attacks_that_failed_or_do_not_apply_count_for_nothing_and_are_named() -> None:
    report = _report(4, {"quick": QUICK, "bad": "ValueError: no", "odd": ODD})
    report.add("elsewhere", "k", MemoryCell(), None, (), "it has no arms")
    told = report.attribution()
    assert set(told.per_attack["attack"]) == {"quick", "odd"}
    assert told.notes == [
        "d: bad failed, and counts for nothing: ValueError: no",
        "d: elsewhere does not apply, and counts for nothing: it has no arms",
    ]
    # In an order, such an attack takes nothing.
    with_all = cost_of(["elsewhere", "quick", "bad", "odd"], [report])
    assert with_all.passes == cost_of(["quick", "odd"], [report]).passes
    with pytest.raises(UserError, match="no attack 'quikc' was carried out: did you mean 'quick'"):
        cost_of(["quikc"], [report])
    with pytest.raises(UserError, match="no attack on d is finished"):
        _report(4, {"bad": "ValueError: no"}).attribution()
    with pytest.raises(UserError, match="d has 4 samples"):
        soonest([report], [4])


def test_rows_count_together_and_one_may_lack_an_attack_of_another() -> None:
    first = _report(4, {"quick": QUICK, "odd": ODD}, name="first")
    second = _report(4, {"quick": "ValueError: no", "odd": ODD}, name="second")
    cost = cost_of(["odd", "quick"], [first, second])
    # On the first, odd takes 8 + 8 + 5 and quick 2 + 3; on the second, odd takes the same.
    assert cost.passes == 21 + 5 + 21
    assert (cost.best_attack.count, cost.best_attack.n) == (1 + 2, 8)
    assert soonest([first, second]) == ("quick", "odd")
    tables = render([first.attribution(), second.attribution()], [first, second])
    assert "| all together | quick, odd " in tables


def test_a_randomised_model_counts_by_shares_of_draws() -> None:
    # The first sample is wrong in 0.4 of the draws, then in 0.9, at other points.
    mild = Did({0: 2}, 3, shares={0: 0.4, 1: 1.0})
    hard = Did({0: 5}, 6, shares={0: 0.9})
    report = _report(3, {"mild": mild, "hard": hard})
    told = report.attribution()
    # A cascade goes on with what is right in some draw.
    assert cost_of(["mild", "hard"], [report]).passes == (2 + 3) + 5
    assert cost_of(["mild", "hard"], [report]).best_attack.count == pytest.approx(0.1)
    by_attack = told.per_attack.set_index("attack")
    assert by_attack["newly"].to_dict() == pytest.approx({"mild": 1.4, "hard": 0.5})
    assert by_attack["broken"].to_dict() == {"mild": 1, "hard": 1}  # in most draws
    assert told.per_sample[["sample", "first"]].values.tolist() == [[0, "hard"], [1, "mild"]]
    assert "1.4" in told.to_markdown()


def test_nothing_depends_on_the_order_of_samples() -> None:
    def moved(did: Did, to: Sequence[int]) -> Did:
        stages = {to[i]: stage for i, stage in (did.stages or {}).items()}
        return Did({to[i]: n for i, n in did.broke.items()}, did.full, stages=stages)

    def turned(to: Sequence[int]) -> Any:
        attacks = {"quick": QUICK, "thorough": THOROUGH, "odd": ODD}
        return _report(4, {name: moved(did, to) for name, did in attacks.items()}).attribution()

    there, back = turned([0, 1, 2]), turned([2, 0, 1])
    assert there.per_attack.equals(back.per_attack)
    assert there.per_stage.equals(back.per_stage)
    assert there.orders == back.orders


def test_where_nothing_is_broken_there_is_nothing_to_save() -> None:
    told = _report(3, {"vain": Did({}, 4)}).attribution()
    assert (told.order, len(told.per_sample), told.per_attack["broken"].tolist()) == ((), 0, [0])
    assert "stage" not in told.to_markdown().split("\n")[0]
    last = [line for line in told.to_markdown().splitlines() if line.startswith("| d ")][-1]
    assert [cell.strip() for cell in last.split("|")[2:]] == [
        "-", "vain", "66.7", "0", "0.0", "8", "-", "8", "-", "",
    ]  # fmt: skip


ATTACKS = ["pgd/steps=1/random_start=no", "pgd/steps=7", "pgd/steps=2/restarts=2"]


def test_a_cascade_takes_and_leaves_what_the_records_of_a_table_said() -> None:
    table = evaluate_small(attacks=ATTACKS, eps=0.12)
    cascade = evaluate_small(attacks=ATTACKS, eps=0.12, mode="cascade")
    order = cascade.attacks
    expected, done = cost_of(order, [table]), cascade.attribution().orders.given
    assert (expected.passes, expected.best_attack) == (done.passes, done.best_attack)
    assert done.passes > 0


def test_a_model_that_may_reject_has_an_attribution_for_each_reading() -> None:
    report = evaluate_small(Linear(3).eval(), attacks=ATTACKS, reject=1)
    assert report.rejecting is not None
    assert report.best_attack < report.rejecting.best_attack
    assert len(report.attribution().per_sample) > len(report.rejecting.attribution().per_sample)
