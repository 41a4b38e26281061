"""What every study hands back: records, the table that they make, and a picture."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.columns import escaped, frame_csv, frame_markdown
from benchmark.judge.records import write, write_text
from benchmark.report.report import Report


@dataclass(frozen=True, eq=False)
class Study:
    """What a study found.

    name     the name of its files, without their endings.
    records  all that it measured, as numbers; shares are fractions, NaN where there is nothing to
             take a share of.
    table    what is printed of the records, every value as text.
    caption  what the numbers are over.
    figure   its picture, a figure of matplotlib.
    """

    name: str
    records: pd.DataFrame
    table: pd.DataFrame
    caption: str
    figure: Any

    def markdown(self) -> str:
        """The table and its caption."""
        paragraphs = map(escaped, self.caption.split("\n\n"))
        return "\n\n".join([frame_markdown(self.table), *paragraphs]) + "\n"

    def write(self, folder: Path) -> None:
        """NAME.md, NAME.csv and NAME.png. Raises UserError where they cannot be written."""
        write_text(folder / f"{self.name}.md", self.markdown())
        write_text(folder / f"{self.name}.csv", frame_csv(self.records))
        picture = folder / f"{self.name}.png"
        write(picture, lambda file: self.figure.savefig(file, format="png", dpi=150))


def flagged(reports: Iterable[Report]) -> str:
    """What a caption says of the flags of some reports: an empty text where there are none."""
    lines = dict.fromkeys(
        f"{report.name}: {', '.join(report.flags)}" for report in reports if report.flags
    )
    return f" Flags: {'; '.join(lines)}." if lines else ""


def axes(height: float) -> tuple[Any, Any]:
    """A figure of matplotlib, 7 by `height` inches, and its only axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), layout="constrained")
    plot = figure.subplots()
    plot.grid(alpha=0.3)
    return figure, plot


def pairs(records: pd.DataFrame, x: str, solid: str, dashed: str) -> tuple[Any, Any]:
    """A figure of matplotlib and its only axes, with two lines for each defense: two columns of
    shares, one drawn solid and one dashed, against the column `x`."""
    figure, plot = axes(4.5)
    for place, (name, rows) in enumerate(records.groupby("defense", sort=False)):
        colour = f"C{place}"
        plot.plot(rows[x], 100 * rows[solid], "o-", color=colour, label=str(name))
        plot.plot(rows[x], 100 * rows[dashed], "s--", color=colour)
    plot.legend(loc="upper right")
    return figure, plot
