"""Classifiers of torchvision."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import torch

from attacks.messages import closest
from defenses.foreign.extras import need
from defenses.foreign.sources import Asked, Brought, OfLibrary

# Kept for as long as the operators are declared.
_declared: list[torch.library.Library] = []


class TorchVision(OfLibrary):
    """A classifier by its name in torchvision.models, such as resnet50. With `pretrained`, with the
    library's default weights and their normalisation."""

    package = "torchvision"

    def bring(self, name: str, asked: Asked) -> Brought:
        need("torchvision", "torchvision")
        models = import_torchvision().models
        known = models.list_models(module=models)
        if name not in known:
            close = closest(name, known)
            hint = f"did you mean {close!r}?" if close else "see torchvision.models"
            raise ValueError(f"torchvision has no classifier {name!r}: {hint}")
        weights = models.get_model_weights(name).DEFAULT if asked.pretrained else None
        options = dict(asked.kwargs)
        if not asked.pretrained and asked.classes is not None:
            options = {"num_classes": asked.classes} | options
        model = models.get_model(name, weights=weights, **options)
        if weights is None:
            return Brought(model)
        expected = weights.transforms()
        return Brought(model, tuple(expected.mean), tuple(expected.std))


def import_torchvision() -> ModuleType:
    """torchvision, also where its compiled operators are of another build of torch.

    It then does not import, since it describes operators that are missing; these are declared, and
    only what calls them fails.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _described():
        library.define(f"{operator}(Tensor x) -> Tensor")
    _declared.append(library)
    return importlib.import_module("torchvision")


def _described() -> list[str]:
    """The operators that torchvision describes without looking whether they are there."""
    found = importlib.util.find_spec("torchvision")
    assert found is not None  # `need` has looked
    assert found.origin is not None
    text = (Path(found.origin).parent / "_meta_registrations.py").read_text()
    return re.findall(r'register_fake\("torchvision::(\w+)"\)', text)
