"""Options of `bestattack run`, whose descriptions are long."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.errors import UserError
from benchmark.spec.run_spec import Labels

Specs = Annotated[
    list[Path],
    typer.Argument(
        metavar="SPEC", help="A YAML spec; flags override it. After --vnnlib: more properties."
    ),
]
Onnx = Annotated[
    Path | None, typer.Option(help="Judge properties of this network instead: see --vnnlib.")
]
Vnnlib = Annotated[
    list[Path], typer.Option(help="A property in VNN-LIB 1.0, .gz too; more may follow it.")
]
Exact = Annotated[bool, typer.Option("--exact", help="With --onnx: unsat where that is proven.")]
Limit = Annotated[
    float | None, typer.Option(min=0, help="With --onnx: seconds per property. [default: 60]")
]
Data = Annotated[str | None, typer.Option(help="Data set, e.g. mnist or mnist/pair=4-9.")]
Labelled = Annotated[
    Labels | None, typer.Option(help="predictions: what the model says of clean images.")
]
Eps = Annotated[str | None, typer.Option(help="Radius for images in [0, 1]: 2.0 or 8/255.")]
Threats = Annotated[
    list[str], typer.Option(help="l2:2.0, linf:8/255; for several, in place of norm and eps.")
]
Bounded = Annotated[bool | None, typer.Option(help="Whether perturbed images must stay in [0, 1].")]
Defenses = Annotated[
    list[str], typer.Option(help="vanilla, pgd-at/epochs=5, saved:FOLDER; repeat for more.")
]
Attacks = Annotated[
    list[str], typer.Option(help="pgd, cw/steps=100,1000, best-arm:pgd; repeat for more.")
]

Certify = Annotated[
    str | None,
    typer.Option(help="Prove what no attack breaks: crown, or branch/seconds=10 an image."),
]


def single(specs: list[Path]) -> Path | None:
    """The spec among what was named, if there is one. Raises UserError for several."""
    if len(specs) > 1:
        raise UserError(f"give one spec, not {len(specs)}: {', '.join(map(str, specs))}")
    return specs[0] if specs else None
