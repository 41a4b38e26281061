"""Flags: signs that a number is not to be trusted, what each means, and what to do about it.

The conditions of those that records tell are in `flag_rules`. Those that a look at a model raises
are raised in `benchmark.judge`: each such flag names its function.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmark.judge.examination import check_model, examine
from benchmark.judge.probes import probe
from benchmark.judge.subject import UNDEFINED, Subject
from benchmark.report.accuracy import doubtful
from benchmark.report.flag_rules import (
    CHANCE,
    CLEARLY,
    FEWEST,
    LAST,
    STILL,
    beaten_by_transfer,
    beaten_without_gradients,
    is_chance,
    unconverged,
    width_of,
)
from benchmark.report.measurements import Measurements
from benchmark.report.radii import ROUNDING
from benchmark.spec.components import NATURAL


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
        holds=beaten_without_gradients,
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
        holds=beaten_by_transfer,
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
        holds=unconverged,
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
        holds=lambda report: report.threat.norm == "linf" and report.threat.eps >= width_of(report),
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
