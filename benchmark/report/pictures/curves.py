"""Robust accuracy against eps, as measured and as certified."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import UserError
from benchmark.judge.records import write
from benchmark.report.measurements import Measurements
from benchmark.spec.components import NATURAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# At how many eps `plot_curves` draws.
_POINTS = 201


# A share of the samples (points,) at each of some eps (points,).
Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def upper(report: Measurements) -> Curve | None:
    """The share of samples that the closest examples of all attacks leave, for any eps up to the
    threat's: an upper bound, as attacks that do not minimise leave their examples further out than
    they need be. None where nothing was attacked, and for randomised models, whose samples have no
    distance."""
    if not report.measured or report.draws:
        return None
    closest = report.closest([NATURAL, *report.measured], broken=True).distance
    # A sample is lost from its distance on.
    return lambda eps: np.asarray((closest[None] > eps[:, None]).mean(1), np.float64)


def lower(report: Measurements) -> Curve | None:
    """The certified share of samples, for any eps; None where nothing is certified."""
    if report.certified_within(report.threat.eps) is None:
        return None

    def share(eps: NDArray[np.float64]) -> NDArray[np.float64]:
        proven = [report.certified_within(float(each)) for each in eps]
        return np.array([within.mean() for within in proven if within is not None])

    return share


def plot_curves(reports: Sequence[Measurements], axes: "Axes | None" = None) -> "Axes":
    """Draw the share of samples that is left at each eps up to that of the threat: solid, what the
    closest adversarial examples of all attacks leave, an upper bound, and dashed what is certified.

    Into some axes of Matplotlib, else into those of a new figure. Raises UserError where nothing
    gives a curve.
    """
    curves = [(report, upper(report), lower(report)) for report in reports]
    if not any(above or below for _, above, below in curves):
        raise UserError(f"no curve can be drawn: {_reason(reports)}")
    if axes is None:
        from matplotlib import pyplot

        axes = pyplot.subplots(layout="constrained")[1]
    threat = reports[0].threat
    eps = np.linspace(0, threat.eps, _POINTS)
    for place, (report, above, below) in enumerate(curves):
        for curve, style, said in ((above, "-", ""), (below, "--", ", certified")):
            if curve:
                axes.step(
                    eps, 100 * curve(eps), style, where="post", color=f"C{place}",
                    label=report.name + said,
                )  # fmt: skip
    axes.set(
        xlim=(0, 1.03 * threat.eps),
        xlabel=f"eps ({threat.norm})",
        ylabel="robust accuracy (%): upper bound; dashed, lower",
    )
    axes.legend(loc="best")
    axes.grid(alpha=0.3)
    return axes


def draw(target: Path, reports: Sequence[Measurements], data: str) -> None:
    """Draw, up to twice the eps of the threat, each report's curve from the closest points that all
    its attacks found, where any of them minimised the distance, and, dashed in the same colour,
    that of its certificate. No file is written where there are neither."""
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
    if not any(report.measured for report in reports):
        return "nothing was attacked, and nothing is certified"
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
