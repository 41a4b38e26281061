"""The commands under `bestattack study`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attacks.threat import Norm
from benchmark.cli.options import (
    Plugins,
    Quiet,
    RayAddress,
    Root,
    RunFolder,
    RunSuite,
    Seeds,
    Threads,
    Workers,
    executor_of,
    speaker,
)
from benchmark.environment import Device
from benchmark.spec.run_spec import Part

if TYPE_CHECKING:
    from benchmark.studies.study import Study

_EPS = "Radii, separated by commas: 0.5,1.0 or 4/255,8/255."
RunAttacks = Annotated[
    list[str], typer.Option("--attack", help="As for run; default: the attacks of the run.")
]
RunRows = Annotated[
    list[str], typer.Option("--defense", help="A row of the run, by its label; default: all.")
]

Samples = Annotated[
    int | None, typer.Option(min=1, help="How many, chosen as in the run; default: as many.")
]
RunDevice = Annotated[Device | None, typer.Option(help="Default: that of the run.")]

study = typer.Typer(help="What a run or a model says beyond its table; written beside it, too.")


@study.command()
def lipschitz(folder: RunFolder) -> None:
    """Robustness predicted for assumed Lipschitz bounds, and how often the attacks agree."""
    from benchmark.studies import lipschitz

    _show(lambda: lipschitz.lipschitz(folder), folder)


@study.command("dont-care")
def dont_care(
    folder: Annotated[Path, typer.Argument(help="The folder of a model with fractal structures.")],
    split: Annotated[Part, typer.Option(help="Which images of its data set.")] = "test",
    samples: Annotated[int | None, typer.Option(min=1, help="Only the first images.")] = None,
    offset: Annotated[float, typer.Option(min=0, help="Moves outputs against the label.")] = 0.0,
    plugin: Plugins = [],  # noqa: B006
    data_root: Root = None,
) -> None:
    """Which don't-care conditions hold for images, and which explain robustness."""
    from benchmark.spec.registry import load_plugins
    from benchmark.studies.conditions import dont_care_conditions

    load_plugins(plugin)
    _show(lambda: dont_care_conditions(folder, split, samples, offset, data_root), folder)


