"""`bestattack compare`: which of the rows of runs is more robust, and how sure that is."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.spec.components import BEST


def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs on the same samples.")
    ],
    of: Annotated[
        str, typer.Option(help="natural, certified, best-attack, or an attack by its label.")
    ] = BEST,
    rows: Annotated[
        list[str], typer.Option(metavar="ROW", help="A row by its label; repeat it. [default: all]")
    ] = [],  # noqa: B006
    against: Annotated[
        str | None,
        typer.Option(metavar="ROW", help="Compare all with this row. [default: each two rows]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A CSV file for the samples that do not count the same for both."),
    ] = None,
) -> None:
    """Compare rows sample by sample: differences with intervals, and which of them are no chance.

    Nothing is measured. Rows must be on the same samples and labels, under one threat.
    """
    from benchmark.analysis.comparison import compared
    from benchmark.analysis.rows_of_runs import rows_of_runs
    from benchmark.columns import frame_csv
    from benchmark.judge.records import write_text

    reports, reference = rows_of_runs(folders, rows, against)
    comparison = compared(reports, of, reference)
    typer.echo(comparison.to_markdown())
    if out is not None:
        write_text(out, frame_csv(comparison.changed()))
        typer.echo(f"\nSamples that do not count the same: {out}")
