"""Defenses that are made from other models."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from defenses.networks.architectures import Shape
from defenses.recipes.recipe import Plain


@dataclass(frozen=True, kw_only=True)
class Derived(Plain):
    """A defense made from other models, and trained on (with cross-entropy on clean images, unless
    `loss` says otherwise) only if `epochs` says so.

    parts  the names of the fields that hold a model each: the label of a defense above it in the
           run, or "saved:FOLDER". With only one, call it `source`, which text takes whole:
           "mine/source=vanilla/epochs=4".

    What the model takes from its parts must be in their modules, or in parameters and buffers of
    its own that `finish` sets: a saved model is rebuilt from parts with fresh weights, and then its
    own weights are loaded.
    """

    epochs: int = 0

    parts: ClassVar[tuple[str, ...]]

    def settings(self) -> dict[str, Any]:
        return {key: value for key, value in super().settings().items() if key not in self.parts}

    def build(self, shape: Shape, classes: int) -> nn.Module:
        raise ValueError(f"{type(self).__name__} is made from other models: call derive")

    @abstractmethod
    def derive(self, shape: Shape, classes: int, *args: Any, **models: Any) -> nn.Module:
        """The module for images of `shape` (channels, height, width), made from `models`: for each
        name in `parts` a copy of that model, trained, on the CPU and in eval mode, to be kept as a
        submodule. Fresh weights are drawn from torch's global randomness.

        Raises ValueError, in one line, where the models will not do.
        """
