"""The other models that a defense is made of, or that an attack crafts its points on."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from benchmark.data.dataset import Dataset
from benchmark.errors import UserError, did_you_mean
from benchmark.models.trained import Trained, load_saved
from benchmark.spec.components import SAVED, saved_folder
from benchmark.spec.lineup import Lineup
from benchmark.spec.roster import Member, Roster, check_saved
from defenses import SavedModelError, read_card


def fetch(names: Iterable[str], known: Mapping[str, Trained]) -> dict[str, Trained]:
    """The models with some names, each of which is `known` already, or saved and then loaded.

    Raises UserError, in a line that names the model, where a saved one does not load.
    """
    models = {}
    for name in names:
        if name in known:
            models[name] = known[name]
            continue
        folder = saved_folder(name)
        assert folder is not None  # `check_sources` and `enrol` have refused other names
        try:
            models[name] = load_saved(folder)
        except SavedModelError as error:
            raise UserError(f"source {name!r}: {error}") from error
    return models


def check_fit(roster: Roster, dataset: Dataset) -> None:
    """Raises UserError where a defense is made of a saved model that does not fit the data set.

    The model fits if it was trained for images of the same shape and for as many classes.
    """
    for member in roster.values():
        for field, name in member.made_of.items():
            folder = roster[name].folder if name in roster else saved_folder(name)
            if folder is None:
                continue
            card = read_card(folder)
            made_for = card.get("shape"), card.get("classes")
            wanted = list(dataset.shape), dataset.classes
            if made_for != wanted:
                raise UserError(
                    f"defense {member.label!r}: {field}={name!r} is for {_text(*made_for)}, and "
                    f"{dataset.name} has {_text(*wanted)}: name a model that was trained on it"
                )


def parts_of(member: Member, known: Mapping[str, Trained]) -> dict[str, Trained]:
    """The models that a defense is made of, by the recipe's field.

    `known` are models that need not be loaded. Raises UserError where one does not load.
    """
    models = fetch(member.made_of.values(), known)
    return {field: models[name] for field, name in member.made_of.items()}


def sources_of(lineup: Lineup) -> list[str]:
    """The names of the models that attacks craft their points on, sorted."""
    entries = lineup.entries.values()
    return sorted({name for entry in entries for name in entry.attack.facts.sources})


def check_sources(lineup: Lineup, known: Collection[str]) -> None:
    """Raises UserError where an attack names a model that is neither known nor saved."""
    for label, entry in lineup.entries.items():
        for name in sorted(set(entry.attack.facts.sources) - set(known)):
            wrong = f"attack {label!r}: source {name!r}"
            if name.startswith(SAVED):
                check_saved(wrong, name)
                continue
            models = ", ".join(known) or "a model that is given in peers"
            hint = did_you_mean(name, known, f"name {models} or {SAVED}FOLDER")
            raise UserError(f"{wrong} is unknown: {hint}")


def _text(shape: Any, classes: Any) -> str:
    return f"images {shape} and {classes} classes"
