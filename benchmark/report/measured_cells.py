"""What was measured on one model, as its cells hold it: records are taken in, and checked for being
whole."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attacks import ThreatModel
from benchmark.data.choice import Choice
from benchmark.judge.records import Block, Cell, IntArray, MemoryCell, blocks_of
from benchmark.report.accuracy import Begun, LeftOut, robust_shares
from benchmark.report.radii import Proved, Radii
from benchmark.spec.components import CERTIFIED, NATURAL, SEARCH
from benchmark.spec.proof_setting import Proofs
from benchmark.spec.run_spec import Mode


class MeasuredCells:
    """The cells of what was measured on one model, and which samples and attacks count.

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
        held, seconds, outside = MemoryCell(), 0.0, 0  # a cell that joins small blocks
        for block in self.blocks(label, images=False):
            held.add(block)
            seconds += float(block.seconds.sum())
            outside += int(block.outside.sum())
        frames = [block.frame() for block in held.blocks()]
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
    def labels(self) -> IntArray:
        """The label (n,) of each sample."""
        clean = self.frames[NATURAL]
        labels = np.zeros(self.total, np.int64)
        labels[clean["index"]] = clean["label"]
        return labels

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

    @property
    def finished_attacks(self) -> list[str]:
        """The attacks that count, without the search for proofs."""
        return [label for label in self.measured if label != SEARCH]

    def why_failed(self, label: str) -> str | None:
        """Why there is no accuracy of some kind, where something failed: of the certified one, the
        model's own certificate or the search for proofs."""
        return next((self.errors[part] for part in _parts_of(label) if part in self.errors), None)

    def why_inapplicable(self, label: str) -> str | None:
        """Why there is none, where what gives it does not apply to the model."""
        if label == CERTIFIED and CERTIFIED in self.keys:
            return None
        reasons = (self.inapplicable.get(part) for part in _parts_of(label))
        return next(filter(None, reasons), None)

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

    @property
    def proofs(self) -> Proofs | None:
        """How bounds were to prove what the model does not certify itself; None: not at all."""
        note = self.cells[SEARCH].note if SEARCH in self.cells else {}
        found = note.get("identity", {}).get("attack", {})
        is_search = found.get("name") == SEARCH and SEARCH not in self.inapplicable
        return Proofs(**found["options"]) if is_search else None


def _parts_of(label: str) -> tuple[str, ...]:
    """The labels of what an accuracy is made by, but for best-attack."""
    return (CERTIFIED, SEARCH) if label == CERTIFIED else (label,)
