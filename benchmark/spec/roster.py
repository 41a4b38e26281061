"""The roster of a run's defenses: each is configured once, and may be made of other models."""

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

    component  the defense as the user wrote it.
    recipe     the configured recipe; None for a model that is saved already.
    made_of    the names of the models that the recipe builds on, by the recipe's field. A name is
               the label of a defense above this one in the run, or "saved:FOLDER".
    """

    component: Component
    recipe: Recipe | None
    made_of: Mapping[str, str]

    @property
    def label(self) -> str:
        """The name of the defense in tables."""
        return self.component.label

    @property
    def folder(self) -> Path | None:
        """The folder of a saved model; None for a defense that the run has to train."""
        return saved_folder(self.component.name)

    @property
    def is_trained(self) -> bool:
        """Whether a run trains it, or makes it of models that it may train."""
        return isinstance(self.recipe, Derived) or bool(self.recipe and self.recipe.is_fitted)


Roster = dict[str, Member]


def enrol(components: Sequence[Component]) -> Roster:
    """Configure and check the defenses of a run, and return them by label.

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
    """Configure one defense. Raises UserError where a name or an option is not valid."""
    if saved_folder(component.name) is not None:
        return Member(component, None, {})
    recipe = recipe_of(component)
    fields = recipe.parts if isinstance(recipe, Derived) else ()
    return Member(component, recipe, {field: str(getattr(recipe, field)) for field in fields})


def recipe_of(component: Component) -> Recipe:
    """Create the recipe that a component names. Raises UserError where it names none."""
    recipe = configure(DEFENSES, component)
    if not isinstance(recipe, Recipe):
        raise UserError(f"defense {component.name!r} is not a defenses.Recipe")
    return recipe


def check_saved(wrong: str, name: str) -> None:
    """Raises UserError unless a model is saved at "saved:FOLDER"; its line begins with `wrong`."""
    folder = saved_folder(name)
    assert folder is not None
    try:
        read_card(folder)
    except SavedModelError as error:
        raise UserError(f"{wrong}: {error}") from error


def _check_known(wrong: str, name: str, label: str, above: Roster, labels: list[str]) -> None:
    """Raises UserError unless a name is that of a defense above, or of a saved model.

    wrong   how the line of the error begins.
    label   the label of the defense that is made of the model with this name.
    above   the defenses above it in the run; `labels` are those of all defenses.
    """
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
