"""From a defense's name to a model: loaded where it was trained before, trained otherwise."""

import copy
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import defenses
from attacks.messages import described
from attacks import ThreatModel
from benchmark.spec.components import SAVED, Component, configure
from benchmark.data.sets import Dataset, fingerprint
from benchmark.errors import UserError
from benchmark.keys import identify_object
from benchmark.judge.records import cell_key
from benchmark.spec.registry import DEFENSES
from defenses.training import loop
from defenses.training.saved import CARD

# Images at once when the natural accuracy of a card is measured.
_BATCH = 512


@dataclass(frozen=True)
class Trained:
    """A model ready to be attacked, the folder that holds it, and what tells it from others."""

    model: nn.Module
    folder: Path
    identity: dict[str, Any]


_NONE: Mapping[str, Trained] = MappingProxyType({})


def obtain(
    component: Component,
    dataset: Dataset,
    threat: ThreatModel,
    seed: int,
    folder: Path,
    device: torch.device,
    progress: bool,
    parts: Mapping[str, Trained] = _NONE,
) -> Trained:
    """The defense of that name for a data set, from under `folder` or trained into it. `parts` are
    the models that a derived one is made of.

    Raises UserError for a name or option that is unknown and for input that does not fit;
    SavedModelError and TrainingError as `defenses` does.
    """
    if component.name.startswith(SAVED):
        return load_saved(Path(component.name.removeprefix(SAVED)))
    key = _key(component, dataset, threat, seed, device, parts)
    home = folder / f"{component.name}-{key[:8]}"
    return train(component, dataset, threat, seed, home, device, progress, parts)


def _key(
    component: Component,
    dataset: Dataset,
    threat: ThreatModel | None,
    seed: int,
    device: torch.device,
    parts: Mapping[str, Trained],
) -> str:
    """A hash of what determines a trained model. The test split stands for the data, so that the
    training set is loaded for training alone."""
    recipe = recipe_of(component)
    with _naming(component):
        against = recipe.trains_against(threat)
    source = Path(loop.__file__ or "").read_bytes()
    return cell_key(
        {
            "recipe": _identify(recipe),
            "loop": hashlib.sha256(source).hexdigest(),
            "data": data_identity(dataset.name, dataset.test.x, dataset.test.y),
            "threat": str(against),
            "seed": seed,
            "machine": [device.type, torch.__version__, torch.get_num_threads()],
        }
        | ({"parts": {name: part.identity for name, part in parts.items()}} if parts else {})
    )


def _identify(recipe: defenses.Recipe) -> dict[str, Any]:
    """What determines a recipe's behaviour, without the names of its parts."""
    identity = identify_object(recipe)
    for part in recipe.parts if isinstance(recipe, defenses.Derived) else ():
        del identity["options"][part]
    return identity


def _is_fitted(recipe: defenses.Recipe) -> bool:
    """Whether the training set is needed: for epochs, or for what comes after them."""
    return recipe.epochs > 0 or type(recipe).finish is not defenses.Recipe.finish


