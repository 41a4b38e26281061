"""The other models of a run that derived defenses are made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.spec.components import SAVED, Component
from benchmark.data.sets import Dataset
from benchmark.errors import UserError, did_you_mean
from benchmark.models.obtain import Trained, load_saved, recipe_of
from defenses import Derived, SavedModelError, read_card


def check(components: Sequence[Component]) -> None:
    """Raises UserError or SavedModelError where the name or the options of one of a run's defenses
    are not valid, or where it is made of a model that is neither above it nor saved."""
    labels = [component.label for component in components]
    for place, component in enumerate(components):
        if component.name.startswith(SAVED):
            read_card(_folder(component.name))
        for part, label in _named(component).items():
            wrong = f"defense {component.label!r}: {part}={label!r}"
            above = [", ".join(labels[:place])] if place else []
            otherwise = f"name {' or '.join([*above, f'{SAVED}FOLDER'])}"
            if label in labels[:place]:
                continue
            if label.startswith(SAVED):
                try:
                    read_card(_folder(label))
                except SavedModelError as error:
                    raise UserError(f"{wrong}: {error}") from error
            elif label == component.label:
                raise UserError(f"{wrong} is itself: {otherwise}")
            elif label in labels:
                raise UserError(f"{wrong} is below it: move it up")
            else:
                hint = did_you_mean(label, labels[:place], otherwise)
                raise UserError(f"{wrong} is unknown: {hint}")


def check_fit(components: Sequence[Component], dataset: Dataset) -> None:
    """Raises UserError where a defense is made of a saved model for other images or labels than
    those of the data set."""
    names = {component.label: component.name for component in components}
    for component in components:
        for part, label in _named(component).items():
            name = names.get(label, label)
            if not name.startswith(SAVED):
                continue
            card = read_card(_folder(name))
            made_for, wanted = (
                (card.get("shape"), card.get("classes")),
                (list(dataset.shape), dataset.classes),
            )
            if made_for != wanted:
                raise UserError(
                    f"defense {component.label!r}: {part}={label!r} is for {_text(*made_for)}, and "
                    f"{dataset.name} has {_text(*wanted)}: name a model that was trained on it"
                )


def gather(component: Component, known: Mapping[str, Trained]) -> dict[str, Trained]:
    """The models that a defense is made of, of those known by label, or loaded. Raises UserError
    and SavedModelError where one does not load."""
    return {
        part: known[label] if label in known else load_saved(_folder(label))
        for part, label in _named(component).items()
    }


def _named(component: Component) -> dict[str, str]:
    """The parts of a defense, and the labels that it gives them. Raises UserError."""
    if component.name.startswith(SAVED):
        return {}
    recipe = recipe_of(component)
    parts = recipe.parts if isinstance(recipe, Derived) else ()
    return {part: str(getattr(recipe, part)) for part in parts}


def _folder(name: str) -> Path:
    return Path(name.removeprefix(SAVED))


def _text(shape: Any, classes: Any) -> str:
    return f"images {shape} and {classes} classes"
