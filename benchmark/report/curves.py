"""The picture of a run: robust accuracy against eps, as measured and as certified."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmark.judge.records import write
from benchmark.report.measurements import Measurements


def draw(target: Path, reports: Sequence[Measurements], data: str) -> None:
    """Draw each report's curve from the attacks that minimised the distance and, dashed in the same
    colour, the curve of its certificate. No file is written where there are neither."""
    curves = [
        (report.name, distances, radii)
        for report in reports
        for distances, radii in [(report.minimal_distances(), _certified(report))]
        if distances is not None or radii is not None
    ]
    if not curves:
        return
    from matplotlib.figure import Figure

    threat = reports[0].threat
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, (name, distances, radii) in enumerate(curves):
        colour = f"C{place}"
        if distances is not None:
            axes.plot(*_steps(distances, 2 * threat.eps), color=colour, label=name)
        if radii is not None:
            steps = _steps(radii, 2 * threat.eps)
            axes.plot(*steps, color=colour, linestyle="--", label=f"{name}, certified")
    axes.axvline(threat.eps, color="grey", linewidth=0.8, linestyle=":")
    axes.set(
        xlim=(0, 2 * threat.eps),
        ylim=(0, 100),
        xlabel=f"eps ({threat.norm})",
        ylabel="robust accuracy (%), an upper bound",
        title=f"{data}: closest misclassified points found",
    )
    if any(radii is not None for _, _, radii in curves):
        axes.set_ylabel("robust accuracy (%): upper and lower bounds")
        axes.set_title(f"{data}: closest misclassified points found, and certificates")
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3)
    write(target, lambda file: figure.savefig(file, format="png", dpi=150))


def undrawn(reports: Sequence[Measurements]) -> list[str]:
    """Why `draw` draws nothing, and what would give a curve: a line for each threat
    under which, or seed with which, it does not."""
    lines = []
    for under in dict.fromkeys(report.under for report in reports):
        shown = [report for report in reports if report.under == under]
        if all(r.minimal_distances() is None and _certified(r) is None for r in shown):
            where = f" for {under}" if under else ""
            lines.append(f"No curve is drawn{where}: {_reason(shown)}.")
    return lines


def _reason(reports: Sequence[Measurements]) -> str:
    if all(report.draws for report in reports):
        return "a randomised model has no boundary to be distant from"
    if reports[0].threat.norm == "l1":
        return "no attack minimised the distance, as none does under L1"
    return "no attack minimised the distance; add the attack cw/minimize"


def _certified(report: Measurements) -> NDArray[np.float64] | None:
    """Up to which eps each sample (n,) is certified; 0 where it is not classified correctly."""
    correct = report.certified_within(0.0)
    if correct is None or report.certificate is None:
        return None
    return np.where(correct, report.certificate.radius, 0.0)


def _steps(lasts: NDArray[np.float64], end: float) -> tuple[NDArray[np.float64], ...]:
    """The curve (eps, %) of the samples that are left, up to the eps `end` or beyond; each sample
    lasts to its distance in `lasts` (n,)."""
    reached = np.sort(lasts[np.isfinite(lasts)])
    eps = np.concatenate([[0.0], np.repeat(reached, 2), [max(end, reached.max(initial=0))]])
    left = 1 - np.arange(len(reached) + 1) / len(lasts)
    return eps, 100 * np.repeat(left, 2)
