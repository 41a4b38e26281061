"""Models that are ready to be attacked, and how they are loaded from the folders of a training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import defenses
from attacks.messages import described
from benchmark.errors import UserError
from benchmark.keys import Identity, identify_model, identify_part
from benchmark.spec.components import Component
from benchmark.spec.roster import recipe_of
from defenses.training.saved import CARD


@dataclass(frozen=True)
class Trained:
    """A model that is ready to be attacked.

    identity  what tells it from any other model; see `benchmark.keys`.
    folder    where it is saved; None for a model that a caller handed over.
    """

    model: nn.Module
    identity: Identity
    folder: Path | None = None


def load_saved(home: Path) -> Trained:
    """Load the model from a folder that training has filled.

    Raises SavedModelError or UserError where the folder does not hold a whole model.
    """
    card = defenses.read_card(home)
    try:
        recipe, model = _rebuild(card)
        parts = _identify_parts(card)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{home / CARD} is not a card of this program") from error
    return _loaded(home, model, recipe, parts)


def load_into(home: Path, model: nn.Module, recipe: defenses.Recipe) -> Trained:
    """Load the weights from a folder that training has filled into a model built by its recipe.

    Raises SavedModelError or UserError, as `load_saved` does.
    """
    return _loaded(home, model, recipe, _identify_parts(defenses.read_card(home)))


@contextmanager
def naming(component: Component) -> Iterator[None]:
    """Turn errors that a recipe raises in this context into a UserError that names the defense."""
    try:
        yield
    except defenses.TrainingError:
        raise
    except ValueError as error:
        raise UserError(f"defense {component.label!r}: {error}") from error
    except (TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise UserError(f"defense {component.label!r} fails: {described(error)}") from error


def _loaded(
    home: Path, model: nn.Module, recipe: defenses.Recipe, parts: Mapping[str, Identity]
) -> Trained:
    """Load weights into a model; `parts` are the identities of the models that it was made of."""
    defenses.load(home, model)
    return Trained(model, identify_model(model, recipe, parts), home)


def _identify_parts(card: Mapping[str, Any]) -> dict[str, Identity]:
    """The identities of the models that the model of a card was made of, by the recipe's field.

    Each holds the identities of the models that it was made of itself.
    """
    return {
        name: identify_part(_recipe_of(part), _identify_parts(part))
        for name, part in card.get("parts", {}).items()
    }


def _recipe_of(card: Mapping[str, Any]) -> defenses.Recipe:
    """The recipe of a card, for a model that is built again and not trained."""
    return recipe_of(Component.model_validate(card["component"])).rebuilding()


def _rebuild(card: Mapping[str, Any]) -> tuple[defenses.Recipe, nn.Module]:
    """Build the recipe and the model of a card, and the models that this was made of, untrained.

    Raises UserError where the recipe fails, and KeyError, TypeError, ValueError or AttributeError
    where the mapping is not a card.
    """
    shape, classes, seed = tuple(card["shape"]), int(card["classes"]), int(card["seed"])
    parts = {name: _rebuild(part)[1] for name, part in card.get("parts", {}).items()}
    recipe = _recipe_of(card)
    with naming(Component.model_validate(card["component"])):
        return recipe, defenses.initialise(recipe, shape, classes, seed, parts)
