"""Defenses that are made from other models."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from defenses.networks.architectures import Shape
from defenses.recipes.recipe import Plain


@dataclass(frozen=True, kw_only=True)
class Derived(Plain):
    """A defense made from other models. It is trained further, with cross-entropy on clean images
    unless `loss` says otherwise, only if `epochs` says so.

    parts  the names of the fields that name a model each: by the label of a defense above it in the
           run, or as "saved:FOLDER". A recipe with one part calls it `source`, because the command
           line takes all that follows `source=` as its value: "mine/source=vanilla/epochs=4".

    What the model takes from its parts must be in their modules, or in parameters and buffers of
    its own that `finish` sets. For a saved model is rebuilt from parts with fresh weights, and then
    all its weights are loaded.
    """

    epochs: int = 0

    parts: ClassVar[tuple[str, ...]]

    def settings(self) -> dict[str, Any]:
        return {key: value for key, value in super().settings().items() if key not in self.parts}

    def build(self, shape: Shape, classes: int) -> nn.Module:
        raise ValueError(f"{type(self).__name__} is made from other models: call derive")

    @abstractmethod
    def derive(self, shape: Shape, classes: int, *args: Any, **models: Any) -> nn.Module:
        """The module for images of `shape` (channels, height, width), made from `models`. These are
        copies of the trained models, by the names in `parts`, on the CPU and in eval mode; they are
        to be kept as submodules. Fresh weights are drawn from torch's global randomness.

        Raises ValueError, in one line, where the models will not do.
        """
