"""What each attack was worth: the tables of an attribution by sample, by attack and by stage, whose
columns `Attribution` explains."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmark.judge.records import IntArray
from benchmark.report.breaks.cascades import greedily
from benchmark.report.breaks.outcomes import Outcomes


def first_of(broke: NDArray[np.bool_]) -> IntArray:
    """The place of the first attack that broke each sample (n,); -1 where none did."""
    return np.where(broke.any(axis=0), broke.argmax(axis=0), -1)


def per_sample(outcomes: Outcomes, first: IntArray, is_table: bool) -> pd.DataFrame:
    """A row for each sample that an attack broke; `first` as `first_of` has it."""
    samples = np.flatnonzero(first >= 0)
    first = first[samples]
    passes, seconds = outcomes.passes[:, samples], outcomes.seconds[:, samples]
    broke, stage = outcomes.broke[:, samples], outcomes.stage[:, samples]
    every = np.arange(len(samples))
    labels = np.array(outcomes.labels, dtype=object)
    # What was spent on each until it was broken: an attack that did not meet it spent nothing.
    spent_passes, spent_seconds = passes.cumsum(axis=0), seconds.cumsum(axis=0)
    own = np.where(broke, passes, np.iinfo(np.int64).max)
    cheapest = own.argmin(axis=0)

    def of_table(values: NDArray[np.generic], none: float | None) -> object:
        return values if is_table else none

    return pd.DataFrame(
        {
            "sample": outcomes.index[samples],
            "first": labels[first],
            "first stage": stage[first, every],
            "first passes": spent_passes[first, every],
            "first seconds": spent_seconds[first, every],
            "cheapest": of_table(labels[cheapest], None),
            "cheapest stage": of_table(stage[cheapest, every], None),
            "cheapest passes": of_table(passes[cheapest, every], np.nan),
            "cheapest seconds": of_table(seconds[cheapest, every], np.nan),
            "broken by": broke.sum(axis=0),
        }
    )


def per_attack(outcomes: Outcomes, first: IntArray) -> pd.DataFrame:
    """A row for each attack, in the order of `greedily`."""
    rows, so_far = [], 0.0
    for position, newly, work in greedily(outcomes):
        so_far += newly
        broken = int(outcomes.broke[position].sum())
        passes = int(outcomes.passes[position].sum())
        seconds = float(outcomes.seconds[position].sum())
        rows.append(
            {
                "attack": outcomes.labels[position],
                "attacked": int(outcomes.met[position].sum()),
                "broken": broken,
                "only it": _only(outcomes, position),
                "first": int((first == position).sum()),
                "newly": newly,
                "so far": so_far,
                "passes for that": work,
                "passes": passes,
                "seconds": seconds,
                "per 1000 passes": 1000 * broken / passes if passes else np.nan,
                "per second": broken / seconds if seconds else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _only(outcomes: Outcomes, position: int) -> float:
    """How many samples one attack alone broke; NaN where another did not meet some that, as far as
    is known, this one alone broke."""
    others = [other for other in range(len(outcomes.labels)) if other != position]
    alone = outcomes.broke[position] & ~outcomes.broke[others].any(axis=0)
    is_known = (outcomes.met | outcomes.absent)[others][:, alone].all()
    return int(alone.sum()) if is_known else np.nan


def per_stage(outcomes: Outcomes, first: IntArray) -> pd.DataFrame:
    """A row for each stage of an attack that broke a sample and says so."""
    rows = []
    for position, label in enumerate(outcomes.labels):
        stages, broke = outcomes.stage[position], outcomes.broke[position]
        for stage in dict.fromkeys(stages[broke & (stages != "")].tolist()):
            at_stage = broke & (stages == stage)
            rows.append(
                {
                    "attack": label,
                    "stage": stage,
                    "broken": int(at_stage.sum()),
                    "first": int((at_stage & (first == position)).sum()),
                    "passes": float(outcomes.passes[position][at_stage].mean()),
                }
            )
    frame = pd.DataFrame(rows, columns=["attack", "stage", "broken", "first", "passes"])
    # The attacks as they are in the table, and the stages of each by what they broke.
    frame["place"] = frame["attack"].map(outcomes.labels.index)
    by = {"place": True, "broken": False, "passes": True, "stage": True}
    ordered = frame.sort_values(list(by), ascending=list(by.values()), ignore_index=True)
    return ordered.drop(columns="place")
