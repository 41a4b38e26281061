"""The accuracies, radii and examples that the records of one model make."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmark.judge.records import IntArray
from benchmark.report.accuracy import Accuracy, Examples
from benchmark.report.measured_cells import MeasuredCells
from benchmark.report.radii import Radii
from benchmark.spec.components import BEST, CERTIFIED, NATURAL, SEARCH


@dataclass(frozen=True, eq=False)
class Closest:
    """The closest misclassified point of each sample.

    distance  (n,) its distance: 0 where the clean image is misclassified, infinite where no such
              point is known.
    label     (n,) of what found it: an attack, or "natural"; "" where no such point is known.
    """

    distance: NDArray[np.float64]
    label: NDArray[np.object_]


class Measurements(MeasuredCells):
    """What was measured on one model. Accuracies are over all its samples; `Report` adds flags and
    tables to this."""

    def accuracy(self, label: str) -> Accuracy | None:
        """Natural, certified, of one attack, or best-attack; None where it was not measured."""
        proven = label == CERTIFIED
        counted = self.certified_within(self.threat.eps) if proven else self.shares(label)
        return None if counted is None else Accuracy(float(counted.sum()), self.total)

    def robust_to(self, label: str) -> NDArray[np.bool_] | None:
        """Which samples (n,) an accuracy counts: see `shares`. Of a randomised model, those that it
        classifies correctly in most draws."""
        shares = self.shares(label)
        return None if shares is None else shares >= 0.5

    def shares(self, label: str) -> NDArray[np.float64] | None:
        """How much each sample (n,) counts in an accuracy. That is 1 if it is classified correctly
        and, under the label of an attack, not broken by it or by those before it in its series;
        under that of best-attack, broken by no attack; else 0. Under a randomised model it is the
        share of draws. None where it was not measured, or only on what others left."""
        if label == NATURAL and label not in self.errors:
            attacks = []
        elif label == BEST and self.measured:
            attacks = self.measured
        elif label in self.measured and self.mode == "table":
            series = (*self.after.get(label, ()), label)
            attacks = [attack for attack in self.measured if attack in series]
        else:
            return None
        return self._robust([NATURAL, *attacks])

    @property
    def natural(self) -> float:
        """Natural accuracy: the share of all samples that is classified correctly."""
        accuracy = self.accuracy(NATURAL)
        assert accuracy is not None
        return accuracy.value

    @property
    def per_attack(self) -> dict[str, float]:
        """Robust accuracy under each attack: the share classified correctly and not broken by that
        attack, or by those before it in its series; NaN where it failed or does not apply. Empty in
        cascade mode, where an attack sees only what those before it left."""
        if self.mode == "cascade":
            return {}
        accuracies = {label: self.accuracy(label) for label in self.attacks}
        return {
            label: accuracy.value if accuracy else float("nan")
            for label, accuracy in accuracies.items()
        }

    @property
    def best_attack(self) -> float:
        """Best-attack accuracy: the share classified correctly and broken by no attack; NaN where
        no attack ran."""
        accuracy = self.accuracy(BEST)
        return accuracy.value if accuracy else float("nan")

    @property
    def certified(self) -> float:
        """Certified accuracy: the share classified correctly, which the model's own certificate, or
        bounds, prove not to change within eps; NaN where there are neither, or they failed."""
        accuracy = self.accuracy(CERTIFIED)
        return accuracy.value if accuracy else float("nan")

    def certified_within(self, eps: float, itself: bool = False) -> NDArray[np.bool_] | None:
        """Which samples (n,) are classified correctly and proven to stay so within eps: by the
        model's own certificate alone, if `itself`. None where nothing proves that."""
        radii, right = self.radii if itself else self.certificate, self.robust_to(NATURAL)
        return None if radii is None or right is None else radii.proves(eps) & right

    @property
    def certificate(self) -> Radii | None:
        """The radii that the model certifies, or bounds prove; None where there are neither."""
        if self.proved is None:
            return self.radii
        right = self.robust_to(NATURAL)
        assert right is not None
        own = self.radii or Radii(np.zeros(self.total), right)
        return own.widened(self.proved.proven, self.threat.eps)

    @property
    def proven(self) -> dict[str, int]:
        """How many samples that nothing broke each method proved, as `Proved.by` names them."""
        robust = self.robust_to(BEST if self.measured else NATURAL)
        if self.proved is None or robust is None:
            return {}
        counted = Counter(self.proved.by[robust].tolist())
        return {by: count for by, count in sorted(counted.items()) if by}

    @property
    def searched(self) -> int:
        """How many samples the search for proofs broke, which no attack did."""
        is_counted = SEARCH in self.measured
        return int(self.frames[SEARCH]["broken"].sum()) if is_counted else 0

    @property
    def contradictions(self) -> IntArray:
        """The samples (k,) that an attack misclassifies within their certified radius."""
        if self.certificate is None:
            return np.empty(0, dtype=np.int64)
        frames = [frame for label, frame in self.frames.items() if label != NATURAL]
        return self.certificate.contradicted(self.threat.eps, frames)

    @property
    def records(self) -> pd.DataFrame:
        """One row per sample and attack ("natural" among them). `rate` is the share of draws in
        which a randomised model misclassifies the point, and `trial` the same over other draws, by
        which the worst of several points is chosen; for any other model both are 0 or 1. Where
        there is a certificate, `radius` is the sample's certified radius, in the run's norm. Where
        bounds were to prove something, the rows of "search" say of each sample that they tried by
        which `stage` it was proven, or broken, and by what `bound` the label leads at least."""
        records = pd.concat(
            [frame.assign(attack=label) for label, frame in self.frames.items()],
            ignore_index=True,
        )
        if self.certificate is not None:
            radius = pd.Series(self.certificate.radius)
            records["radius"] = radius.reindex(records["index"]).to_numpy()
        if self.proved is not None:
            bound = pd.Series(self.proved.bound).reindex(records["index"]).to_numpy()
            records["bound"] = np.where(records["attack"] == SEARCH, bound, np.nan)
        return records

    @property
    def adversarial(self) -> dict[str, Examples]:
        """For each attack, its judged misclassified points: of a randomised model, those that any
        draw misclassifies."""
        return {label: self.examples(label) for label in self.attacks}

    def examples(self, label: str, among: IntArray | None = None) -> Examples:
        """The misclassified points of an attack, as the model was given them, of all samples or of
        those `among` (k,) them."""
        found = self.judged(label, among)
        if self.scale is None or not len(found.points):
            return found
        double = self.precision == "float64"
        scaled = found.points * self.scale
        return Examples(found.index, scaled.astype(np.float64 if double else np.float32))

    def judged(self, label: str, among: IntArray | None = None) -> Examples:
        """The same, as the threat measures them: not multiplied by `scale`."""
        indices: list[IntArray] = []
        kept: list[NDArray[np.floating]] = []
        for block in self.blocks(label):
            index = block.index[block.found]
            shape = (len(index), *(kept[0] if kept else block.adversarial).shape[1:])
            if block.adversarial.shape != shape:  # `verify` says that they are not what they were
                continue
            wanted = slice(None) if among is None else np.isin(index, among)
            indices.append(index[wanted])
            kept.append(block.adversarial[wanted])
        if not kept:
            return Examples(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        return Examples(np.concatenate(indices), np.concatenate(kept))

    def closest(self, labels: Iterable[str], broken: bool = False) -> Closest:
        """The closest misclassified point of each sample under some labels; only those that break
        the sample, which lie within eps, where `broken`. Of two that are as close, the first's."""
        distance = np.full(self.total, np.inf)
        closest_label = np.full(self.total, "", dtype=object)
        for label in labels:
            frame = self.frames[label]
            if broken:
                frame = frame[frame["broken"]]
            index, found_at = frame["index"].to_numpy(), frame["distance"].to_numpy()
            # NaN, where the attack found no such point, is not nearer.
            nearer = found_at < distance[index]
            distance[index[nearer]] = found_at[nearer]
            closest_label[index[nearer]] = label
        return Closest(distance, closest_label)

    def minimal_distances(self) -> NDArray[np.float64] | None:
        """Each sample's smallest distance (n,) over all attacks: 0 where it is misclassified clean,
        infinite where no attack found a point. None where no attack minimises the distance."""
        minimised = any(self.cells[label].note.get("minimises") for label in self.measured)
        if not minimised or self.draws:  # a randomised model has no boundary to be distant from
            return None
        # All attacks: in cascades and series, those that minimise are not given what others broke.
        return self.closest([NATURAL, *self.measured]).distance

    @property
    def unfinished(self) -> list[str]:
        """What is under way, with how far it is, and what is not begun."""
        begun = [
            f"{label} {begun if label != CERTIFIED else 'under way'}"
            for label, begun in self.begun.items()
        ]
        return begun + [f"{label} not begun" for label in self.awaited]

    def summary(self, label: str) -> str:
        """What was measured under one label, in a line, which tells what was measured before."""
        if label in self.errors:
            return f"{label} failed: {self.errors[label]}"
        if label in self.inapplicable:
            return on_inapplicable([label], self.inapplicable[label])
        total, kept, seconds = len(self.places[label]), self.kept[label], ""
        if label in (NATURAL, CERTIFIED, SEARCH):
            share, name = self.certified, CERTIFIED
            if label == NATURAL:
                share, name = self.natural, NATURAL
            told = f"{name} accuracy {share:.2%}"
            if label == SEARCH and self.searched:
                told += f"; the search broke {self.searched}"
        else:
            told = f"{label} broke {int(self.frames[label]['broken'].sum())} of {total}"
            seconds = f" in {self.seconds[label]:.1f} s"
        if kept and kept == total:
            return f"kept: {told}, measured before"
        return f"{told}{seconds}" + (f" ({kept} of {total} measured before)" if kept else "")


def on_inapplicable(labels: Sequence[str], reason: str) -> str:
    """What is said of attacks that do not apply for one reason."""
    if list(labels) == [SEARCH]:
        return f"nothing is proven by bounds: {reason}"
    return f"{', '.join(labels)} {'does' if len(labels) == 1 else 'do'} not apply: {reason}"
