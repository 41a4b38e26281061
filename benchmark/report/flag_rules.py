"""Which flags the records of a report tell: the conditions, as functions for `Flag.holds`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmark.report.measurements import Measurements
from benchmark.report.paired import Paired
from benchmark.spec.components import SEARCH

# Which samples something is true of.
_Which = NDArray[np.bool_]

# One attack beats another where it breaks more samples by this share of all, and where chance alone
# would give it so many of those that only one of the two breaks with less than this probability.
CLEARLY = 0.01
CHANCE = 0.05

# Attacks have not converged where so large a share of the samples that they met, and at least so
# many, were broken only in this last part of an attack's forwards, or by the last of a series.
STILL = 0.02
FEWEST = 3
LAST = 0.25


@dataclass(frozen=True)
class _Trace:
    """What the records say of one attack.

    broken  (total,) the samples that its column counts as broken: misclassified clean, or broken by
            the attack or by those before it in its series.
    frame   its records: one row per sample that it worked on.
    note    what its cell notes: whether it minimises, whether it transfers, and its most passes.
    before  the attacks before it in its series that were measured.
    """

    broken: _Which
    frame: pd.DataFrame
    note: Mapping[str, Any]
    before: tuple[str, ...] = ()

    @property
    def transfers(self) -> bool:
        return bool(self.note.get("transfers"))

    @property
    def uses_gradients(self) -> bool:
        return bool(self.frame["backwards"].sum())

    @property
    def is_gradient_free(self) -> bool:
        # An attack that made no forward is not known to have seen the model.
        return not self.uses_gradients and bool(self.frame["forwards"].sum())

    def late(self) -> _Which:
        """Which rows of its records were broken in the last part of its forwards."""
        forwards = self.frame["forwards"].to_numpy()
        broken = self.frame["broken"].to_numpy(dtype=bool)
        none = np.zeros_like(broken)
        if not self.note.get("passes") or self.note.get("minimises") or not broken.any():
            return none
        # An attack that goes on with samples that it has broken does not say when it broke them.
        if forwards[broken].min() == forwards.max():
            return none
        late: _Which = broken & (forwards > (1 - LAST) * forwards.max())
        return late


def _traces(report: Measurements) -> dict[str, _Trace]:
    """What the records say of each attack that was measured, by label."""
    by_label: dict[str, _Trace] = {}
    for label in report.measured:
        if label == SEARCH:  # which met only what attacks left
            continue
        # A cascade goes by cost, which may not be the order of a series.
        before = tuple(name for name in report.after.get(label, ()) if name in by_label)
        broken = np.ones(report.total, dtype=bool)
        broken[report.unbroken([label, *before])] = False
        by_label[label] = _Trace(broken, report.frames[label], report.cells[label].note, before)
    return by_label


def beaten_without_gradients(report: Measurements) -> bool:
    """Whether an attack without gradients beats the best attack with gradients. In a cascade, where
    attacks do not meet the same samples, none does."""
    white_box = [trace for trace in _comparable(report) if not trace.transfers]
    return _beats(
        [trace.broken for trace in white_box if trace.is_gradient_free],
        [trace.broken for trace in white_box if trace.uses_gradients],
    )


def beaten_by_transfer(report: Measurements) -> bool:
    """Whether points crafted on another model beat the best attack with gradients of this one. In a
    cascade, where attacks do not meet the same samples, they do not."""
    compared = _comparable(report)
    return _beats(
        [trace.broken for trace in compared if trace.transfers],
        [trace.broken for trace in compared if trace.uses_gradients and not trace.transfers],
    )


def _comparable(report: Measurements) -> list[_Trace]:
    """The attacks, where each of them met all samples."""
    return list(_traces(report).values()) if report.mode == "table" else []


def _beats(challengers: list[_Which], incumbents: list[_Which]) -> bool:
    """Whether the best of some attacks beats the best of others, by what each breaks (total,)."""
    if not challengers or not incumbents:
        return False
    challenger, incumbent = (
        max(attacks, key=lambda broken: int(broken.sum())) for attacks in (challengers, incumbents)
    )
    paired = Paired.of(challenger, incumbent)
    if paired.first - paired.second < max(1, CLEARLY * len(challenger)):
        return False
    return paired.chance("greater") < CHANCE


def unconverged(report: Measurements) -> bool:
    """Whether attacks still broke samples at the end of what they were given: in the last part of
    their forwards, or as the last of a series. Samples that any attack broke sooner do not count.
    The flag needs at least FEWEST such samples, and as many still unbroken."""
    if report.draws:  # no step of an attack on a randomised model broke a sample for good
        return False
    by_label = _traces(report)
    followed = {label for trace in by_label.values() for label in trace.before}
    late, early, broken = (np.zeros(report.total, dtype=bool) for _ in range(3))
    for label, trace in by_label.items():
        hit = trace.frame["broken"].to_numpy(dtype=bool)
        if label in followed:
            at_end = np.zeros_like(hit)
        elif trace.before:
            at_end = hit
        else:
            at_end = trace.late()
        index = trace.frame["index"].to_numpy()
        late[index[at_end]] = True
        early[index[hit & ~at_end]] = True
        broken |= trace.broken
    most_met = max((len(trace.frame) for trace in by_label.values()), default=0)
    could_fall = min(int((late & ~early).sum()), int((~broken).sum()))
    return could_fall >= max(FEWEST, STILL * most_met)


def is_chance(natural: float, logits: int | None, labels: Sequence[int]) -> bool:
    """Whether an accuracy is no more than that of guessing, where the number of logits is known, or
    of always answering the most frequent class of the samples, where they are of several."""
    counts = Counter(labels)
    constant = max(counts.values()) / len(labels) if len(counts) > 1 else 0.0
    return natural <= max(constant, 0.0 if logits is None else 1 / logits)


def width_of(report: Measurements) -> float:
    """How much the values of clean pixels can differ."""
    threat = report.threat
    is_unbounded = threat.hull == (-threat.eps, 1 + threat.eps)
    return 1.0 if is_unbounded else threat.width
