"""A run that is read from its folder: what notebooks and scripts work with."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples
from benchmark.report import tables
from benchmark.report.pictures.curves import plot_curves
from benchmark.report.report import Report
from benchmark.run.run_folder import missing_of, named, read_run
from benchmark.run.run_samples import data_again
from benchmark.terminal import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LoadedRun:
    """A run: in a shell or notebook it shows its table, and run["name"] is the report on a defense.

    folder   where it was read from.
    spec     what was asked for.
    reports  the report on each defense, in the order of the table.
    missing  a line for each defense and each attack that is not finished; empty of a whole run.

    >>> from benchmark.run.loaded_run import load_run
    >>> load_run("runs/nothing")
    Traceback (most recent call last):
    ...
    benchmark.errors.UserError: runs/nothing holds no run with results: name the folder of a run
    """

    def __init__(self, folder: Path, data_root: Path | None) -> None:
        spec, manifest, reports = read_run(folder)
        self.folder = folder
        self.missing = missing_of(spec, manifest, reports)
        self.spec = named(spec, manifest)
        self.reports = reports

        @cache
        def origin() -> tuple[Samples, Sequence[str] | None]:
            dataset, samples = data_again(folder, spec, manifest, data_root)
            return samples, dataset.labels

        for report in reports:
            report.origin = origin

    def __getitem__(self, name: str) -> Report:
        for report in self.reports:
            if report.name == name:
                return report
        names = ", ".join(report.name for report in self.reports)
        raise UserError(f"{self.folder} has no row {name!r}; it has {names}")

    def to_frame(self) -> pd.DataFrame:
        """One row per defense and attack, as numbers: see `Report.to_frame`."""
        return tables.details(self.reports)

    def to_markdown(self) -> str:
        """The tables of the run as Markdown, as its folder has them."""
        return tables.render(self.reports, self.spec)

    def plot_curve(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the curves of all defenses: see `Report.plot_curve`."""
        return plot_curves(self.reports, axes)

    def __str__(self) -> str:
        lines = [text(tables.page(self.reports, self.spec)).rstrip(), *self._unfinished]
        return "\n\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{line}</p>" for line in self._unfinished)
        return tables.notebook(self.reports, self.spec) + lines

    @property
    def _unfinished(self) -> list[str]:
        return ["This run is not finished: see `missing`."] if self.missing else []


def load_run(folder: str | Path, data_root: str | Path | None = None) -> LoadedRun:
    """Read a run from its folder, finished or not, without any model.

    data_root  where data sets are looked for first, for `plot_examples`, which reads them. The
               plugins that the run names are loaded then.

    Raises UserError where the folder holds no run with results, or a run of several threats or
    seeds, of which each has a folder of its own.
    """
    return LoadedRun(Path(folder), None if data_root is None else Path(data_root))
