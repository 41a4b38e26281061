"""What commands print of a run's results: its tables, and the command that is of use next."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from benchmark.report.report import Report
    from benchmark.spec.run_spec import RunSpec

Wide = Annotated[
    bool, typer.Option("--wide", help="As Markdown, with each attack and its work: see table.md.")
]

# What was printed: a run that was just carried out, its tables, or its replay.
Shown = Literal["run", "report", "wide report", "verify"]

# The attack that remedies of flags name.
_REMEDY = "strong"


def print_tables(reports: Sequence["Report"], spec: "RunSpec", wide: bool) -> None:
    """Print the tables of a run."""
    from benchmark.terminal import printed
    from benchmark.whole import run_tables

    render = run_tables.render if wide else lambda *given: printed(run_tables.page(*given))
    typer.echo(render(reports, spec), nl=wide)


def print_sentences(*lines: str) -> None:
    """Print some lines, wrapped, but for those that are empty."""
    from benchmark.terminal import Words, printed

    if told := [Words(line) for line in lines if line]:
        typer.echo(printed([told]), nl=False)


def missing(lines: Sequence[str], wide: bool) -> list[str]:
    """What to say of what a run lacks, given a line on each defense and attack: a table says of
    attacks itself, unless it is `wide`."""
    end = ": not measured"
    whole = [line.removesuffix(end) for line in lines if line.endswith(end)]
    told = [f"{line}." for line in lines if wide and not line.endswith(end)]
    return told + ([f"Not measured yet: {', '.join(whole)}."] if whole else [])


def next_command(
    shown: Shown,
    folder: Path,
    reports: Sequence["Report"],
    spec: "RunSpec",
    unfinished: bool = False,
    in_use: bool = False,
) -> str:
    """The line that says which command is of use next.

    unfinished  whether the run lacks something, and `in_use` whether another process works on it.

    A run that is under way is looked at again. One that is not finished, or in which something
    failed, is run again. A flag is followed that `strong` may clear up. A table that is done is
    replayed, or shown whole.
    """
    place = shlex.quote(str(folder))
    # A part of a run, as one seed of several, is measured with the whole, which has the spec.
    is_part = bool(reports and reports[0].under) and not (spec.threats or spec.seeds)
    whole = folder.absolute().parents[1] if is_part else folder
    file, out = (shlex.quote(str(path)) for path in (whole / "spec.yaml", whole))
    again = f"bestattack run {file} --out {out}"
    if in_use:
        return f"For how far it is: bestattack report {place}"
    if unfinished or any(report.errors for report in reports):
        return f"To measure what is missing: {again}"
    if _asks_for_strong(reports):
        if any(component.given_label is not None for component in spec.attacks):
            return f"For the flags, add {_REMEDY} to the attacks of the spec: {again}"
        attacks = [*(component.label for component in spec.attacks), _REMEDY]
        options = " ".join(f"--attack {shlex.quote(attack)}" for attack in attacks)
        return f"For the flags: {again} {options}"
    if shown in ("run", "wide report"):
        return f"To replay every example: bestattack verify {place}"
    return f"For each attack and its work: bestattack report {place} --wide"


def _asks_for_strong(reports: Sequence["Report"]) -> bool:
    """Whether the remedy of some flag is the attack `strong`, which its report has not whole."""
    from benchmark.report.flags import FLAGS

    return any(
        f"--attack {_REMEDY}" in FLAGS[code].remedy and not _has_strong(report)
        for report in reports
        for code in report.flags
        if code in FLAGS
    )


def _has_strong(report: "Report") -> bool:
    notes = [report.cells[label].note.get("identity", {}) for label in report.measured]
    attacks = [note.get("attack", {}) for note in notes]
    return any(
        attack.get("name") == _REMEDY and not attack.get("options", {}).get("quick")
        for attack in attacks
    )
