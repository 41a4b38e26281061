"""The commands under `bestattack export`, which write what papers and model pages need of a run."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.options import RunFolder

Out = Annotated[
    Path | None, typer.Option(help="Write it into a file, which may be an earlier export.")
]

export = typer.Typer(help="A finished run as a table in LaTeX, references, or a model card.")


@export.command()
def latex(
    folder: RunFolder,
    attacks: Annotated[
        bool, typer.Option(help="Whether each attack has a column, which makes the table wide.")
    ] = True,
    out: Out = None,
) -> None:
    """The table of a run in LaTeX, with its caption, for the package booktabs."""
    from benchmark.export.exported_run import ExportedRun

    _give(ExportedRun.of(folder).latex(attacks), out)


@export.command()
def bibtex(folder: RunFolder, out: Out = None) -> None:
    """The references of the attacks, defenses and data that a run used, in BibTeX."""
    from benchmark.export.exported_run import ExportedRun

    _give(ExportedRun.of(folder).bibtex(), out)


@export.command("model-card")
def model_card(
    folder: RunFolder,
    defense: Annotated[str | None, typer.Option(help="A row, by its label; default: all.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Where readers find the run: the source in the metadata.")
    ] = None,
    out: Out = None,
) -> None:
    """A model card of Hugging Face: metadata, and a section on robustness."""
    from benchmark.export.exported_run import ExportedRun

    _give(ExportedRun.of(folder).model_card(defense, url), out)


def _give(text: str, out: Path | None) -> None:
    """Print a text, or write it into a file."""
    from benchmark.export.exported_run import write_export

    if out is None:
        typer.echo(text, nl=False)
    else:
        write_export(out, text)
        typer.echo(f"Written: {out}")
