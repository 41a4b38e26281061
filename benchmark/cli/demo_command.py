"""`bestattack demo`: the run whose table the README shows, from a spec that is installed."""

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.options import Quiet, RayAddress, Workers
from benchmark.cli.run_command import run

# The spec of the demo, beside the code that reads specs.
DEMO = Path(str(resources.files("benchmark.spec"))) / "demo.yaml"


def demo(
    samples: Annotated[int | None, typer.Option(help="Only so many images.")] = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it will take.")] = False,
    workers: Workers = None,
    ray: RayAddress = None,
    threads: Annotated[int, typer.Option(min=1, help="The table is that of one thread.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Train ten defenses on small real images, attack them, and print the table: minutes on CPU.

    Nothing is downloaded. OUT/spec.yaml then says what was asked for, to go on from.
    """
    run(
        [DEMO], samples=samples, out=out, plan=plan, workers=workers, ray=ray, threads=threads,
        quiet=quiet,
    )  # fmt: skip
