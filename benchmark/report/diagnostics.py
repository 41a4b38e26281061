"""Signs in the records that an accuracy is not to be trusted: what attacks say of each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Flags = NDArray[np.bool_]

# An attack beats another where it breaks more by this part of all samples, and more than chance
# would have it among those that only one of the two breaks.
_CLEARLY = 0.01
_CHANCE = 0.05

# Attacks have not converged where so large a part of the samples that they met, and so many, were
# broken only in this last part of their forwards, or by the last of a series.
_STILL = 0.02
_FEWEST = 3
_LAST = 0.25


@dataclass(frozen=True)
class Trace:
    """What the records say of one attack.

    lost     (total,) what its column counts as broken: misclassified clean, or broken by it or by
             those before it in its series.
    frame    its records: one row per sample that it worked on.
    note     of its cell: whether it minimises, whether it transfers, its most passes.
    before   the attacks before it in its series, of those that count.
    """

    lost: Flags
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
        # One without a forward is not known to have seen the model.
        return not self.uses_gradients and bool(self.frame["forwards"].sum())

    def late(self) -> Flags:
        """Which of its rows were broken in the last part of its forwards."""
        forwards = self.frame["forwards"].to_numpy()
        broken = self.frame["broken"].to_numpy(dtype=bool)
        nothing = np.zeros_like(broken)
        if not self.note.get("passes") or self.note.get("minimises") or not broken.any():
            return nothing
        # An attack that goes on with what it has broken does not say when it broke it.
        if forwards[broken].min() == forwards.max():
            return nothing
        last: Flags = broken & (forwards > (1 - _LAST) * forwards.max())
        return last


def compare(traces: Mapping[str, Trace]) -> set[str]:
    """Flags of attacks that should not beat others and do, each of which met all samples."""
    direct = [t.lost for t in traces.values() if t.uses_gradients and not t.transfers]
    blind = [t.lost for t in traces.values() if t.is_gradient_free and not t.transfers]
    foreign = [t.lost for t in traces.values() if t.transfers]
    found = {"gradient-free": _beats(blind, direct), "transfer": _beats(foreign, direct)}
    return {code for code, beats in found.items() if beats}


def _beats(challengers: list[Flags], incumbents: list[Flags]) -> bool:
    """Whether the best of some attacks beats the best of others, by an exact test of the samples
    that only one of the two breaks (McNemar 1947)."""
    if not challengers or not incumbents:
        return False
    from scipy.stats import binomtest

    one, other = (
        max(group, key=lambda lost: int(lost.sum())) for group in (challengers, incumbents)
    )
    more, fewer = int((one & ~other).sum()), int((other & ~one).sum())
    if more - fewer < max(1, _CLEARLY * len(one)):
        return False
    return float(binomtest(more, more + fewer, alternative="greater").pvalue) < _CHANCE


def unconverged(traces: Mapping[str, Trace], total: int) -> bool:
    """Whether attacks still broke samples at the end of what they were given: in the last part of
    their forwards, or as the last of a series. Samples that any attack broke sooner do not count,
    and nothing does once hardly a sample is left."""
    late, early = np.zeros(total, dtype=bool), np.zeros(total, dtype=bool)
    followed = {label for trace in traces.values() for label in trace.before}
    broken = np.zeros(total, dtype=bool)
    for label, trace in traces.items():
        frame = trace.frame
        hit = frame["broken"].to_numpy(dtype=bool)
        if label in followed:
            at_end = np.zeros_like(hit)
        elif trace.before:
            at_end = hit
        else:
            at_end = trace.late()
        places = frame["index"].to_numpy()
        late[places[at_end]] = True
        early[places[hit & ~at_end]] = True
        broken |= trace.lost
    met = max((len(trace.frame) for trace in traces.values()), default=0)
    count = min(int((late & ~early).sum()), int((~broken).sum()))
    return count >= max(_FEWEST, _STILL * met)
