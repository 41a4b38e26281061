"""`bestattack doctor`: whether this machine is ready for runs, and what to mend where it is not."""

import typer

from benchmark.cli.options import Root


def doctor(data_root: Root = None) -> None:
    """Look at software, devices, data and speed of this machine, and say what is to mend.

    The exit status is 1 only where runs would fail or go wrong.
    """
    from benchmark.machine import closing, sections

    seen = []
    for section in sections(data_root):
        typer.echo(f"{section}\n")
        seen.append(section)
    typer.echo(closing(seen))
    if any(line.is_wrong for section in seen for line in section.lines):
        raise typer.Exit(1)
