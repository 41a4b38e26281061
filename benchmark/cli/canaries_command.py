"""`bestattack canaries`: what an attack is worth against defenses that only seem robust."""

import sys
from typing import Annotated

import typer

from attacks.threat import Norm
from benchmark.cli.options import Plugins


def canaries(
    attack: Annotated[
        list[str] | None, typer.Option(help="An attack with options; repeat it. [default: strong]")
    ] = None,
    canary: Annotated[
        list[str] | None, typer.Option(help="A canary; repeat it. [default: all]")
    ] = None,
    norm: Annotated[Norm, typer.Option(help="l2, linf or l1.", case_sensitive=False)] = "l2",
    samples: Annotated[int, typer.Option(min=1, help="How many images of digits.")] = 60,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Attack defenses whose robustness is a mask or a mistake, each with an unmasked twin.

    A figure is robust accuracy in %; in brackets are the flags that say that it is not to be
    believed. FOOLED is where neither the attack nor a flag sees through the canary.
    """
    from benchmark.canaries.qualify import Outcome, explained, qualify, tabulated
    from benchmark.spec import registry

    registry.load_plugins(plugin)
    found: list[Outcome] = []
    for outcome in qualify(attack or ["strong"], norm, samples, canary or ()):
        found.append(outcome)
        if sys.stderr.isatty():
            typer.echo(f"{outcome.canary}, {outcome.attack}: {outcome.text}", err=True)
    typer.echo(tabulated(found))
    typer.echo("\n" + explained(found, norm, samples))
