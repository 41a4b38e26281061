"""Flags: signs that a number is not to be trusted, what each means, and what to do about it.

The functions that tell a flag from the records of a report stand here too, above the flags. Those
that raise one from a look at a model are in `benchmark.judge`: each such flag names its function.
"""

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmark.judge.examination import check_model, examine
from benchmark.judge.probes import probe
from benchmark.judge.subject import UNDEFINED, Subject
from benchmark.report.accuracy import doubtful
from benchmark.report.measurements import Measurements
from benchmark.report.paired import Paired
from benchmark.report.radii import ROUNDING
from benchmark.spec.components import NATURAL, SEARCH

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


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag.

    A flag is an entry in _FLAGS and a row in the tables of docs/flags.md. One that a look at the
    model raises is added to the function that looks, too. The codes are also in the leaderboard's
    record.schema.json, which `bestattack leaderboard build` writes.

    code     its name in tables.
    meaning  what it says of the model or its attacks.
    remedy   what to do about it.
    joint    what stands between meaning and remedy in the line below a table; with None, that line
             has the meaning alone.
    rule     when it is raised, in words, with its thresholds.
    holds    of a flag that the records tell: whether the records of a report tell it.
    seen_by  of a flag that a look at the model raises: the function that looks.
    """

    code: str
    meaning: str
    remedy: str
    joint: str | None = "; "
    rule: str
    holds: Callable[[Measurements], bool] | None = None
    seen_by: Callable[..., Any] | None = None

    @property
    def line(self) -> str:
        """What a table says of it."""
        return self.meaning if self.joint is None else f"{self.meaning}{self.joint}{self.remedy}"

    @property
    def raised_by(self) -> str:
        """What raises it, for users."""
        return "the records" if self.seen_by is None else "a look at the model"


# The conditions of flags that the records tell, as functions for `Flag.holds`.


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


def _beaten_without_gradients(report: Measurements) -> bool:
    """Whether an attack without gradients beats the best attack with gradients. In a cascade, where
    attacks do not meet the same samples, none does."""
    white_box = [trace for trace in _comparable(report) if not trace.transfers]
    return _beats(
        [trace.broken for trace in white_box if trace.is_gradient_free],
        [trace.broken for trace in white_box if trace.uses_gradients],
    )


def _beaten_by_transfer(report: Measurements) -> bool:
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


def _unconverged(report: Measurements) -> bool:
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


def _range(report: Measurements) -> float:
    """How much the values of clean pixels can differ."""
    threat = report.threat
    is_unbounded = threat.hull == (-threat.eps, 1 + threat.eps)
    return 1.0 if is_unbounded else threat.width


# The flags, in the order in which they are listed.

_FLAGS = (
    Flag(
        code="train-mode",
        meaning="is in eval mode, but for parts that are in training mode; all of it was evaluated "
        "in eval mode",
        remedy="call its eval(), or write a part that acts in eval mode too, if it is to act",
        rule="the attribute `training` of a module in the model is true, and that of the model is "
        "not",
        seen_by=examine,
    ),
    Flag(
        code="probabilities",
        meaning="returns probabilities, not logits: gradients may vanish",
        remedy="remove the softmax or sigmoid at its end",
        rule="on the first 24 clean images, all outputs are at least 0 and those of each image add "
        "up to 1, within 1e-4; or, of a model with one output per image (binary=True), all lie in "
        "[0, 1], also on these images times 100 and times -100",
        seen_by=check_model,
    ),
    Flag(
        code="non-deterministic",
        meaning="is randomised: its accuracies are means over fresh draws, and attacks on it "
        "follow means over draws",
        remedy="raise draws where intervals are wide, and expectation where attacks are weak",
        joint=None,
        rule="two calls on the same points differ in any logit, on some of the first clean images "
        "or whenever points are judged",
        seen_by=Subject,
    ),
    Flag(
        code="batch-dependent",
        meaning="gives an image other logits in other company or at another place in the batch: "
        "every image was forwarded alone",
        remedy="use running statistics, and nothing that mixes or numbers the images of a batch",
        joint=None,
        rule="the logits of some of the first clean images, or of points that are judged, change "
        "by more than rounding in other order, in smaller batches, alone, or among other images",
        seen_by=Subject,
    ),
    Flag(
        code="float32-only",
        meaning="does not run in float64, or is another function there, so verdicts were checked "
        "in float32 alone",
        remedy="mend what ties it to float32, such as tensors that are no buffers",
        joint=None,
        rule="a pass over some of the first clean images raises in float64, or differs from "
        "float32 by more than rounding, or the model computes in a coarser precision inside",
        seen_by=examine,
    ),
    Flag(
        code="coarse-logits",
        meaning="has logits so much larger than their differences that attacks cannot tell classes "
        "apart, and see nothing: its accuracies are not to be trusted",
        remedy="attack the logits before a sigmoid or softmax that saturates, or without what all "
        "of them share; or add --precision float64, which sees more",
        rule="the two largest logits of more than 5% of some of the first clean images differ by "
        "less than 30 units of rounding in float32, but by more than rounding in float64",
        seen_by=examine,
    ),
    Flag(
        code="attack-error",
        meaning="an attack failed; best-attack is over the others, if any: an upper bound",
        remedy="mend what the line on the attack below the table names, and run it again",
        joint=None,
        rule="an attack raised, or lacks records of some samples",
        holds=lambda report: bool(report.failed),
    ),
    Flag(
        code="left-out",
        meaning="attacks that the folder holds from earlier runs break more than those of this "
        "table: its best-attack is known to be too high",
        remedy="run it with these attacks too, which the line on what is left out names",
        rule="the run's folder holds finished records of an attack that the run does not have, on "
        "the same model, samples and threat and by the same seed, which lower best-attack",
        holds=lambda report: report.left_out is not None,
    ),
    Flag(
        code="zero-gradient",
        meaning="gives zero or tiny gradients on most clean images, so gradient attacks see "
        "nothing: its accuracies are not to be trusted",
        remedy="add --attack strong, or around an attack of yours smoothed:BASE, or bpda:BASE "
        "where steps have no gradient at all",
        rule="on more than 50% of the first 64 images that are classified correctly, the clean "
        "gradient, followed straight across the whole box, reaches no other class; or a backward "
        "pass fails",
        seen_by=probe,
    ),
    Flag(
        code="no-ascent",
        meaning="its loss hardly rises along its own gradient, which points nowhere: accuracies "
        "are not to be trusted",
        remedy="add --attack strong, or smoothed:BASE around an attack of yours",
        rule="on more than 50% of the first 64 images that are classified correctly, 20 gradient "
        "steps within eps raise the margin by less than 10% of what the clean gradient promises",
        seen_by=probe,
    ),
    Flag(
        code="large-eps",
        meaning="withstands PGD within the whole box, where any image can become any other: "
        "gradients are hidden, not gone",
        remedy="add --attack strong, or smoothed:BASE around an attack of yours",
        rule="60 gradient steps within the whole box, from a random start, leave unbroken more "
        "than 5% of the first 64 images that are classified correctly",
        seen_by=probe,
    ),
    Flag(
        code="gradient-free",
        meaning="an attack without gradients broke clearly more than the best with them: "
        "gradients mislead, or those attacks are too weak",
        remedy="add --attack strong, and more steps and restarts",
        rule="the best attack that took no backward pass breaks more samples than the best that "
        f"did, by {CLEARLY:.0%} of all or more, and by McNemar's exact one-sided test at "
        f"{CHANCE:.0%}; not in a cascade",
        holds=_beaten_without_gradients,
    ),
    Flag(
        code="transfer",
        meaning="points crafted on another model broke clearly more than the best attack on this "
        "one: its gradients mislead, or those attacks are too weak",
        remedy="add strong, attack a differentiable stand-in, and start from its points "
        "(seeded:cw)",
        rule="the best attack that crafts its points on another model breaks more samples than the "
        f"best that takes gradients of this one, by {CLEARLY:.0%} of all or more, and by McNemar's "
        f"exact one-sided test at {CHANCE:.0%}; not in a cascade",
        holds=_beaten_by_transfer,
    ),
    Flag(
        code="not-converged",
        meaning="attacks were still breaking samples when they ended: the accuracies would go "
        "on falling",
        remedy="give more steps or restarts",
        rule=f"at least {FEWEST} samples, and {STILL:.0%} of those attacked, were broken by no "
        f"attack before the last {LAST:.0%} of its forwards, or by the last of a series alone; "
        "attacks that minimise the distance do not count; as many samples must be unbroken "
        "still, and the model not be randomised",
        holds=_unconverged,
    ),
    Flag(
        code="contradiction",
        meaning="an attack found misclassified points within certified radii: its certificate "
        "or the model is wrong",
        remedy="trust neither until that is mended",
        rule="an attack broke a sample that is certified at eps, or misclassified a point nearer "
        f"than the certified radius by more than {ROUNDING:g}",
        holds=lambda report: bool(len(report.contradictions)),
    ),
    Flag(
        code="search-broke",
        meaning="the search for proofs broke samples that no attack broke: best-attack counts "
        "them, and where it leaves others open, attacks may have missed some of these too",
        remedy="add --attack strong, with another --seed where it is there",
        rule="branch and bound, or the solver, found a misclassified point within eps of a sample "
        "that no attack broke",
        holds=lambda report: report.searched > 0,
    ),
    Flag(
        code="chance",
        meaning="is right on clean images no more often than a guess, or than one answer to all",
        remedy="check labels, normalisation",
        joint=": ",
        rule="natural accuracy is at most 1 divided by the number of logits, or at most the share "
        "of the samples that are of their most frequent class, where they are of several",
        holds=lambda report: is_chance(
            report.natural, report.logits, report.frames[NATURAL]["label"].tolist()
        ),
    ),
    Flag(
        code="missing-classes",
        meaning="was measured on samples that are not of all classes, which the caption names: its "
        "accuracies say nothing of the others",
        remedy="take more samples, or --choose stratified",
        rule="no sample that was chosen is of some class of the data set",
        holds=lambda report: report.choice is not None and bool(report.choice.missing),
    ),
    Flag(
        code="whole-range",
        meaning="eps lets a pixel take any value",
        remedy="it is in units of the images, such as 8/255 in [0, 1]",
        joint=": ",
        rule="the norm is L-infinity and eps is at least what a pixel can change, 1 for images in "
        "[0, 1]",
        holds=lambda report: report.threat.norm == "linf" and report.threat.eps >= _range(report),
    ),
    Flag(
        code="outside-ball",
        meaning="an attack returned points outside the ball or box, or NaN; they were "
        "projected before they were judged",
        remedy="let the attack project its points itself: those that it moves may no longer be "
        "misclassified",
        joint=None,
        rule="a point that an attack returned is NaN, or lies outside the box or, for an attack "
        "with a fixed budget, outside the ball, by more than 0.01% of eps and than the rounding of "
        "its pixels explains",
        holds=lambda report: any(report.outside.values()),
    ),
    Flag(
        code="rounding",
        meaning="misclassifies some points in one precision, or in one of two runs, only: these do "
        "not count as broken",
        remedy="try precision float64",
        rule="the model misclassifies a point that was judged, and its twin in float64 does not, "
        "or, without a twin, the model itself in other company",
        holds=lambda report: any(
            doubtful(frame, report.allowed).any() for frame in report.frames.values()
        ),
    ),
    Flag(
        code="nan",
        meaning="gives NaN logits at some points; these count as misclassified",
        remedy="look for an operation that overflows or divides by 0",
        joint=None,
        rule="a logit of a point that was judged is NaN, or two are plus infinity",
        holds=lambda report: any(
            (frame["predicted"] == UNDEFINED).any() for frame in report.frames.values()
        ),
    ),
)

FLAGS = {flag.code: flag for flag in _FLAGS}


def explain(report: Measurements) -> dict[str, str]:
    """The flags of a report, those that a look at its model raised and those that its records tell:
    code to the line that a table says of it."""
    codes = {*report.noted} | {flag.code for flag in _FLAGS if flag.holds and flag.holds(report)}
    return {
        code: FLAGS[code].line if code in FLAGS else "a flag of another version"
        for code in sorted(codes)
    }


def describe_flags() -> str:
    """Every flag, with its meaning, what to do about it, and what raises it, as text."""
    return "\n\n".join(_described(flag) for flag in _FLAGS)


def _described(flag: Flag) -> str:
    facts = {
        "meaning": flag.meaning,
        "remedy": flag.remedy,
        "raised by": f"{flag.raised_by}, if {flag.rule}",
    }
    lines = [
        textwrap.fill(
            text, 100, initial_indent=f"    {name:11}", subsequent_indent=" " * 15,
            break_on_hyphens=False, break_long_words=False,
        )
        for name, text in facts.items()
    ]  # fmt: skip
    return "\n".join([flag.code, *lines])
