"""The columns of best-attack accuracy with a row per defense: what each table shows of it, and
what is still to come in a run that is not finished."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmark.columns import Column, Shown, Table, percent
from benchmark.latex import Tex
from benchmark.report.accuracy import Accuracy, plain_share
from benchmark.report.flags import explain
from benchmark.report.measurements import Measurements
from benchmark.report.paired import LEVEL, highest
from benchmark.spec.components import BEST, SEARCH


def best_column(measured: Iterable[str]) -> Column[Measurements]:
    """Best-attack accuracy with its interval, over the labels `measured`."""
    over = f"worst case per sample over {_names(measured)}"
    said = (
        f"best-attack: if no attack breaks it ({over}). Samples that are misclassified clean count "
        "as broken in every column and are not attacked."
    )
    shown: dict[Table, Shown] = {
        "run": Shown(f"{BEST} [95% interval]", said),
        "seeds": Shown(BEST, said),
        "json": Shown("best_attack"),
        "board": Shown(
            f"{BEST} [95%]",
            "best-attack: classified correctly and broken by no attack; images misclassified clean "
            "count as broken in every column.",
        ),
    }
    return Column(shown, _best, str, plain_share, style="best")


def best_in_latex(measured: Iterable[str], clear: Measurements | None) -> Column[Measurements]:
    """The same in LaTeX, where the interval is small and one accuracy may be bold."""
    caption = (
        "best-attack: the share that is classified correctly and that no attack breaks (worst case "
        f"per sample over {_names(measured)}), with its 95% interval. Samples "
        "that are misclassified clean count as broken everywhere and are not attacked."
    )
    if clear is not None:
        caption += (
            " Bold: the highest, beyond chance (McNemar's exact test against each other row, at "
            "5% for all together), and without a flag."
        )

    def value(report: Measurements) -> str | None:
        accuracy = report.accuracy(BEST)
        if accuracy is None:
            return "error" if report.failed else None
        share, interval = str(accuracy).split(" ", 1)
        share = rf"\textbf{{{share}}}" if report is clear else share
        return Tex(rf"{share} {{\scriptsize {interval}}}")

    return Column({"latex": Shown(BEST, caption)}, value)


def standing_column(measured: Iterable[str], clear: Measurements | None) -> Column[Measurements]:
    """Best-attack accuracy as a terminal and pages show it: of a run that is not finished it is no
    more than a bound, and the highest is marked where it is so beyond chance."""
    caption = (
        f"best-attack: classified correctly, and broken by no attack ({_names(measured)})."
        if measured
        else "best-attack: no attack counts yet."
    )
    heading = f"{BEST} [95%]"
    of_page = Shown(heading, f"{caption} A better attack may lower it.")
    if clear is not None:
        caption += " *: the highest, beyond chance (McNemar's exact test against each other row)."

    def value(report: Measurements) -> _Standing | str | None:
        best = _best(report)
        if not isinstance(best, Accuracy):
            return best
        return _Standing(best, bool(report.unfinished), report is clear)

    return Column({"terminal": Shown(heading, caption), "page": of_page}, value, style="best")


@dataclass(frozen=True)
class _Standing:
    """A best-attack accuracy, whether it may still fall, and whether it is marked as highest."""

    best: Accuracy
    may_fall: bool
    is_clear: bool

    def __str__(self) -> str:
        if self.may_fall:
            return f"at most {percent(self.best.value)}"
        return f"{'* ' if self.is_clear else ''}{self.best}"


# What a run in progress has still to do on a defense.
UNFINISHED = Column[Measurements](
    dict.fromkeys(("terminal", "page"), Shown("not finished", optional=True)),
    lambda report: report.unfinished or None,
    text="; ".join,
    left=True,
)


def clearly_best(reports: Sequence[Measurements]) -> Measurements | None:
    """The report whose best-attack accuracy is the highest beyond chance; None where none is, or
    that means nothing: see `_highest`."""
    best, others = _highest(reports) or (None, [])
    return None if others else best


def on_highest(reports: Sequence[Measurements]) -> str:
    """A sentence on which best-attack accuracy is the highest, where it may be so by chance over
    some others; empty where it is so beyond chance, or that means nothing."""
    best, others = _highest(reports) or (None, [])
    if best is None or not others:
        return ""
    equal = [report.name for report in reports if report.best_attack == best.best_attack]
    if len(equal) > 1:
        return f"{_listed(equal)} share the highest best-attack."
    listed = _listed([report.name for report in others])
    beyond = "" if len(others) == len(reports) - 1 else "; over each other row it is beyond chance"
    return (
        f"{best.name} has the highest best-attack. Its lead over {listed} may be chance{beyond} "
        "(McNemar's exact test on the same samples, at 5% for all these pairs together)."
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _highest(reports: Sequence[Measurements]) -> tuple[Measurements, list[Measurements]] | None:
    """The report whose best-attack accuracy is the highest, and those over which that may be
    chance. None where there is only one, and where it means nothing: the best one has a flag, or
    was not met by an attack that counts on another; any is not finished or of a randomised model,
    whose samples count by shares of draws; or in some rows rejecting an image is not wrong."""
    verdicts = [report.robust_to(BEST) for report in reports]
    known = [verdict for verdict in verdicts if verdict is not None]
    if len(known) < max(len(reports), 2):
        return None
    if any(report.unfinished or report.draws for report in reports):
        return None
    if len({report.allowed for report in reports}) > 1:
        return None
    best, others = highest(known, LEVEL)
    if explain(reports[best]):
        return None
    # A row that met fewer attacks than another may be higher for that alone.
    if any(set(report.measured) - set(reports[best].measured) for report in reports):
        return None
    return reports[best], [reports[place] for place in others]


def _names(measured: Iterable[str]) -> str:
    """What captions call what best-attack accuracy is over."""
    names = [name if name != SEARCH else "the search for proofs" for name in measured]
    return ", ".join(names) or "none yet"


def _best(report: Measurements) -> Accuracy | str | None:
    return report.accuracy(BEST) or ("error" if report.failed else None)
