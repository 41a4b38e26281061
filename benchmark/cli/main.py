"""The command line: bestattack run, inspect, train, report, verify, and so on."""

import sys
import textwrap
import warnings
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from attacks.messages import one_line
from attacks.threat import Norm
from benchmark.cli.canaries_command import canaries
from benchmark.cli.demo_command import demo
from benchmark.cli.doctor_command import doctor
from benchmark.cli.finished.attribute_command import attribute
from benchmark.cli.finished.compare_command import compare
from benchmark.cli.finished.export_command import export
from benchmark.cli.finished.results_printed import (
    Wide,
    missing,
    next_command,
    print_sentences,
    print_tables,
)
from benchmark.cli.inspect_command import inspect
from benchmark.cli.options import (
    FailUnder,
    Junit,
    Plugins,
    Quiet,
    Root,
    RunFolder,
    say,
    thresholds_of,
    warn_of_contradictions,
)
from benchmark.cli.run_command import run
from benchmark.cli.studies_commands import study
from benchmark.environment import Device
from benchmark.errors import BelowError, FailedError, UserError

_STATUS = (
    "Exit status: 0 if all is well, 1 for an error that you can mend, 2 for a mistyped command, 3 "
    "if an attack or a certificate of a run failed, 4 if a row is below --fail-under, 130 if "
    "interrupted."
)

