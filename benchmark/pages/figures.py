"""The interactive pictures of a report, as plotly.js takes them, each with its numbers as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.columns import NONE, percent
from benchmark.report.captions import NORMS
from benchmark.report.measurements import Measurements
from benchmark.report.pictures.curves import lower, upper
from benchmark.spec.components import BEST, NATURAL

# At how many eps a curve is drawn, and how many of them stand in the table below it.
_POINTS, _TOLD = 101, 5

# Colours that colour-blind people tell apart (Okabe and Ito 2008, "Color universal design"), and
# that are seen on white and on black; where there are more rows than colours, lines are dashed.
COLOURS = ("#2b83ba", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8c6bb1")
_DASHES = ("solid", "dash", "dashdot")


@dataclass(frozen=True)
class Figure:
    """One picture.

    name     of its element on the page.
    title    what stands above it.
    about    what it shows, for readers and for those who cannot see it.
    data     the traces, and layout, what plotly.js is to do with them.
    heading  of the columns of the numbers below it, whose rows are `numbers`.
    """

    name: str
    title: str
    about: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    heading: list[str]
    numbers: list[list[str]]


def figures(reports: Sequence[Measurements]) -> list[Figure]:
    """The pictures of reports under one threat: curves, and natural against best-attack."""
    return [figure for draw in (_curves, trade_off) if (figure := draw(reports)) is not None]


def _curves(reports: Sequence[Measurements]) -> Figure | None:
    """Robust accuracy against eps, as attacked and as certified."""
    threat = reports[0].threat
    eps = np.linspace(0, threat.eps, _POINTS)
    told = np.linspace(0, threat.eps, _TOLD)
    data, numbers = [], []
    for place, report in enumerate(reports):
        for curve, bound, dash in (
            (upper(report), "at most", _DASHES[place // len(COLOURS) % len(_DASHES)]),
            (lower(report), "certified", "dot"),
        ):
            if curve is None:
                continue
            is_upper = bound == "at most"
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": report.name if is_upper else f"{report.name}, certified",
                    "legendgroup": report.name,
                    "x": _short(eps),
                    "y": _short(100 * curve(eps)),
                    "line": {
                        "shape": "hv",
                        "color": COLOURS[place % len(COLOURS)],
                        "dash": dash,
                        "width": 2 if is_upper else 1.5,
                    },
                    "hovertemplate": f"%{{y:.1f}}% {bound}",
                }
            )
            numbers.append([report.name, bound, *map(percent, curve(told))])
    if not data:
        return None
    norm = NORMS[threat.norm]
    return Figure(
        "curves",
        "Robust accuracy against eps",
        "Solid: the share of samples that the closest adversarial examples of all attacks leave, "
        "an upper bound at every eps, since attacks that do not look for the closest point leave "
        "theirs near the edge. Dotted: the share that is certified, a lower bound. The truth lies "
        "between. Click a name to hide it, double-click it to see it alone.",
        data,
        _layout(f"eps ({norm})", "samples left (%)", [0, threat.eps]),
        ["defense", "bound (%)", *(f"eps {each:.3g}" for each in told)],
        numbers,
    )


def trade_off(reports: Sequence[Measurements]) -> Figure | None:
    """Natural against best-attack accuracy, with intervals; None of fewer than two."""
    data, numbers = [], []
    for place, report in enumerate(reports):
        natural, best = report.accuracy(NATURAL), report.accuracy(BEST)
        if natural is None or best is None:
            continue
        low, high = best.interval
        colour = COLOURS[place % len(COLOURS)]
        certified = f"{percent(report.certified)}" if report.certified == report.certified else NONE
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": report.name,
                "x": [round(100 * natural.value, 2)],
                "y": [round(100 * best.value, 2)],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [round(100 * (high - best.value), 2)],
                    "arrayminus": [round(100 * (best.value - low), 2)],
                    "color": colour,
                },
                "marker": {
                    "color": colour,
                    "size": 10,
                    "symbol": ("circle", "square", "diamond")[place // len(COLOURS) % 3],
                },
                "hovertemplate": "natural %{x:.1f}%, best-attack %{y:.1f}% "
                f"[{percent(low)}, {percent(high)}]",
            }
        )
        numbers.append([report.name, str(natural), str(best), certified])
    if len(data) < 2:
        return None
    return Figure(
        "trade-off",
        "Natural against best-attack accuracy",
        "Each point is a defense, with the 95% interval of its best-attack accuracy: further up "
        "and to the right is better.",
        data,
        _layout("natural accuracy (%)", "best-attack accuracy (%)"),
        ["defense", "natural % [95%]", "best-attack % [95%]", "certified %"],
        numbers,
    )


def _layout(x: str, y: str, reach: list[float] | None = None) -> dict[str, Any]:
    across: dict[str, Any] = {"title": {"text": x}}
    if reach:
        across["range"] = reach
    return {"xaxis": across, "yaxis": {"title": {"text": y}}}


def _short(values: NDArray[np.float64]) -> list[float]:
    """Numbers with as many digits as can be seen."""
    return [float(f"{value:.5g}") for value in values]
