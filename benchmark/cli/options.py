"""Options that several commands have, and the lines that they print on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from benchmark.executors import Executor
    from benchmark.export.thresholds import Thresholds
    from benchmark.report.report import Report

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
RunSuite = Annotated[
    str | None, typer.Option(help="A named set of attacks, or learned:RUN, as a cascade.")
]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.")]
Seeds = Annotated[
    str | None, typer.Option(help="Several trainings of each defense: 0,1,2, in place of seed.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Work in so many processes, on Ray, at once.")
]
RayAddress = Annotated[
    str | None, typer.Option("--ray", help="Work on the Ray cluster at this address, or auto.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Of each worker, or of this process without workers.")
]
FailUnder = Annotated[
    str | None,
    typer.Option(
        metavar="PERCENT",
        help="Exit with 4 where best-attack of a row is below: 60, or natural=98,best-attack=60.",
    ),
]
Junit = Annotated[
    Path | None, typer.Option(help="An XML file for CI: a test for each row and attack.")
]


def thresholds_of(fail_under: str | None, junit: Path | None) -> "Thresholds":
    """What is asked of each row of a run. Raises UserError where it cannot be read."""
    from benchmark.export.thresholds import Thresholds

    return Thresholds.of(fail_under, junit)


@contextmanager
def executor_of(
    workers: int | None, address: str | None, threads: int | None
) -> Iterator["Executor"]:
    """What carries out the work of a command, while the context lasts. Raises UserError where it
    cannot be had."""
    from benchmark.executors import executor_for

    with executor_for(workers, address, threads) as executor:
        yield executor


def say(line: str) -> None:
    """Print a line on stderr, above progress bars."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def speaker(quiet: bool) -> Callable[[str], None]:
    """The function that prints how far a command is, or one that prints nothing if `quiet`."""
    return (lambda line: None) if quiet else say


def warn_of_contradictions(reports: list["Report"], err: bool) -> None:
    """Print a line for each report in which attacks contradict a certificate."""
    from benchmark.report import tables

    for line in tables.contradictions(reports):
        typer.echo(f"CONTRADICTION: {line}: its certificate or its model is wrong", err=err)
