"""The commands under `bestattack leaderboard`, which are added to those of `benchmark`."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from benchmark.cli.main import app
from benchmark.cli.options import Root, RunFolder, Workers, executor_of, say
from benchmark.errors import UserError

leaderboard = typer.Typer(
    help="The published tables: add rows with their evidence, and replay them.",
    no_args_is_help=True,
)
app.add_typer(leaderboard, name="leaderboard")

Board = Annotated[Path, typer.Option(help="The board's folder.")]
Tasks = Annotated[
    Path | None,
    typer.Option("--board", help="The board's folder. [default: leaderboard, or as installed]"),
]
RunCode = Annotated[
    bool, typer.Option("--run-code", help="Run code that submissions bring: read it before.")
]


@leaderboard.command()
def template(
    task: Annotated[str, typer.Argument(help="The name of a task.")],
    defense: Annotated[
        list[str], typer.Option(help="Your defense, as for `run`; repeat for more.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The file to write. [default: it is printed]")
    ] = None,
    plugin: Annotated[
        list[Path], typer.Option(help="A file of yours that the defenses need; repeat for more.")
    ] = [],  # noqa: B006
    board: Tasks = None,
) -> None:
    """Write the spec of a run for a task, with your defenses in it."""
    from benchmark.judge.records import write_text
    from leaderboard.tasks import spec_for, tasks_at

    text = spec_for(task, defense, plugin, tasks_at(board))
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists():
        raise UserError(f"{out} exists already: name another file with --out")
    write_text(out, text)
    file, folder = quote(str(out)), quote(f"runs/{out.stem}")
    typer.echo(f"{out} is written. Next: bestattack run {file} --out {folder}")


@leaderboard.command()
def submit(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Where the folder goes, as OUT/TASK/ROW.")] = Path(
        "submissions"
    ),
    row: Annotated[
        list[str], typer.Option(help="A row of the run; repeat for more. Default: all.")
    ] = [],  # noqa: B006 - typer copies it
    about: Annotated[
        Path | None, typer.Option(help="YAML: row to a line on what was scaled down.")
    ] = None,
    weights_at: Annotated[
        str | None, typer.Option(help="An address, or a path from the folder: no copy of weights.")
    ] = None,
    board: Tasks = None,
    data_root: Root = None,
) -> None:
    """Make self-contained folders of a run's rows: record, spec, card, weights, evidence."""
    from benchmark.spec.run_spec import read_values
    from leaderboard.submission.record import read_record
    from leaderboard.submission.submit import submit as make
    from leaderboard.tasks import load_tasks, tasks_at

    lines = read_values(about) if about else {}
    for name, line in lines.items():
        if not isinstance(line, str):
            raise UserError(f"{about}: {name} must have a line of text")
    for folder in make(run, load_tasks(tasks_at(board), data_root), out, row, lines, weights_at):
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        typer.echo(f"{folder}: {size:.1f} MB")
        if not read_record(folder).about:
            say(f"{folder}: nothing is said of what the row is: give a line with --about")


@leaderboard.command()
def check(
    folders: Annotated[list[Path], typer.Argument(help="Folders of submissions.")],
    run_code: RunCode = False,
    board: Tasks = None,
    data_root: Root = None,
) -> None:
    """Validate submissions and replay them from weights and evidence."""
    from leaderboard.board import check as replay
    from leaderboard.tasks import load_tasks, tasks_at

    tasks = load_tasks(tasks_at(board), data_root)
    for folder in folders:
        row = replay(folder, tasks, run_code)
        best = row.record.numbers.best_attack
        typer.echo(f"{folder}: {row.record.row} on {row.task.name} holds: {best:.1%} best-attack")


@leaderboard.command()
def build(
    folders: Annotated[
        list[Path], typer.Argument(help="Submissions to merge, where they hold.")
    ] = [],  # noqa: B006
    run_code: RunCode = False,
    board: Board = Path("leaderboard"),
    data_root: Root = None,
) -> None:
    """Merge submissions that hold, and write tables, pictures and page anew."""
    from leaderboard.board import build as make
    from leaderboard.board import merge
    from leaderboard.tasks import load_tasks

    tasks = load_tasks(board, data_root)
    refused = merge(board, folders, tasks, run_code, typer.echo)
    for line in refused:
        say(f"refused: {line}")
    if len(refused) < len(folders) or not folders:
        make(board, tasks)
        typer.echo(f"{board / 'README.md'} and {board / 'site' / 'index.html'} are written")
    if refused:
        raise UserError(f"{len(refused)} of {len(folders)} submissions do not hold")


@leaderboard.command()
def migrate(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of submissions; default: all rows of the board.")
    ] = [],  # noqa: B006
    run_code: RunCode = False,
    board: Board = Path("leaderboard"),
    data_root: Root = None,
) -> None:
    """Bring submissions of an earlier format up to the present one. No figure changes."""
    from leaderboard.submission.migrate import migrate as bring_up
    from leaderboard.submission.submission import row_folders
    from leaderboard.tasks import load_tasks

    tasks = load_tasks(board, data_root)
    rows = [folder for task in tasks.values() for folder in row_folders(board, task)]
    for folder in folders or rows:
        migrated = bring_up(folder, tasks, run_code)
        typer.echo(f"{folder}: {'brought up' if migrated else 'is of the present format already'}")


@leaderboard.command()
def verify(
    task: Annotated[
        list[str], typer.Option(help="Replay its rows alone; all tasks' data are needed.")
    ] = [],  # noqa: B006
    run_code: RunCode = False,
    workers: Workers = None,
    board: Board = Path("leaderboard"),
    data_root: Root = None,
) -> None:
    """Recompute every number of the tables from weights and evidence, without attacking."""
    from leaderboard.board import verify as replay
    from leaderboard.tasks import find_task, load_tasks

    tasks = load_tasks(board, data_root)
    for name in task:
        find_task(tasks, name)
    with executor_of(workers, None, None) as executor:
        problems = replay(board, tasks, task, run_code, typer.echo, executor)
    for line in problems:
        say(line)
    if problems:
        raise UserError(f"the tables of {board} do not hold")
    others = f"; the rows of tasks other than {', '.join(task)} as recorded" if task else ""
    typer.echo(f"The tables of {board} hold{others}.")
