"""Options that several commands have, and the lines that they print on stderr."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

Root = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        help="Folder that holds the data sets. Default: $BESTATTACK_DATA, then the user's cache.",
    ),
]
Plugins = Annotated[
    list[Path], typer.Option("--plugin", help="Python file with ATTACKS, DEFENSES or DATASETS.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.")]


def say(line: str) -> None:
    """Print a line on stderr, above progress bars."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def speaker(quiet: bool) -> Callable[[str], None]:
    """The function that prints how far a command is, or one that prints nothing if `quiet`."""
    return (lambda line: None) if quiet else say