@study.command()
def budgets(
    folder: RunFolder,
    eps: Annotated[str, typer.Option(help=_EPS)],
    attack: RunAttacks = [],  # noqa: B006
    suite: RunSuite = None,
    defense: RunRows = [],  # noqa: B006
    samples: Samples = None,
    device: RunDevice = None,
    plugin: Plugins = [],  # noqa: B006
    workers: Workers = None,
    ray: RayAddress = None,
    threads: Threads = None,
    data_root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Robust accuracy of a run's models, as they are, for other budgets. Resumes, as a run does."""
    from benchmark.studies import budgets

    with executor_of(workers, ray, threads) as executor:
        how = budgets.How(samples, device, plugin, data_root, not quiet, speaker(quiet), executor)
        _show(lambda: budgets.budgets(folder, eps, how, attack, suite, defense), folder)


@study.command()
def bracket(
    folder: RunFolder,
    eps: Annotated[str, typer.Option(help=_EPS)],
    certify: Annotated[
        str, typer.Option(help="crown, or branch/seconds=10 an image.")
    ] = "branch/seconds=10",
    attack: RunAttacks = [],  # noqa: B006
    suite: RunSuite = None,
    defense: RunRows = [],  # noqa: B006
    samples: Samples = None,
    device: RunDevice = None,
    plugin: Plugins = [],  # noqa: B006
    workers: Workers = None,
    ray: RayAddress = None,
    threads: Threads = None,
    data_root: Root = None,
    quiet: Quiet = False,
) -> None:
    """What is proven of a run's models, and what attacks leave of them, for other budgets."""
    from benchmark.studies import bracket
    from benchmark.studies.budgets import How

    with executor_of(workers, ray, threads) as executor:
        how = How(samples, device, plugin, data_root, not quiet, speaker(quiet), executor)
        _show(lambda: bracket.bracket(folder, eps, certify, how, attack, suite, defense), folder)


@study.command()
def transfer(
    folder: RunFolder,
    source: Annotated[str, typer.Option(help="The row that points are made on, by its label.")],
    target: Annotated[str, typer.Option(help="The row that they are brought to.")],
    eps: Annotated[str, typer.Option(help=_EPS)],
    base: Annotated[str, typer.Option(help="The attack that makes them.")] = "pgd/steps=20",
    samples: Samples = None,
    device: RunDevice = None,
    plugin: Plugins = [],  # noqa: B006
    workers: Workers = None,
    ray: RayAddress = None,
    threads: Threads = None,
    data_root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Whether what breaks one row of a run, untargeted or targeted, breaks another."""
    from benchmark.studies import budgets

    with executor_of(workers, ray, threads) as executor:
        how = budgets.How(samples, device, plugin, data_root, not quiet, speaker(quiet), executor)
        _show(lambda: budgets.transfer(folder, source, target, eps, base, how), folder)


@study.command()
def coherence(
    folder: RunFolder,
    split: Annotated[Part, typer.Option(help="Which images of its data set.")] = "test",
    samples: Samples = None,
    device: RunDevice = None,
    data_root: Root = None,
) -> None:
    """How far arms, or the members of ensembles, share adversarial directions."""
    from benchmark.studies import coherence

    _show(lambda: coherence.coherence(folder, split, samples, device, data_root), folder)


@study.command()
def classes(
    data: Annotated[str, typer.Option(help="Data set, e.g. cifar10.")],
    defense: Annotated[str, typer.Option(help="Trained for --eps and attacked, e.g. pgd-at.")],
    eps: Annotated[str, typer.Option(help="Radius to train for: 0.5 or 8/255.")],
    budgets: Annotated[str, typer.Option(help=_EPS)],
    numbers: Annotated[
        str, typer.Option("--classes", help="How many classes to train on: 2,4,6,10.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for models, records, table and figure.")],
    standard: Annotated[
        str | None, typer.Option(help="A second defense, measured clean only: vanilla.")
    ] = None,
    orders: Annotated[int, typer.Option(min=1, help="Random orders of the classes.")] = 20,
    attack: Annotated[
        list[str], typer.Option(help="As for run; cw/minimize also shows distances.")
    ] = ["pgd/steps=10"],  # noqa: B006
    norm: Annotated[Norm, typer.Option(help="Of the threat.", case_sensitive=False)] = "l2",
    samples: Annotated[int | None, typer.Option(min=1, help="Only so many images.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    device: Device = "auto",
    plugin: Plugins = [],  # noqa: B006
    workers: Workers = None,
    ray: RayAddress = None,
    threads: Threads = None,
    data_root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Robustness against the number of classes that models are trained on. Running again resumes,
    and may ask for more."""
    from benchmark.spec.run_spec import make_spec
    from benchmark.studies.classes.classes_runs import classes as measure

    spec = make_spec(
        {
            "data": data, "samples": samples, "norm": norm, "eps": eps,
            "defenses": [defense, *([standard] if standard else [])], "attacks": attack,
            "seed": seed, "device": device, "plugins": [str(path) for path in plugin],
        }
    )  # fmt: skip
    with executor_of(workers, ray, threads) as executor:
        measured = measure(
            spec, numbers, orders, budgets, out, data_root, not quiet, speaker(quiet), executor
        )
    _show_new(measured, out)


@study.command()
def confidence(
    folder: RunFolder,
    bins: Annotated[int, typer.Option(min=1, help="How many, of equally many images.")] = 10,
    device: RunDevice = None,
    data_root: Root = None,
) -> None:
    """Accuracy by confidence: whether models are robust where they say that they are sure."""
    from benchmark.studies import confidence

    _show(lambda: confidence.confidence(folder, bins, device, data_root), folder)


@study.command()
def data(
    names: Annotated[list[str], typer.Argument(help="Data sets: mnist mnist/binarize.")],
    split: Annotated[Part, typer.Option(help="Which images.")] = "train",
    radii: Annotated[str, typer.Option(help="Separated by commas.")] = "1,1.5,2,2.5,3",
    eps: Annotated[str | None, typer.Option(help="Linf radius, for the log volume.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Only the first images.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for records, table and figure.")] = Path(
        "runs/data"
    ),
    device: Device = "auto",
    plugin: Plugins = [],  # noqa: B006
    data_root: Root = None,
    quiet: Quiet = False,
) -> None:
    """How far apart the classes of data sets are, and how much room a threat leaves."""
    from benchmark.spec.registry import load_plugins
    from benchmark.studies import limits as data

    load_plugins(plugin)
    measured = data.data(names, split, radii, eps, samples, device, data_root, speaker(quiet))
    _show_new(measured, out)


@study.command()
def sweep(
    spec: Annotated[str, typer.Argument(help="A YAML study, or a ready one: see list studies.")],
    reduced: Annotated[bool, typer.Option("--reduced", help="At the size for a CPU.")] = False,
    seeds: Seeds = None,
    out: Annotated[Path | None, typer.Option(help="Default: under runs/.")] = None,
    device: RunDevice = None,
    workers: Workers = None,
    ray: RayAddress = None,
    threads: Threads = None,
    data_root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Carry out a study that is a spec: a run at each point of a grid, in one table. Resumes."""
    from benchmark.studies.sweep import sweep_runs as studies
    from benchmark.studies.sweep.sweep_spec import read_sweep

    folder = out or Path("runs") / (Path(spec).stem + ("-reduced" if reduced else ""))
    with executor_of(workers, ray, threads) as executor:
        how = studies.How(device, data_root, not quiet, speaker(quiet), executor)
        measured = studies.sweep(read_sweep(spec, reduced, seeds), folder, how)
    _show_new(measured, folder)


@study.command()
def ranks(
    folder: Annotated[Path, typer.Argument(help="The folder of a study over variants.")],
) -> None:
    """How far a leaderboard on the original data can be trusted on its variants."""
    from benchmark.studies import ranks

    _show(lambda: ranks.ranks(folder), folder)


def _show(make: Callable[[], "Study"], folder: Path) -> None:
    """Make a study of what a folder holds, and write it there. Nothing else works in the folder
    meanwhile."""
    from benchmark.folder_lock import alone_in

    with alone_in(folder):
        outcome = make()
        outcome.write(folder)
    typer.echo(outcome.markdown())


def _show_new(outcome: "Study", folder: Path) -> None:
    """Write a study into a folder of its own, which need not be there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    _show(lambda: outcome, folder)
