"""What was measured on one model: its records, and the accuracies that they make."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attacks import ThreatModel
from benchmark.data.choice import Choice
from benchmark.judge.records import Block, Cell, IntArray, blocks_of
from benchmark.report.accuracy import Accuracy, Begun, Examples, LeftOut, robust_shares
from benchmark.report.radii import Proved, Radii
from benchmark.spec.components import BEST, CERTIFIED, NATURAL, SEARCH
from benchmark.spec.proof_setting import Proofs
from benchmark.spec.run_spec import Mode


@dataclass(frozen=True, eq=False)
class Closest:
    """The closest misclassified point of each sample.

    distance  (n,) its distance: 0 where the clean image is misclassified, infinite where no such
              point is known.
    label     (n,) of what found it: an attack, or "natural"; "" where no such point is known.
    """

    distance: NDArray[np.float64]
    label: NDArray[np.object_]


class Measurements:
    """What was measured on one model. Accuracies are over all its samples; `Report` adds flags and
    tables to this.

    total    how many samples there are.
    logits   how many logits the model gives; None where only records are known.
    noted    the codes of flags that a look at the model raised; whoever looks may add to them.
    cells    what all is made from: natural, the certificate and each attack, by label. For each
             label, `keys` has the name of its cell, `places` the samples that count there, `frames`
             their records without images, `seconds` the time that it took, and `outside` for how
             many samples an attack left the ball or the box.
    radii    what the model's own certificate says; None where it has none or that failed.
    proved   what the search for proofs says; None where there was none or it failed.
    errors   why attacks or the certificate failed; inapplicable, why attacks do not apply to the
             model.
    lacking  the labels that lack records though nothing failed: the run was interrupted, or its
             folder was damaged. They are among the errors.
    after    for the later attacks of a series, those before them.
    notes    on the attacks that were asked for.
    scale    (*shape), what the points of records are multiplied by to be those of the model; None:
             nothing.
    choice   how a run chose the samples; None where that is not known.
    left_out  attacks that a run's folder holds besides, and that broke more; None if none does.
    under    what tables call the threat or the seed, in a run of several; else empty.
    kept     how many samples under a label were measured before this process worked on it.
    begun    what is under way, or was when a run ended before its end: attacks or the certificate,
             by label.
    awaited  the attacks of such a run that are not begun.
    """

    def __init__(
        self,
        name: str,
        threat: ThreatModel,
        mode: Mode,
        total: int,
        flags: Iterable[str] = (),
        notes: Sequence[str] = (),
        logits: int | None = None,
    ) -> None:
        self.name = name
        self.threat = threat
        self.mode = mode
        self.total = total
        self.keys: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.inapplicable: dict[str, str] = {}
        self.lacking: set[str] = set()
        self.after: dict[str, tuple[str, ...]] = {}
        self.notes = list(notes)
        self.radii: Radii | None = None
        self.proved: Proved | None = None
        self.choice: Choice | None = None
        self.left_out: LeftOut | None = None
        self.noted = flags
        self.logits = logits
        self.cells: dict[str, Cell] = {}
        self.places: dict[str, IntArray] = {}
        self.frames: dict[str, pd.DataFrame] = {}
        self.seconds: dict[str, float] = {}
        self.outside: dict[str, int] = {}
        self.scale: NDArray[np.float64] | None = None
        self.under = ""
        self.kept: Counter[str] = Counter()
        self.begun: dict[str, Begun] = {}
        self.awaited: list[str] = []

    @property
    def called(self) -> str:
        """The name of the model, with the threat or the seed in a run of several."""
        return f"{self.name} ({self.under})" if self.under else self.name

    def add(
        self,
        label: str,
        key: str,
        cell: Cell,
        error: str | None,
        after: Sequence[str] = (),
        inapplicable: str | None = None,
    ) -> None:
        """Take in the cell of natural accuracy, of an attack or of the search for proofs.

        An attack that failed (`error` says why), that lacks samples, or that does not apply to the
        model (`inapplicable` says why) counts for nothing. `after` are the attacks before it in its
        series.
        """
        expected = self.expected(label, after)
        self.begun.pop(label, None)
        self.cells[label] = cell
        self.keys[label] = key
        self.places[label] = expected
        # What its blocks hold.
        frames, seconds, outside = [], 0.0, 0
        for block in self.blocks(label, images=False):
            frames.append(block.frame())
            seconds += float(block.seconds.sum())
            outside += int(block.outside.sum())
        self.seconds[label] = seconds
        self.outside[label] = outside
        if after:
            self.after[label] = tuple(after)
        # An attack must say that it does not apply before any work: later, that is an error.
        if inapplicable is not None and not frames:
            self.inapplicable[label] = inapplicable
            return
        if inapplicable is not None:
            error = f"found on some samples only that it does not apply: {inapplicable}"
        if frames:
            self.frames[label] = pd.concat(frames).sort_values("index", ignore_index=True)
        elif label != NATURAL:
            self.frames[label] = self.frames[NATURAL].iloc[:0]
        # A sample without a record must never count as robust.
        measured = self.frames[label]["index"].to_numpy() if label in self.frames else expected[:0]
        if error is None:
            error = self._incomplete(label, measured)
        if error is not None:
            self.errors[label] = error
        elif label == SEARCH:
            # Proofs of samples that attacks broke since are held against these attacks.
            blocks = blocks_of(cell, np.arange(self.total), images=False)
            self.proved = Proved.of(blocks, self.total)

    def expected(self, label: str, after: Sequence[str]) -> IntArray:
        """The samples (k,) that a label is to have records of, `after` others: the search for
        proofs has them of what neither attacks broke nor the model certifies itself."""
        if label == NATURAL:
            return np.arange(self.total)
        remaining = self.remaining(after)
        if label != SEARCH or self.radii is None:
            return remaining
        return remaining[~self.radii.proves(self.threat.eps)[remaining]]

    def _incomplete(self, label: str, measured: IntArray) -> str | None:
        """Why a label does not count of which the samples `measured` (k,), sorted, are recorded;
        None where these are all that there should be."""
        expected = self.places[label]
        if np.array_equal(measured, expected):
            return None
        if not np.isin(expected, measured).all():
            self.lacking.add(label)
        if not len(measured):
            return f"incomplete: the records of all {len(expected)} samples are missing"
        return f"incomplete: {len(measured)} of {len(expected)} samples are recorded"

    def begin(self, label: str, key: str, cell: Cell, after: Sequence[str] = ()) -> None:
        """Note that an attack, or the certificate, is under way: `add` or `certify` ends that."""
        places = np.arange(self.total) if label == CERTIFIED else self.expected(label, after)
        self.begun[label] = Begun(key, cell, places, tuple(after))

    def blocks(self, label: str, images: bool = True) -> Iterator[Block]:
        """The records under a label, of the samples that count there alone: the cell may hold more,
        of runs on other numbers of samples."""
        return blocks_of(self.cells[label], self.places[label], images)

    def certify(self, key: str, cell: Cell, error: str | None) -> None:
        """Take in the cell of the model's own certificate; one that failed certifies nothing."""
        self.begun.pop(CERTIFIED, None)
        self.cells[CERTIFIED] = cell
        self.keys[CERTIFIED] = key
        self.places[CERTIFIED] = np.arange(self.total)
        blocks = list(self.blocks(CERTIFIED, images=False))
        self.seconds[CERTIFIED] = float(sum(block.seconds.sum() for block in blocks))
        if error is None:
            indices = [np.empty(0, np.int64), *(block.index for block in blocks)]
            error = self._incomplete(CERTIFIED, np.sort(np.concatenate(indices)))
        if "proofs" in cell.note.get("identity", {}):
            error = "an earlier version made it: run the same command again"
        try:
            self.radii = Radii.of(blocks, self.total) if error is None else None
        except ValueError as wrong:
            error = str(wrong)
        if error is not None:
            self.errors[CERTIFIED] = error

    @property
    def attacks(self) -> list[str]:
        """All attacks, those that failed or do not apply among them."""
        return [label for label in self.keys if label not in (NATURAL, CERTIFIED, SEARCH)]

    @property
    def failed(self) -> list[str]:
        """The attacks that failed."""
        return [label for label in self.attacks if label in self.errors]

    @property
    def measured(self) -> list[str]:
        """The attacks that count: those that neither failed nor do not apply, and the search for
        proofs, where it is one that can break samples."""
        searched = self.proofs is not None and self.proofs.method == "branch"
        return [
            label
            for label in (*self.attacks, *([SEARCH] if searched else []))
            if label not in self.errors and label not in self.inapplicable
        ]

    def survivors(self) -> IntArray:
        """The samples (k,) classified correctly and broken by no attack so far."""
        return self.unbroken(self.measured)

    def remaining(self, after: Sequence[str]) -> IntArray:
        """The samples (k,) that an attack would work on now, `after` others of its series."""
        if self.mode == "cascade":
            return self.survivors()
        return self.unbroken([label for label in self.measured if label in after])

    def unbroken(self, labels: Iterable[str]) -> IntArray:
        """The samples (k,) classified correctly and broken under none of some labels; of a
        randomised model, those that are not wrong in all draws."""
        return np.flatnonzero(self._robust([NATURAL, *labels], draws="trial") > 0)

    @property
    def draws(self) -> int | None:
        """How many draws judged each point of a randomised model; None for any other model."""
        return self.identity.get("draws")

    @property
    def is_alone(self) -> bool:
        """Whether each image was forwarded alone."""
        return bool(self.identity.get("at-once") == 1)

    @property
    def allowed(self) -> int | None:
        """The class that perturbed images may be given without being misclassified."""
        allowed: int | None = self.identity.get("allowed")
        return allowed

    @property
    def precision(self) -> str | None:
        """The precision in which the model was evaluated; None where that is not recorded."""
        return self.identity.get("precision")

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the verdicts on clean images, as their cell notes it."""
        identity = self.cells[NATURAL].note.get("identity") if NATURAL in self.cells else None
        return identity if isinstance(identity, dict) else {}

    def _robust(self, labels: Iterable[str], draws: str = "rate") -> NDArray[np.float64]:
        """What `robust_shares` says of the records under some labels."""
        frames = [self.frames[label] for label in labels if label not in self.errors]
        return robust_shares(frames, self.total, draws)

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
    def proofs(self) -> Proofs | None:
        """How bounds were to prove what the model does not certify itself; None: not at all."""
        note = self.cells[SEARCH].note if SEARCH in self.cells else {}
        found = note.get("identity", {}).get("attack", {})
        is_search = found.get("name") == SEARCH and SEARCH not in self.inapplicable
        return Proofs(**found["options"]) if is_search else None

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
        """The misclassified points of an attack, as they were judged; of the samples `among` (k,)
        alone, where only these are asked for."""
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
        index, points = np.concatenate(indices), np.concatenate(kept)
        if self.scale is not None:  # the model was given their products, in its own precision
            double = self.precision == "float64"
            points = (points * self.scale).astype(np.float64 if double else np.float32)
        return Examples(index, points)

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
