"""Which defenses a run has: each configured once, and what it is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.errors import UserError, did_you_mean
from benchmark.spec.components import SAVED, Component, configure, saved_folder
from benchmark.spec.registry import DEFENSES
from defenses import Derived, Recipe, SavedModelError, read_card


@dataclass(frozen=True)
class Member:
    """A defense of a run.

    component  as the user wrote it.
    recipe     configured; None for a model that is saved already.
    made_of    the models that the recipe takes, by field: each the label of a defense above it in
               the run, or "saved:FOLDER".
    """

    component: Component
    recipe: Recipe | None
    made_of: Mapping[str, str]

    @property
    def label(self) -> str:
        """How tables name it."""
        return self.component.label

    @property
    def folder(self) -> Path | None:
        """Where the model is saved; None where the run is to train it."""
        return saved_folder(self.component.name)


Roster = dict[str, Member]


def enrol(components: Sequence[Component]) -> Roster:
    """The defenses of a run, by label, each configured and checked.

    Raises UserError or SavedModelError where a name or an option is not valid, and where a defense
    is made of a model that is neither above it nor saved.
    """
    labels = [component.label for component in components]
    roster: Roster = {}
    for component in components:
        member = configured(component)
        if member.folder is not None:
            read_card(member.folder)
        for field, name in member.made_of.items():
            wrong = f"defense {member.label!r}: {field}={name!r}"
            _check_known(wrong, name, member.label, roster, labels)
        roster[member.label] = member
    return roster


def configured(component: Component) -> Member:
    """A defense with its recipe configured. Raises UserError."""
    if saved_folder(component.name) is not None:
        return Member(component, None, {})
    recipe = recipe_of(component)
    fields = recipe.parts if isinstance(recipe, Derived) else ()
    return Member(component, recipe, {field: str(getattr(recipe, field)) for field in fields})


def recipe_of(component: Component) -> Recipe:
    """The configured recipe that a component names. Raises UserError."""
    recipe = configure(DEFENSES, component)
    if not isinstance(recipe, Recipe):
        raise UserError(f"defense {component.name!r} is not a defenses.Recipe")
    return recipe


def check_saved(wrong: str, name: str) -> None:
    """Raises UserError, in a line that begins with `wrong`, where no model is saved there."""
    folder = saved_folder(name)
    assert folder is not None
    try:
        read_card(folder)
    except SavedModelError as error:
        raise UserError(f"{wrong}: {error}") from error


def _check_known(wrong: str, name: str, label: str, above: Roster, labels: list[str]) -> None:
    """Raises UserError, in a line that begins with `wrong`, unless a name that the defense `label`
    gives is that of a defense above it or of a saved model."""
    if name in above:
        return
    choices = [", ".join(above)] if above else []
    otherwise = f"name {' or '.join([*choices, f'{SAVED}FOLDER'])}"
    if name.startswith(SAVED):
        check_saved(wrong, name)
    elif name == label:
        raise UserError(f"{wrong} is itself: {otherwise}")
    elif name in labels:
        raise UserError(f"{wrong} is below it: move it up")
    else:
        raise UserError(f"{wrong} is unknown: {did_you_mean(name, above, otherwise)}")
