"""`bestattack inspect`: what the harness sees of a model, before anyone waits for a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attacks.threat import Norm
from benchmark.cli.options import Plugins, Quiet, Root, speaker
from benchmark.judge.subject import Precision
from benchmark.spec.run_spec import Device

if TYPE_CHECKING:
    from torch import nn

    from benchmark.data.dataset import Dataset


def inspect(
    defense: Annotated[
        str, typer.Argument(help="A model that is trained: external/onnx=FILE, saved:FOLDER.")
    ],
    data: Annotated[str, typer.Option(help="Data set, e.g. mnist or folder=PATH.")],
    eps: Annotated[str, typer.Option(help="Radius for images in [0, 1]: 2.0 or 8/255.")],
    norm: Annotated[Norm, typer.Option(help="l2, linf or l1.", case_sensitive=False)] = "l2",
    attack: Annotated[list[str], typer.Option(help="An attack with options; repeat it.")] = [],  # noqa: B006
    suite: Annotated[str | None, typer.Option(help="A named set of attacks.")] = None,
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
    import numpy as np

    from benchmark.data.sets import load_dataset
    from benchmark.direct import inspect as look
    from benchmark.run.run_samples import rejection_of
    from benchmark.spec.registry import load_plugins
    from benchmark.spec.run_spec import make_threat

    load_plugins(plugin)
    dataset = load_dataset(data, data_root)
    model = _model(defense, data, dataset)
    total = len(dataset.test.y)
    # From all over the split, since files may be sorted by class.
    test = dataset.test.only(np.linspace(0, total - 1, min(total, max(block, 64))).astype(int))
    radius: object = eps
    if dataset.frozen is not None:
        radius = make_threat(norm, eps).eps * (~dataset.frozen).double()
    seen = look(
        model, test, norm=norm, eps=radius, attacks=attack, suite=suite,
        samples=min(samples or total, total), say=speaker(quiet), block=block,
        device=device, precision=precision, name=defense, reject=rejection_of(model),
    )  # fmt: skip
    typer.echo(str(seen))


def _model(written: str, data: str, dataset: "Dataset") -> "nn.Module":
    """The model that a component names. Raises UserError where it is none that exists."""
    import defenses
    from benchmark.errors import UserError
    from benchmark.models.trained import load_saved, naming
    from benchmark.spec.components import SAVED, read_component
    from benchmark.spec.roster import configured

    if Path(written).is_dir():
        written = SAVED + written
    component = read_component(written, "the defense").absolute()
    member = configured(component)
    if member.folder is not None:
        return load_saved(member.folder).model
    recipe = member.recipe
    assert recipe is not None
    if recipe.epochs or member.made_of:
        raise UserError(
            f"{component.label} is trained first: bestattack train {data} {written} --out FOLDER, "
            "and then inspect FOLDER"
        )
    with naming(component):
        recipe.check_weights()
        return defenses.initialise(recipe, dataset.shape, dataset.classes, 0, {})
