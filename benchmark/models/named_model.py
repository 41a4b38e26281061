"""A model by the name that a user gives it: a folder of a training, or one made elsewhere."""

from pathlib import Path

from torch import nn

import defenses
from benchmark.data.dataset import Dataset
from benchmark.errors import UserError
from benchmark.models.trained import load_saved, naming
from benchmark.spec.components import SAVED, read_component
from benchmark.spec.roster import configured


def named_model(written: str, dataset: Dataset, command: str) -> nn.Module:
    """The model that a component, or the folder of a model, names, for a data set.

    command  that is to work on it, for messages.

    Raises UserError or SavedModelError where it is none that exists.
    """
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
            f"{component.label} is trained first: bestattack train {dataset.name} {written} --out "
            f"FOLDER, and then {command} FOLDER"
        )
    with naming(component):
        recipe.check_weights()
        return defenses.initialise(recipe, dataset.shape, dataset.classes, 0, {})
