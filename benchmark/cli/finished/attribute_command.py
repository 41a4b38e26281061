"""bestattack attribute: which attack of a run broke what, and which order would be sooner."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.options import RunFolder


def attribute(
    folder: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="A CSV file for what broke each sample, and when.")
    ] = None,
) -> None:
    """Which attack of a run broke what first, what each was worth, and the order that is soonest.

    `--suite learned:RUN` carries out that order, over all rows together, in another run.
    """
    from benchmark.analysis.learned_order import reports_of
    from benchmark.columns import frame_csv
    from benchmark.errors import UserError
    from benchmark.judge.records import write_text
    from benchmark.report.breaks.attribution import attribution, frame, render

    _, reports = reports_of(folder)
    counted = [report for report in reports if report.finished_attacks]
    if not counted:
        raise UserError(f"{folder} holds no finished attack: there is nothing to attribute")
    told = [attribution(report) for report in counted]
    typer.echo(render(told, counted))
    for report in reports:
        if report not in counted:
            typer.echo(f"- {report.called}: no attack is finished")
    if out is not None:
        write_text(out, frame_csv(frame(told)))
        typer.echo(f"Per sample: {out}")