app = typer.Typer(
    help="Best-attack accuracy: attack defenses with everything, count a sample as robust only if "
    "nothing broke it.",
    epilog=_STATUS,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(study, name="study")
app.command()(attribute)
app.add_typer(export, name="export")
app.command()(canaries)
app.command()(doctor)
app.command(epilog=_STATUS)(demo)
app.command()(compare)
app.command(epilog=_STATUS)(run)
app.command(epilog=_STATUS)(inspect)

# This is the base class of errors of usage. Typer does not export it, and some versions of typer
# bring a copy of click, so that it cannot be imported from there either.
_UsageError: Any = typer.BadParameter.__base__


class Kind(StrEnum):
    """The kinds of names that `list` lists."""

    attacks = "attacks"
    defenses = "defenses"
    datasets = "datasets"
    suites = "suites"
    studies = "studies"
    flags = "flags"
    foolbox = "foolbox"
    torchattacks = "torchattacks"


def _tell_version(asked: bool) -> None:
    if asked:
        from benchmark.environment import own_version

        typer.echo(f"bestattack {own_version()}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """What stands before the name of a command."""


@app.command()
def train(
    data: Annotated[str, typer.Argument(help="Data set, e.g. mnist.")],
    defense: Annotated[str, typer.Argument(help="Defense, e.g. pgd-at/epochs=10.")],
    out: Annotated[Path, typer.Option(help="Folder for the model, its card and its log.")],
    norm: Annotated[
        Norm, typer.Option(help="Of the threat to train against.", case_sensitive=False)
    ] = "l2",
    eps: Annotated[
        str | None, typer.Option(help="Its radius, where the defense needs one.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    device: Device = "auto",
    plugin: Plugins = [],  # noqa: B006
    data_root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Train one defense into a folder, to be attacked as saved:FOLDER. Running again resumes."""
    from benchmark.data.sets import load_dataset
    from benchmark.environment import resolve_device
    from benchmark.models.obtain import train as train_into
    from benchmark.models.others import check_fit, parts_of
    from benchmark.spec.components import read_component
    from benchmark.spec.registry import load_plugins
    from benchmark.spec.roster import enrol
    from benchmark.spec.run_spec import make_threat
    from defenses import read_card

    load_plugins(plugin)
    component = read_component(defense, "the defense").absolute()
    roster = enrol([component])
    (member,) = roster.values()
    dataset = load_dataset(data, data_root)
    check_fit(roster, dataset)
    threat = make_threat(norm, eps) if eps else None
    train_into(
        member, dataset, threat, seed, out, resolve_device(device), not quiet, parts_of(member, {})
    )
    natural = read_card(out)["natural_accuracy"]
    typer.echo(f"{component.label} on {dataset.name}: natural accuracy {natural:.2%}, in {out}")


@app.command("list")
def list_names(kind: Kind, plugin: Plugins = []) -> None:  # noqa: B006
    """List attacks, defenses, datasets, suites, ready studies, flags, or a library's attacks."""
    from benchmark.data.sources.kinds import describe_sources
    from benchmark.data.variants import describe_variants
    from benchmark.report.flags import describe_flags
    from benchmark.spec import registry
    from benchmark.studies.sweep.sweep_spec import describe_studies

    registry.load_plugins(plugin)
    if kind is Kind.flags:
        typer.echo(describe_flags())
        return
    if kind in (Kind.foolbox, Kind.torchattacks):
        lines = registry.describe_library(kind.value)
    elif kind is Kind.studies:
        lines = describe_studies()
    else:
        names: registry.Registry = getattr(registry, kind.value.upper())
        lines = names.describe()
    width = max(16, *(len(name) + 2 for name in lines))
    for name, about in lines.items():
        line = f"{name:{width}}{about}"
        if kind in (Kind.suites, Kind.studies):  # their lines are long
            line = textwrap.fill(line, 100, subsequent_indent=" " * width, break_on_hyphens=False)
        typer.echo(line)
    if kind is Kind.datasets:
        typer.echo(f"\n{describe_sources()}\n\n{describe_variants()}")


@app.command(epilog=_STATUS)
def report(
    folder: RunFolder,
    wide: Wide = False,
    fail_under: FailUnder = None,
    junit: Junit = None,
    data_root: Root = None,
) -> None:
    """Print a run's tables from its records, finished or not, and write them and its page anew.

    While another process works in the folder, they are printed alone.
    """
    from benchmark.run.run_folder import rewrite

    thresholds = thresholds_of(fail_under, junit)
    run = rewrite(folder, data_root)
    print_tables(run.reports, run.spec, wide)
    typer.echo()
    print_sentences(*missing(run.missing, wide), run.in_use)
    shown: Literal["report", "wide report"] = "wide report" if wide else "report"
    typer.echo(
        next_command(shown, folder, run.reports, run.spec, bool(run.missing), bool(run.in_use))
    )
    if thresholds:
        thresholds.check(run.reports, run.missing)


@app.command()
def verify(
    folder: RunFolder, device: Device = "auto", data_root: Root = None, wide: Wide = False
) -> None:
    """Replay every stored adversarial example and recompute the table from what holds."""
    from benchmark.run.verify import verify as replay

    replayed = replay(folder, data_root, device)
    for verdict in replayed.verdicts:
        typer.echo(
            f"{verdict.defense} {verdict.attack}: "
            f"{verdict.holding} of {verdict.claimed} {verdict.what}"
        )
    typer.echo()
    print_tables(replayed.reports, replayed.spec, wide)
    typer.echo()
    warn_of_contradictions(replayed.reports, err=False)
    if replayed.problems:
        raise UserError(
            f"the table of {folder} does not hold, the one above is what does: "
            + "; ".join([*replayed.problems, *replayed.missing])
        )
    if replayed.missing:
        raise UserError(
            f"the run of {folder} is not finished, what there is holds: "
            + "; ".join(replayed.missing)
            + ": run the same command again"
        )
    typer.echo(f"The table of {folder} holds.")
    typer.echo(next_command("verify", folder, replayed.reports, replayed.spec))


@app.command()
def certify(
    model: Annotated[
        str, typer.Argument(help="A folder that `train` filled, or external/python=net.py:Net.")
    ],
    eps: Annotated[str, typer.Option(help="Radius for images in [0, 1]: 0.1 or 8/255.")],
    method: Annotated[
        Literal["crown", "branch"],
        typer.Option(help="Linear bounds alone, or branch and bound after them."),
    ] = "branch",
    data: Annotated[
        str | None, typer.Option(help="Data set; default: what the model was made for.")
    ] = None,
    norm: Annotated[
        Norm | None,
        typer.Option(help="linf or l2; default: what it was trained for.", case_sensitive=False),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Only the first test images.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="For an image, of branching. [default: 10]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A CSV file for the result per image.")] = None,
    plugin: Plugins = [],  # noqa: B006
    data_root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Prove, per test image, that no perturbation changes the label, or find one that does.

    Ordinary networks of linear, convolutional and pooling layers, ReLU and its like.
    """
    from benchmark.run.certify import certify_model, check_out
    from benchmark.spec.proof_setting import Proofs, read_proofs
    from benchmark.spec.registry import load_plugins

    load_plugins(plugin)
    given = {} if seconds is None else {"seconds": seconds}
    proofs = read_proofs({"method": method, **given}, norm or "linf") or Proofs()
    if out is not None:
        check_out(out)
    certified = certify_model(model, data, norm, eps, samples, proofs, data_root, not quiet)
    typer.echo(certified.table())
    if out is not None:
        certified.write(out)
        typer.echo(f"Per image: {out}")
    if len(certified.records) < certified.total:
        raise UserError(f"interrupted after {len(certified.records)} of {certified.total} images")


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 1.

    After a run in which something failed there is such a line too, and the status is 3; where a
    row falls short of what was asked for, it is 4.
    """
    from defenses import SavedModelError, TrainingError

    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    try:
        # In standalone mode, typer would say nothing after an interruption, and would draw a box
        # around the line about a mistyped flag.
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except _UsageError as error:
        _fail(one_line(error.format_message()), 2)
    except (UserError, SavedModelError, TrainingError) as error:
        _fail(str(error), 1)
    except FailedError as error:
        _fail(str(error), 3)
    except BelowError as error:
        _fail(str(error), 4)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    if status == 130:
        _fail("interrupted; what was measured is kept: run the same command to go on", 130)
    sys.exit(status)


def _fail(line: str, status: int) -> NoReturn:
    """Print a line on stderr, as the last one, and end the program."""
    with suppress(OSError):  # a pipe that nobody reads any more
        sys.stdout.flush()
    print(f"bestattack: {line}", file=sys.stderr)
    sys.exit(status)
