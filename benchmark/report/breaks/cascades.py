"""What cascades in other orders would have taken and left, reckoned from records, and the order
that would have left the same soonest.

What an attack does to a sample does not depend on other attacks or samples. So records of a table
say what any cascade of its attacks would have done. (Attacks of libraries that draw noise for a
whole batch are an exception.) Later attacks of a cascade or a series met only what others had left:
of these, such orders alone are reckoned with in which an attack is given nothing but what it met.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from benchmark.errors import UserError
from benchmark.judge.records import BoolArray
from benchmark.report.accuracy import Accuracy, robust_shares
from benchmark.report.breaks.outcomes import FloatArray, Outcomes
from benchmark.report.measurements import Measurements

# Of how many attacks all orders are gone through; of more, the best next one is taken.
MOST_EXACT = 8


@dataclass(frozen=True)
class Cost:
    """What attacks take in some order, each on what the ones before it left, and what they leave.

    order        the labels of the attacks.
    passes       forward and backward passes on all samples together.
    seconds      that these took, where the time of each attack is divided among samples by their
                 passes.
    best_attack  best-attack accuracy under these attacks, over all samples; of several reports,
                 over those of all together.
    """

    order: tuple[str, ...]
    passes: int
    seconds: float
    best_attack: Accuracy


@dataclass(frozen=True)
class Orders:
    """What attacks take on a model, or on several together, in several ways.

    name      what the report calls the model.
    learned   as a cascade in the order that leaves the same soonest: see `soonest`.
    given     as a cascade in the order of the table; of a cascade, as it was carried out. None
              where that is not known: the rows of a cascade may differ in their orders.
    table     as a table, where each attack works on all samples; None of a cascade.
    left_out  the attacks that the learned order has no use for.
    """

    name: str
    learned: Cost
    given: Cost | None
    table: Cost | None
    left_out: tuple[str, ...]


def cost_of(
    order: Sequence[str], reports: Sequence[Measurements], index: ArrayLike | None = None
) -> Cost:
    """What a cascade of attacks in an order would have taken and left, from the records of reports.

    An attack that does not count on some model, because it failed or does not apply, takes nothing
    and breaks nothing there.

    index  (k,), the places of the samples of each report that count; all by default.

    Raises UserError for an attack that no report has, and where an attack would be given samples
    that it never met, so that nobody knows what it does to them.

    >>> from benchmark.direct.evaluate import evaluate
    >>> import torch
    >>> x, y = torch.tensor([[0.6, 0.4], [0.9, 0.1]]).view(2, 1, 1, 2), torch.tensor([0, 0])
    >>> report = evaluate(torch.nn.Flatten(), x, y, norm="linf", eps=0.2, attacks=["pgd"])
    >>> cost_of(["pgd"], [report]).best_attack.value, cost_of([], [report]).passes
    (0.5, 0)
    """
    outcomes = Outcomes.of(reports, index)
    return cascade(outcomes, outcomes.positions(order))


def soonest(reports: Sequence[Measurements], index: ArrayLike | None = None) -> tuple[str, ...]:
    """The labels of attacks in the order that gives the best-attack accuracy of all of them with
    the fewest passes, as a cascade, over the samples of all reports together.

    Passes are forward and backward ones. They count, and not seconds, because they are the same on
    every machine. Of up to 8 attacks all orders are gone through, over sets: what a cascade leaves
    depends on which attacks it had and not on their order. Of more, the next attack is always the
    one that breaks most of what is left per pass. Attacks are left out that broke nothing which the
    others did not, unless they save passes of others.

    index  (k,), the places of the samples of each report that count; all by default.

    Raises UserError where no attack counts, and where no order is known to leave that.
    """
    outcomes = Outcomes.of(reports, index)
    return tuple(outcomes.labels[position] for position in soonest_of(outcomes))


def orders_of(name: str, outcomes: Outcomes, is_table: bool) -> Orders:
    """What attacks take, learned on the samples themselves."""
    learned, given = cascade(outcomes, soonest_of(outcomes)), None
    with suppress(UserError):
        given = cascade(outcomes, range(len(outcomes.labels)))
    left_out = tuple(label for label in outcomes.labels if label not in learned.order)
    return Orders(name, learned, given, everything(outcomes) if is_table else None, left_out)


def cascade(outcomes: Outcomes, positions: Sequence[int]) -> Cost:
    """See `cost_of`; the attacks are given by their places among the labels."""
    worst = outcomes.clean_trial
    done = np.zeros_like(outcomes.met)
    for position in positions:
        if not is_known(outcomes, position, worst):
            raise UserError(
                f"it is not known what {outcomes.labels[position]} does to all that the attacks "
                "before it leave: it met only what others had left"
            )
        done[position] = given(outcomes, position, worst)
        worst = worst_after(outcomes, position, worst)
    return _cost(outcomes, positions, done)


def everything(outcomes: Outcomes) -> Cost:
    """What all that was carried out took, and left."""
    return _cost(outcomes, range(len(outcomes.labels)), outcomes.met)


def _cost(outcomes: Outcomes, positions: Sequence[int], done: BoolArray) -> Cost:
    """The cost of the attacks at some places, each on the samples that `done` (A, n) says."""
    shares = robust_shares(_frames(outcomes, positions, done), len(outcomes.index))
    return Cost(
        tuple(outcomes.labels[position] for position in positions),
        int(outcomes.passes[done].sum()),
        float(outcomes.seconds[done].sum()),
        Accuracy(float(shares.sum()), len(shares)),
    )


def _frames(
    outcomes: Outcomes, positions: Sequence[int], done: BoolArray
) -> Iterator[pd.DataFrame]:
    """Records as `robust_shares` wants them, of the clean images and of attacks where `done`."""
    every = np.arange(len(outcomes.index))
    yield pd.DataFrame({"index": every, "trial": outcomes.clean_trial, "rate": outcomes.clean_rate})
    for position in positions:
        shares = {"trial": outcomes.trial[position], "rate": outcomes.rate[position]}
        yield pd.DataFrame({"index": every} | shares)[done[position]]


def given(outcomes: Outcomes, position: int, worst: FloatArray) -> BoolArray:
    """Which samples (n,) a cascade gives to an attack, that are misclassified in a share of draws
    `worst` (n,) at the worst point so far: those that are not so in all draws."""
    left: BoolArray = (worst < 1) & ~outcomes.absent[position]
    return left


def is_known(outcomes: Outcomes, position: int, worst: FloatArray) -> bool:
    """Whether an attack met all that a cascade would give it."""
    return bool(outcomes.met[position][given(outcomes, position, worst)].all())


def worst_after(outcomes: Outcomes, position: int, worst: FloatArray) -> FloatArray:
    """The shares of draws (n,) at the worst point once an attack is done too."""
    after: FloatArray = np.maximum(worst, outcomes.trial[position])
    return after


def soonest_of(outcomes: Outcomes) -> tuple[int, ...]:
    """See `soonest`; the attacks are given by their places among the labels."""
    if len(outcomes.labels) <= MOST_EXACT:
        return _exactly(outcomes)
    everywhere = np.maximum(outcomes.clean_trial, outcomes.trial.max(axis=0))
    worst, order = outcomes.clean_trial, list[int]()
    for position, _, _ in greedily(outcomes):
        if np.array_equal(worst, everywhere):
            break
        order.append(position)
        worst = worst_after(outcomes, position, worst)
    orders = [tuple(order)] if np.array_equal(worst, everywhere) else []
    as_it_is, known = tuple(range(len(outcomes.labels))), []
    for candidate in (*orders, as_it_is):
        with suppress(UserError):
            known.append((cascade(outcomes, candidate).passes, candidate))
    return _fewest(known)


def _exactly(outcomes: Outcomes) -> tuple[int, ...]:
    """The order with the fewest passes that leaves what all attacks leave; of several, one of the
    fewest attacks, and of these the first.

    By dynamic programming over sets of attacks, written as the bits of a number (Held and Karp
    1962, "A dynamic programming approach to sequencing problems").
    """
    count = len(outcomes.labels)
    everywhere = np.maximum(outcomes.clean_trial, outcomes.trial.max(axis=0))
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    complete = []
    for done in range(2**count):
        if done not in best:  # no order is known to lead there
            continue
        passes, order = best[done]
        worst = np.maximum(outcomes.clean_trial, outcomes.trial[list(order)].max(axis=0, initial=0))
        if np.array_equal(worst, everywhere):
            complete.append((passes, len(order), order))
            continue
        for position in set(range(count)) - set(order):
            if not is_known(outcomes, position, worst):
                continue
            more = int(outcomes.passes[position][given(outcomes, position, worst)].sum())
            candidate = passes + more, (*order, position)
            after = done | 1 << position
            best[after] = min(best.get(after, candidate), candidate)
    return _fewest([(passes, order) for passes, _, order in sorted(complete)])


def _fewest(orders: Sequence[tuple[int, tuple[int, ...]]]) -> tuple[int, ...]:
    """The order with the fewest passes, of several the first. Raises UserError where there is
    none."""
    if not orders:
        raise UserError(
            "no order of the attacks is known to leave what all of them leave: the rows of this "
            "cascade were attacked in different orders; run it with `mode: table`"
        )
    return min(orders, key=lambda order: order[0])[1]


def greedily(outcomes: Outcomes) -> Iterator[tuple[int, float, int]]:
    """All attacks, of which the next is always the one that breaks most of what is left per pass;
    of several, the first.

    Yields the place of each attack, how many samples it newly breaks, which is a sum of shares
    under a randomised model, and how many passes it takes for that. An attack comes only when it
    has met all that is left.
    """
    worst, left = outcomes.clean_trial, list(range(len(outcomes.labels)))

    def gain(position: int) -> tuple[float, int]:
        newly = worst_after(outcomes, position, worst) - worst
        work = outcomes.passes[position][given(outcomes, position, worst)]
        return float(newly.sum()), int(work.sum())

    def per_pass(position: int) -> float:
        newly, work = gain(position)
        return newly / work if work else math.inf if newly else 0.0

    while left:
        known = [position for position in left if is_known(outcomes, position, worst)]
        if not known:  # the rows of a cascade may differ in their orders
            return
        chosen = max(known, key=per_pass)
        yield chosen, *gain(chosen)
        worst = worst_after(outcomes, chosen, worst)
        left.remove(chosen)
