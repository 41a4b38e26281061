"""Whether the rows of a run are as robust as is asked for: a verdict for scripts and CI."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from benchmark.errors import BelowError, UserError, did_you_mean
from benchmark.judge.records import write_text
from benchmark.report.columns.detail_columns import lines
from benchmark.report.flags import explain
from benchmark.report.measurements import Measurements
from benchmark.spec.components import BEST, CERTIFIED, NATURAL

_KNOWN = (NATURAL, BEST, CERTIFIED)

# The flags that say that best-attack, or what is certified, is known to be too high.
_VOID = {
    BEST: ("attack-error", "left-out"),
    CERTIFIED: ("contradiction",),
}


@dataclass(frozen=True)
class Thresholds:
    """What is asked of each row of a run.

    least  the accuracies in %, by "natural", "best-attack" or "certified", below which it fails.
    junit  a file for what came of each row, in the XML of JUnit; None: none.
    """

    least: Mapping[str, float] = field(default_factory=dict)
    junit: Path | None = None

    @classmethod
    def of(cls, text: str | None, junit: Path | None) -> "Thresholds":
        """Read what a user wrote: "60", or "natural=98,best-attack=60". Raises UserError.

        >>> Thresholds.of("60", None).least, Thresholds.of("natural=98,certified=4.5", None).least
        ({'best-attack': 60.0}, {'natural': 98.0, 'certified': 4.5})
        """
        least = {}
        for part in text.split(",") if text is not None else ():
            name, named, number = part.strip().rpartition("=")
            label = name if named else BEST
            if label not in _KNOWN:
                hint = did_you_mean(label, _KNOWN, f"use {', '.join(_KNOWN)}")
                raise UserError(f"fail-under: there is no accuracy {label!r}: {hint}")
            try:
                least[label] = float(number)
            except ValueError:
                least[label] = math.nan
            if not 0 <= least[label] <= 100:
                raise UserError(f"fail-under: {number!r} is not a percentage, as in 60")
        return cls(least, junit)

    def __bool__(self) -> bool:
        return bool(self.least) or self.junit is not None

    def check(self, reports: Sequence[Measurements], missing: Sequence[str] = ()) -> None:
        """Write what came of each row. Raises BelowError, which names what falls short and by how
        much; `missing` are lines on what the run has not measured."""
        if self.junit is not None:
            write_text(self.junit, self._as_junit(reports, missing))
        short = [
            f"{report.called}: {reason}"
            for report in reports
            for label in self.least
            if (reason := self.shortfall(report, label))
        ]
        if self.least and (short or missing):
            raise BelowError(f"below what --fail-under asks for: {'; '.join([*short, *missing])}")

    def shortfall(self, report: Measurements, label: str) -> str | None:
        """Why a row falls short under a label; None where it does not."""
        if label not in self.least:
            return None
        accuracy, least = report.accuracy(label), self.least[label]
        if accuracy is None:
            return f"it has no {label} accuracy"
        value = 100 * accuracy.value
        if value < least and not math.isclose(value, least):
            return f"{label} {value:.4g} is {least - value:.3g} below {least:g}"
        void = [code for code in _VOID.get(label, ()) if code in explain(report)]
        return f"{label} is too high, by its flag {', '.join(void)}" if void else None

    def _as_junit(self, reports: Sequence[Measurements], missing: Sequence[str]) -> str:
        """A test suite for each row, with a test case for each accuracy: an error where an attack
        failed, and a failure where an accuracy falls short."""
        root = ElementTree.Element("testsuites", name="bestattack")
        for report in reports:
            suite = ElementTree.SubElement(root, "testsuite", name=report.called)
            for line in lines([report]):
                case = ElementTree.SubElement(
                    suite, "testcase", name=line.label, classname=report.called,
                    time=f"{line.seconds or 0:.3f}",
                )  # fmt: skip
                if reason := report.why_inapplicable(line.label):
                    ElementTree.SubElement(case, "skipped", message=f"does not apply: {reason}")
                elif reason := report.why_failed(line.label):
                    ElementTree.SubElement(case, "error", message=reason)
                elif reason := self.shortfall(report, line.label):
                    ElementTree.SubElement(case, "failure", message=reason)
                if line.accuracy:
                    ElementTree.SubElement(case, "system-out").text = str(line.accuracy)
        for line_on in missing:
            suite = ElementTree.SubElement(root, "testsuite", name=line_on)
            case = ElementTree.SubElement(suite, "testcase", name="measured", classname=line_on)
            ElementTree.SubElement(case, "error", message="not measured")
        for suite in root:
            counted = {"failures": "failure", "errors": "error", "skipped": "skipped"}
            suite.set("tests", str(len(suite)))
            for attribute, tag in counted.items():
                suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode", xml_declaration=True)
        # XML knows no other control characters, such as those that colour what libraries raise.
        return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "?", text) + "\n"
