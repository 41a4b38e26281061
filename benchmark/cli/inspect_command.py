"""`bestattack inspect`: what the harness sees of a model, before anyone waits for a run."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from attacks.threat import Norm
from benchmark.cli.options import Plugins, Quiet, Root, RunSuite, speaker
from benchmark.environment import Device
from benchmark.judge.subject import Precision

# How many images there are to look at, at least.
_LEAST = 64

if TYPE_CHECKING:
    from benchmark.data.dataset import Split


def inspect(
    defense: Annotated[
        str, typer.Argument(help="A model that is trained: external/onnx=FILE, saved:FOLDER.")
    ],
    data: Annotated[str, typer.Option(help="Data set, e.g. mnist or folder=PATH.")],
    eps: Annotated[str, typer.Option(help="Radius for images in [0, 1]: 2.0 or 8/255.")],
    norm: Annotated[Norm, typer.Option(help="l2, linf or l1.", case_sensitive=False)] = "l2",
    attack: Annotated[list[str], typer.Option(help="An attack with options; repeat it.")] = [],  # noqa: B006
    suite: RunSuite = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="How many images a run will have. [default: all]")
    ] = None,
    block: Annotated[int, typer.Option(min=1, help="Images attacked at once.")] = 256,
    device: Device = "auto",
    precision: Annotated[Precision, typer.Option(help="Of the model.")] = "model",
    plugin: Plugins = [],  # noqa: B006
    data_root: Root = None,
    quiet: Quiet = False,
) -> None:
    """What a run will see of a model and what it will take, by a few images that are attacked."""
    from benchmark.data.sets import load_dataset
    from benchmark.direct.inspect_model import inspected
    from benchmark.direct.request import read_request
    from benchmark.models.named_model import named_model
    from benchmark.spec.registry import load_plugins
    from benchmark.terminal import printed

    load_plugins(plugin)
    dataset = load_dataset(data, data_root)
    total = len(dataset.first("test", samples).y)
    model = named_model(defense, dataset, "inspect")
    request = read_request(
        model, _spread(dataset.test, max(block, _LEAST)), None, norm, eps, attack, suite,
        {"block": block, "device": device, "precision": precision, "name": defense},
    )  # fmt: skip
    geometry = dataclasses.replace(request.geometry, frozen=dataset.frozen)
    request = dataclasses.replace(request, geometry=geometry)
    seen = inspected(model, request, total, dataset.classes, speaker(quiet))
    typer.echo(printed(seen.page()), nl=False)


def _spread(split: "Split", most: int) -> "Split":
    """Samples from all over a split, since files may be sorted by class."""
    import numpy as np

    total = len(split.y)
    return split.only(np.linspace(0, total - 1, min(total, most)).astype(np.int64))
