"""Flags: signs that a number is not to be trusted, what each means, and what to do about it."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmark.judge.probes import probe
from benchmark.judge.subject import UNDEFINED, check_model, examine
from benchmark.report.accuracy import doubtful
from benchmark.report.diagnostics import (
    CHANCE,
    CLEARLY,
    FEWEST,
    LAST,
    STILL,
    beaten_by_transfer,
    beaten_without_gradients,
    unconverged,
)
from benchmark.report.measurements import Measurements
from benchmark.report.radii import ROUNDING


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag.

    A flag is added here alone, in _FLAGS, where the records of a report tell it; one that a look at
    the model raises is added to the function that looks, too. The leaderboard's record.schema.json,
    which `bestattack leaderboard build` writes, lists the codes.

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
        """The part of the program that raises it."""
        if self.seen_by is None:
            return "the records"
        return f"{self.seen_by.__module__}.{self.seen_by.__qualname__}"


_FLAGS = (
    Flag(
        code="train-mode",
        meaning="was handed over in training mode; it was evaluated in eval mode",
        remedy="call its eval() before you hand it over",
        joint=None,
        rule="the model's attribute `training` is true",
        seen_by=examine,
    ),
    Flag(
        code="probabilities",
        meaning="returns probabilities, not logits: gradients may vanish",
        remedy="remove the softmax",
        rule="on the first block of clean images, all outputs are at least 0 and those of each "
        "image add up to 1, within 1e-4",
        seen_by=check_model,
    ),
    Flag(
        code="non-deterministic",
        meaning="gives other logits for the same input; verdicts hold for one draw only",
        remedy="switch off what is random in it, or hand over the mean of many draws",
        joint=None,
        rule="two passes over the first block of clean images differ in any logit",
        seen_by=check_model,
    ),
    Flag(
        code="float32-only",
        meaning="does not run in float64, so verdicts were checked in float32 alone",
        remedy="mend what ties it to float32, such as tensors that are no buffers",
        joint=None,
        rule="a pass over the first block of clean images raises in float64",
        seen_by=check_model,
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
        code="zero-gradient",
        meaning="gives zero or tiny gradients on most clean images, so gradient attacks see "
        "nothing: its accuracies are not to be trusted",
        remedy="attack a differentiable stand-in",
        rule="on more than 50% of the first 64 images that are classified correctly, the clean "
        "gradient, followed straight across the whole box, reaches no other class; or a backward "
        "pass fails",
        seen_by=probe,
    ),
    Flag(
        code="no-ascent",
        meaning="its loss hardly rises along its own gradient, which points nowhere: accuracies "
        "are not to be trusted",
        remedy="add strong, square or boundary, or attack a smoother stand-in",
        rule="on more than 50% of the first 64 images that are classified correctly, 20 gradient "
        "steps within eps raise the margin by less than 10% of what the clean gradient promises",
        seen_by=probe,
    ),
    Flag(
        code="large-eps",
        meaning="withstands PGD within the whole box, where any image can become any other: "
        "gradients are hidden, not gone",
        remedy="add strong, square or boundary, or transfer from a stand-in",
        rule="60 gradient steps within the whole box, from a random start, leave unbroken more "
        "than 5% of the first 64 images that are classified correctly",
        seen_by=probe,
    ),
    Flag(
        code="gradient-free",
        meaning="an attack without gradients broke clearly more than the best with them: "
        "gradients mislead, or those attacks are too weak",
        remedy="add strong, and more steps and restarts",
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
        "attacks that minimise the distance do not count",
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
        code="chance",
        meaning="is right on clean images no more often than a guess",
        remedy="check labels, normalisation",
        joint=": ",
        rule="natural accuracy is at most 1 divided by the number of logits",
        holds=lambda report: report.logits is not None and report.natural <= 1 / report.logits,
    ),
    Flag(
        code="whole-range",
        meaning="eps lets a pixel take any value",
        remedy="it is for images in [0, 1], such as 8/255",
        joint=": ",
        rule="the norm is L-infinity and eps is 1 or more",
        holds=lambda report: report.threat.norm == "linf" and report.threat.eps >= 1,
    ),
    Flag(
        code="outside-ball",
        meaning="an attack returned points outside the ball or box, or NaN; they were "
        "projected before they were judged",
        remedy="let the attack project its points itself: those that it moves may no longer be "
        "misclassified",
        joint=None,
        rule="a point that an attack returned is NaN, or lies outside the box or, for an attack "
        "with a fixed budget, outside the ball, by more than 0.01% of eps",
        holds=lambda report: any(report.outside.values()),
    ),
    Flag(
        code="rounding",
        meaning="misclassifies some points in one precision only, which do not count as broken",
        remedy="try precision float64",
        rule="float32 misclassifies a point that was judged, and float64 does not",
        holds=lambda report: any(doubtful(frame).any() for frame in report.frames.values()),
    ),
    Flag(
        code="nan",
        meaning="gives NaN logits at some points; these count as misclassified",
        remedy="look for an operation that overflows or divides by 0",
        joint=None,
        rule="a logit of a point that was judged is NaN",
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


def describe_flags(width: int = 100) -> str:
    """Every flag, with its meaning, what to do about it, and what raises it, as text."""
    return "\n\n".join(_described(flag, width) for flag in _FLAGS)


def _described(flag: Flag, width: int) -> str:
    facts = {
        "meaning": flag.meaning,
        "remedy": flag.remedy,
        "raised by": f"{flag.raised_by}, if {flag.rule}",
    }
    lines = [
        textwrap.fill(
            text, width, initial_indent=f"    {name:11}", subsequent_indent=" " * 15,
            break_on_hyphens=False, break_long_words=False,
        )
        for name, text in facts.items()
    ]  # fmt: skip
    return "\n".join([flag.code, *lines])
