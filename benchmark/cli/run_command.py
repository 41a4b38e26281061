"""bestattack run: what is asked for by a spec and by flags is carried out, or planned."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmark.cli import run_options
from benchmark.cli.finished.results_printed import Wide, next_command, print_sentences, print_tables
from benchmark.cli.options import (
    FailUnder,
    Junit,
    Plugins,
    Quiet,
    RayAddress,
    Root,
    RunSuite,
    Seeds,
    Threads,
    Workers,
    executor_of,
    speaker,
    thresholds_of,
    warn_of_contradictions,
)
from benchmark.cli.vnnlib_command import judge_properties
from benchmark.environment import Device
from benchmark.errors import FailedError, UserError
from benchmark.judge.subject import Precision
from benchmark.spec.run_spec import Choose, Mode, Part

if TYPE_CHECKING:
    from benchmark.executors import Executor
    from benchmark.export.thresholds import Thresholds
    from benchmark.report.report import Report
    from benchmark.spec.run_spec import RunSpec


def run(
    specs: run_options.Specs = [],  # noqa: B006 - typer copies it
    data: run_options.Data = None,
    samples: Annotated[int | None, typer.Option(help="Only so many images.")] = None,
    choose: Annotated[Choose | None, typer.Option(help="Which, where not all.")] = None,
    split: Annotated[Part | None, typer.Option(help="Which images to attack.")] = None,
    labels: run_options.Labelled = None,
    norm: Annotated[str | None, typer.Option(help="l2, linf or l1.")] = None,
    eps: run_options.Eps = None,
    threat: run_options.Threats = [],  # noqa: B006
    bounded: run_options.Bounded = None,
    defense: run_options.Defenses = [],  # noqa: B006
    attack: run_options.Attacks = [],  # noqa: B006
    suite: RunSuite = None,
    certify: run_options.Certify = None,
    mode: Annotated[Mode | None, typer.Option(help="cascade: survivors only, sooner.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of training and of all noise.")] = None,
    seeds: Seeds = None,
    device: Annotated[Device | None, typer.Option()] = None,
    precision: Annotated[Precision | None, typer.Option(help="By default, the model's.")] = None,
    draws: Annotated[int | None, typer.Option(help="Of a randomised model, per point.")] = None,
    expectation: Annotated[int | None, typer.Option(help="Draws per step of attacks.")] = None,
    block: Annotated[int | None, typer.Option(help="Samples attacked at once.")] = None,
    plugin: Plugins = [],  # noqa: B006
    onnx: run_options.Onnx = None,
    vnnlib: run_options.Vnnlib = [],  # noqa: B006
    exact: run_options.Exact = False,
    limit: run_options.Limit = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; default under runs/.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it will take.")] = False,
    fail_under: FailUnder = None,
    junit: Junit = None,
    workers: Workers = None,
    ray: RayAddress = None,
    threads: Threads = None,
    data_root: Root = None,
    quiet: Quiet = False,
    wide: Wide = False,
) -> None:
    """Train defenses, attack them, print the best-attack table. Running again resumes.

    With --onnx and --vnnlib: judge properties of a network."""
    flags = {
        "data": data, "samples": samples, "split": split, "labels": labels, "norm": norm,
        "eps": eps, "threats": threat, "bounded": bounded, "defenses": defense, "attacks": attack,
        "suite": suite, "mode": mode, "seed": seed, "seeds": seeds, "device": device,
        "precision": precision, "block": block, "choose": choose, "draws": draws,
        "expectation": expectation, "plugins": [str(path) for path in plugin], "certify": certify,
    }  # fmt: skip
    if onnx or vnnlib or exact or limit is not None:
        every = flags | {"data_root": data_root, "fail_under": fail_under, "junit": junit}
        judge_properties(onnx, [*vnnlib, *specs], exact, limit, out, every)
        return
    thresholds, (run_spec, folder) = thresholds_of(fail_under, junit), _asked(specs, flags, out)
    if plan:
        _show_plan(run_spec, folder, data_root, workers, ray, threads, quiet, thresholds)
        return
    with executor_of(workers, ray, threads) as executor:
        _carry_out(run_spec, folder, data_root, quiet, wide, executor, thresholds)


def _asked(specs: list[Path], flags: dict[str, Any], out: Path | None) -> tuple["RunSpec", Path]:
    """The spec of a run and its folder, as they were asked for. Raises UserError."""
    path = run_options.single(specs)
    spec = _spec_of(path, flags)
    return spec, _folder_of(path, spec, out)


def _carry_out(
    spec: "RunSpec",
    folder: Path,
    root: Path | None,
    quiet: bool,
    wide: bool,
    executor: "Executor",
    thresholds: "Thresholds",
) -> None:
    """Carry out a spec in a folder, print what came of it, and hold it against thresholds."""
    from benchmark.direct.plan_of_run import compared
    from benchmark.report.pictures.curves import undrawn
    from benchmark.run import runner

    began = time.monotonic()
    reports = runner.run(spec, folder, root, not quiet, speaker(quiet), executor)
    typer.echo()
    print_tables(reports, spec, wide)
    warn_of_contradictions(reports, err=True)
    typer.echo(f"\nRecords, tables and models: {folder}")
    print_sentences(*undrawn(reports), compared(folder, time.monotonic() - began))
    typer.echo(next_command("run", folder, reports, spec))
    try:
        thresholds.check(reports)
    finally:  # a failure can be mended, and says more than what it left to be measured
        _refuse_failures(reports)


def _show_plan(
    spec: "RunSpec",
    folder: Path,
    root: Path | None,
    workers: int | None,
    ray: str | None,
    threads: int | None,
    quiet: bool,
    thresholds: "Thresholds",
) -> None:
    """Print what a run will take. Raises UserError for options that do not go with --plan."""
    from benchmark.direct.plan_of_run import plan
    from benchmark.executors.choice_of_executor import with_threads
    from benchmark.folder_lock import alone_in

    if ray:
        raise UserError("--plan asks no cluster: give --workers, for how many it is to reckon")
    if thresholds:
        raise UserError("--plan measures nothing: leave out --fail-under and --junit")
    with with_threads(threads, workers), alone_in(folder, make=True):
        planned = plan(spec, folder, root, workers or 1, speaker(quiet))
        planned.keep(folder)
    typer.echo(str(planned))


def _folder_of(spec: Path | None, run_spec: "RunSpec", out: Path | None) -> Path:
    """The folder of a run. Raises UserError where the run would replace the spec in it."""
    from benchmark.spec.source_names import without_places

    name = f"{without_places(run_spec.data).replace('/', '_')}-{run_spec.place}"
    folder = out or Path("runs") / (spec.stem if spec else name)
    if (
        spec
        and not (folder / "run.json").exists()
        and (folder / "spec.yaml").resolve() == spec.resolve()
    ):
        raise UserError(f"{folder} is where {spec} lies, which a run replaces: name another --out")
    return folder


def _refuse_failures(reports: list["Report"]) -> None:
    """Raises FailedError where an attack or a certificate failed."""
    failed = [f"{report.called}: {label}" for report in reports for label in report.errors]
    if failed:
        raise FailedError(
            f"failed, and counted for nothing: {'; '.join(failed)}: the reasons stand below the "
            "table, and the same command tries them again"
        )


def _spec_of(path: Path | None, flags: dict[str, Any]) -> "RunSpec":
    """The spec of a run from a file, if there is one, and from flags, which override the file."""
    from benchmark.analysis.learned_order import spec_of
    from benchmark.spec.run_spec import read_values

    values: dict[str, Any] = read_values(path) if path else {}
    if path and isinstance(values.get("plugins"), list):
        # Plugins are looked for beside the spec first, where a row of the leaderboard has them.
        beside = [path.parent / str(name) for name in values["plugins"]]
        values["plugins"] = [
            str(file) if file.is_file() else name
            for file, name in zip(beside, values["plugins"], strict=True)
        ]
    given = {key: value for key, value in flags.items() if value not in (None, [])}
    if "threats" in given:
        values = {key: value for key, value in values.items() if key not in ("norm", "eps")}
    if not {"seed", "seeds"}.isdisjoint(given):
        values = {key: value for key, value in values.items() if key not in ("seed", "seeds")}
    return spec_of(values | given)
