"""What each attack did to each sample: which it met, which it broke, and with how much work."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from benchmark.errors import UserError, did_you_mean
from benchmark.judge.records import BoolArray, IntArray
from benchmark.report.measurements import Measurements
from benchmark.spec.components import NATURAL

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What A attacks did to n samples, of one report or of several together.

    labels   of the attacks that count, in the order of the table, or of the cascade.
    idle     the labels of attacks that count on no model.
    index    (n,), the place of each sample among those of its report.
    met      (A, n), whether the attack worked on the sample: a later one of a series or a cascade
             did not meet what others broke before it.
    absent   (A, n), whether the attack counts for nothing on the sample's model: it failed there,
             does not apply, or was not carried out.
    broke    (A, n), whether its point breaks the sample, of a randomised model in most draws.
    trial    (A, n), in what share of the draws by which points are chosen its point is
             misclassified; 0 or 1, as `broke`, unless the model is randomised.
    rate     (A, n), the same in the draws that count.
    passes   (A, n), forward and backward passes that it spent on the sample.
    seconds  (A, n), its whole time on the report's model, divided among samples by their passes.
    stage    (A, n), the stage of the attack that broke the sample; "" where it does not say.
    clean_trial, clean_rate  (n,), the shares of draws for the clean image.
    """

    labels: tuple[str, ...]
    idle: tuple[str, ...]
    index: IntArray
    met: BoolArray
    absent: BoolArray
    broke: BoolArray
    trial: FloatArray
    rate: FloatArray
    passes: IntArray
    seconds: FloatArray
    stage: NDArray[np.object_]
    clean_trial: FloatArray
    clean_rate: FloatArray

    @classmethod
    def of(cls, reports: Sequence[Measurements], index: ArrayLike | None = None) -> "Outcomes":
        """What the reports recorded, of the samples at some places (k,) of each alone, or of all.

        Raises UserError where no attack counts, and where a report has no such place.
        """
        # The search for proofs is no attack that one could order.
        labels = tuple(
            dict.fromkeys(label for report in reports for label in report.finished_attacks)
        )
        if not labels:
            names = ", ".join(report.called for report in reports) or "nothing"
            raise UserError(f"no attack on {names} is finished: there is nothing to attribute")
        parts = [_of_report(report, labels, index) for report in reports]
        joined = {
            name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]
        }
        every = dict.fromkeys(label for report in reports for label in report.attacks)
        return cls(labels, tuple(every.keys() - labels), **joined)

    def positions(self, order: Sequence[str]) -> tuple[int, ...]:
        """The places among `labels` of some attacks, without those that are idle. Raises UserError
        for one that no report has."""
        for label in order:
            if label not in (*self.labels, *self.idle):
                hint = did_you_mean(label, self.labels, f"there are {', '.join(self.labels)}")
                raise UserError(f"no attack {label!r} was carried out: {hint}")
        return tuple(self.labels.index(label) for label in order if label not in self.idle)


_LIKE: dict[str, Any] = {
    "broke": ("broken", bool), "trial": ("trial", float), "rate": ("rate", float),
    "passes": ("passes", int), "stage": ("stage", object),
}  # fmt: skip


def _of_report(
    report: Measurements, labels: Sequence[str], index: ArrayLike | None
) -> dict[str, NDArray[Any]]:
    """The arrays of `Outcomes` for one report."""
    places = np.arange(report.total) if index is None else np.asarray(index, dtype=np.int64)
    if not np.isin(places, np.arange(report.total)).all():
        raise UserError(f"{report.called} has {report.total} samples: the index goes beyond them")
    shape = len(labels), report.total
    arrays: dict[str, NDArray[Any]] = {
        name: np.full(shape, "" if kind is object else 0, dtype=kind)
        for name, (_, kind) in _LIKE.items()
    }
    arrays |= {
        "met": np.zeros(shape, bool), "absent": np.ones(shape, bool), "seconds": np.zeros(shape)
    }  # fmt: skip
    for row, label in enumerate(labels):
        if label not in report.measured:
            continue
        frame = report.frames[label]
        at = frame["index"].to_numpy()
        frame = frame.assign(passes=frame["forwards"] + frame["backwards"])
        for name, (column, _) in _LIKE.items():
            arrays[name][row, at] = frame[column].to_numpy()
        arrays["met"][row, at] = True
        arrays["absent"][row] = False
        arrays["seconds"][row, at] = report.seconds[label] * _parts(frame["passes"])
    clean = report.frames[NATURAL]
    arrays |= {"clean_trial": clean["trial"].to_numpy(), "clean_rate": clean["rate"].to_numpy()}
    chosen = {name: values[..., places] for name, values in arrays.items()}
    known = {field.name for field in fields(Outcomes)}
    assert chosen.keys() | {"labels", "idle", "index"} == known
    return chosen | {"index": places}


def _parts(passes: "pd.Series[int]") -> FloatArray:
    """The part of each sample (k,) in the time of an attack: equal ones where nothing is known."""
    counts = passes.to_numpy(dtype=np.float64)
    return counts / counts.sum() if counts.sum() else np.full(len(counts), 1 / max(len(counts), 1))
