"""From a defense's name to a model: loaded where it was trained before, trained otherwise."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import defenses
from attacks import ThreatModel
from benchmark.assess import identify_object
from benchmark.components import SAVED, Component, configure
from benchmark.data import Dataset, fingerprint
from benchmark.errors import UserError
from benchmark.records import cell_key
from benchmark.registry import DEFENSES

# Images at once when the natural accuracy of a card is measured.
_BATCH = 512


@dataclass(frozen=True)
class Trained:
    """A model ready to be attacked, the folder that holds it, and what tells it from others."""

    model: nn.Module
    folder: Path
    identity: dict[str, Any]


def obtain(
    component: Component,
    dataset: Dataset,
    threat: ThreatModel,
    seed: int,
    folder: Path,
    device: torch.device,
    progress: bool,
) -> Trained:
    """The defense of that name for a data set, from under `folder` or trained into it.

    Raises UserError for a name or option that is unknown and for input that does not fit;
    SavedModelError and TrainingError as `defenses` does.
    """
    if component.name.startswith(SAVED):
        return load_saved(Path(component.name.removeprefix(SAVED)))
    recipe = recipe_of(component)
    with _naming(component):
        against = recipe.trains_against(threat)
    wanted = {
        "recipe": identify_object(recipe),
        "data": dataset.name,
        "threat": str(against),
        "seed": seed,
    }
    home = folder / f"{component.name}-{cell_key(wanted)[:8]}"
    # Without training it costs nothing to build it anew, and foreign weights may have changed.
    if recipe.epochs == 0 or not (home / defenses.saved.CARD).exists():
        train(component, dataset, against, seed, home, device, progress)
    return load_saved(home)


def train(
    component: Component,
    dataset: Dataset,
    threat: ThreatModel | None,
    seed: int,
    home: Path,
    device: torch.device,
    progress: bool,
) -> None:
    """Train a defense into a folder, going on from its checkpoint where there is one."""
    recipe = recipe_of(component)
    with _naming(component):
        threat = recipe.trains_against(threat)
        model = defenses.initialise(recipe, dataset.shape, dataset.classes, seed)
    home.mkdir(parents=True, exist_ok=True)
    checkpoint = home / "checkpoint.pt"
    began = time.monotonic()
    if recipe.epochs:
        bar = tqdm(
            total=recipe.epochs,
            desc=f"training {component.label}",
            unit="epoch",
            bar_format="{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]",
            disable=None if progress else True,
            leave=False,
        )
        with bar:

            def show(done: defenses.Progress) -> None:
                bar.set_postfix_str(f"loss {done.loss:.3f}, accuracy {done.accuracy:.1%}", False)
                bar.n = done.epoch - 1 + done.step / done.steps
                bar.refresh()

            defenses.train(
                recipe,
                model,
                dataset.train.x,
                dataset.train.y,
                threat=threat,
                seed=seed,
                device=device,
                checkpoint=checkpoint,
                log=home / "log.csv",
                report=show,
            )
    card = defenses.describe(
        component.label,
        recipe,
        data={"name": dataset.name, "labels": list(dataset.labels)},
        shape=dataset.shape,
        classes=dataset.classes,
        threat=threat,
        seed=seed,
        natural_accuracy=_accuracy(model.to(device), dataset),
        seconds=round(time.monotonic() - began, 1),
        device=device,
    )
    defenses.save(home, model, card | {"component": component.model_dump(mode="json")})
    checkpoint.unlink(missing_ok=True)


def load_saved(home: Path) -> Trained:
    """The model in a folder that `train` filled. Raises SavedModelError or UserError."""
    card = defenses.read_card(home)
    try:
        component = Component.model_validate(card["component"])
        shape, classes, seed = tuple(card["shape"]), int(card["classes"]), int(card["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{home / defenses.saved.CARD} is not a card of this program") from error
    recipe = recipe_of(component)
    if isinstance(recipe, defenses.External):
        # The folder has a copy of the foreign weights; their own file may be gone.
        recipe = dataclasses.replace(recipe, weights=None)
    with _naming(component):
        model = defenses.initialise(recipe, shape, classes, seed)
    defenses.load(home, model)
    # One module of each class: code that is wrapped determines the logits too.
    network = {type(module): module for module in model.modules()}
    identity = {
        "weights": defenses.fingerprint(model),
        "recipe": identify_object(recipe),
        "network": [identify_object(module) for module in network.values()],
    }
    return Trained(model, home, identity)


def recipe_of(component: Component) -> defenses.Recipe:
    """The configured recipe of that name. Raises UserError."""
    recipe = configure(DEFENSES, component)
    if not isinstance(recipe, defenses.Recipe):
        raise UserError(f"defense {component.name!r} is not a defenses.Recipe")
    return recipe


def check(component: Component) -> None:
    """Raises UserError or SavedModelError where a defense's name or options are not valid."""
    if component.name.startswith(SAVED):
        defenses.read_card(Path(component.name.removeprefix(SAVED)))
    else:
        recipe_of(component)


@contextmanager
def _naming(component: Component) -> Iterator[None]:
    """What a recipe refuses, as a UserError that names it."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"defense {component.label!r}: {error}") from error


def data_identity(dataset: Dataset, samples: int) -> dict[str, str]:
    """What tells the first `samples` test images apart from any others."""
    test = dataset.test
    return {"name": dataset.name, "sha256": fingerprint(test.x[:samples], test.y[:samples])}


@torch.no_grad()
def _accuracy(model: nn.Module, dataset: Dataset) -> float:
    device = next((t.device for t in model.parameters()), torch.device("cpu"))
    hits = 0
    for x, y in zip(dataset.test.x.split(_BATCH), dataset.test.y.split(_BATCH), strict=True):
        hits += int((model(x.to(device)).argmax(1).cpu() == y).sum())
    return hits / len(dataset.test.y)