def train(
    component: Component,
    dataset: Dataset,
    threat: ThreatModel | None,
    seed: int,
    home: Path,
    device: torch.device,
    progress: bool,
    parts: Mapping[str, Trained] = _NONE,
) -> Trained:
    """Train a defense into a folder, going on from its checkpoint where there is one, or load it
    where the folder holds it already. `parts` are the models that a derived one is made of.

    Raises UserError where the folder holds another model, and as `obtain` does.
    """
    recipe = recipe_of(component)
    # A factory ("file.py:Factory") may load weights of its own; a named architecture has none.
    external = recipe if isinstance(recipe, defenses.External) else None
    if external and not (external.epochs or external.weights or ":" in external.model):
        raise UserError(f"defense {component.label!r}: give weights, or epochs to train")
    key = _key(component, dataset, threat, seed, device, parts)
    # Without training it costs nothing to build it anew, and foreign weights may have changed.
    keeps = _is_fitted(recipe) or isinstance(recipe, defenses.Derived)
    if keeps and (home / CARD).exists():
        if defenses.read_card(home).get("key") != key:
            raise UserError(f"{home} holds another model: name another folder, or delete it")
        return load_saved(home)
    with _naming(component):
        threat = recipe.trains_against(threat)
        # Copies, because parts that are trained on stay what they are as rows of their own.
        copies = {name: copy.deepcopy(part.model) for name, part in parts.items()}
        model = defenses.initialise(recipe, dataset.shape, dataset.classes, seed, copies)
    home.mkdir(parents=True, exist_ok=True)
    checkpoint = home / "checkpoint.pt"
    seconds = 0.0
    if _is_fitted(recipe):
        bar = tqdm(
            total=recipe.epochs,
            desc=f"training {component.label}",
            unit="epoch",
            bar_format="{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]",
            disable=None if progress else True,
            leave=False,
        )
        with bar, _naming(component):

            def show(done: defenses.Progress) -> None:
                known = not math.isnan(done.accuracy)
                accuracy = f", accuracy {done.accuracy:.1%}" if known else ""
                bar.set_postfix_str(f"loss {done.loss:.3f}{accuracy}", False)
                bar.n = done.epoch - 1 + done.step / done.steps
                bar.refresh()

            seconds = defenses.train(
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
    if recipe.half:
        with _naming(component):
            defenses.round_to_half(model)
    card = defenses.describe(
        component.label,
        recipe,
        data={"name": dataset.name, "labels": list(dataset.labels)},
        shape=dataset.shape,
        classes=dataset.classes,
        threat=threat,
        seed=seed,
        natural_accuracy=_accuracy(model.to(device), dataset),
        seconds=round(seconds, 1),
        device=device,
    )
    made_by = {"component": component.model_dump(mode="json"), "key": key}
    if parts:
        made_by["parts"] = {name: defenses.read_card(part.folder) for name, part in parts.items()}
    defenses.save(home, model, card | made_by, recipe.half)
    checkpoint.unlink(missing_ok=True)
    return load_saved(home)


def load_saved(home: Path) -> Trained:
    """The model in a folder that `train` filled. Raises SavedModelError or UserError."""
    card = defenses.read_card(home)
    try:
        recipe, model = _rebuild(card)
        parts = _parts(card)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{home / CARD} is not a card of this program") from error
    defenses.load(home, model)
    # One module of each class: code that is wrapped determines the logits too.
    network = {type(module): module for module in model.modules()}
    identity = {
        "weights": defenses.fingerprint(model),
        "recipe": _identify(recipe),
        "network": [identify_object(module) for module in network.values()],
    }
    # What no weight tells, such as how a part combines its outputs.
    return Trained(model, home, identity | ({"parts": parts} if parts else {}))


def _parts(card: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the behaviour of the parts of a model, and of theirs, besides weights."""
    return {
        name: _identify(_recipe(part)) | {"parts": _parts(part)}
        for name, part in card.get("parts", {}).items()
    }


def _recipe(card: Mapping[str, Any]) -> defenses.Recipe:
    recipe = recipe_of(Component.model_validate(card["component"]))
    if isinstance(recipe, defenses.External):
        # The folder has a copy of the foreign weights; their own file may be gone.
        recipe = dataclasses.replace(recipe, weights=None)
    return recipe


def _rebuild(card: Mapping[str, Any]) -> tuple[defenses.Recipe, nn.Module]:
    """The recipe of a card, and its model with fresh weights, made from parts that are so too.
    Raises UserError, and KeyError, TypeError, ValueError or AttributeError where it is no card."""
    shape, classes, seed = tuple(card["shape"]), int(card["classes"]), int(card["seed"])
    parts = {name: _rebuild(part)[1] for name, part in card.get("parts", {}).items()}
    recipe = _recipe(card)
    with _naming(Component.model_validate(card["component"])):
        return recipe, defenses.initialise(recipe, shape, classes, seed, parts)


def recipe_of(component: Component) -> defenses.Recipe:
    """The configured recipe of that name. Raises UserError."""
    recipe = configure(DEFENSES, component)
    if not isinstance(recipe, defenses.Recipe):
        raise UserError(f"defense {component.name!r} is not a defenses.Recipe")
    return recipe


@contextmanager
def _naming(component: Component) -> Iterator[None]:
    """What a recipe refuses, as a UserError that names it."""
    try:
        yield
    except defenses.TrainingError:
        raise
    except ValueError as error:
        raise UserError(f"defense {component.label!r}: {error}") from error
    except (TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise UserError(
            f"defense {component.label!r} fails: {described(error)}"
        ) from error


def data_identity(name: str, x: Tensor, y: Tensor) -> dict[str, str]:
    """What tells these images and labels of the data set of that name apart from any others."""
    return {"name": name, "sha256": fingerprint(x, y)}


@torch.no_grad()
def _accuracy(model: nn.Module, dataset: Dataset) -> float:
    device = next((t.device for t in model.parameters()), torch.device("cpu"))
    hits = 0
    for x, y in zip(dataset.test.x.split(_BATCH), dataset.test.y.split(_BATCH), strict=True):
        hits += int((model(x.to(device)).argmax(1).cpu() == y).sum())
    return hits / len(dataset.test.y)
