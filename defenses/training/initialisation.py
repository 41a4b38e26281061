"""Fresh models, whose weights depend on a seed."""

from collections.abc import Mapping

import torch
from torch import nn

from defenses.networks.architectures import Shape, check_images
from defenses.recipes.derived import Derived
from defenses.recipes.recipe import Recipe
from defenses.training.randomness import seed_for, seeded


def initialise(
    recipe: Recipe,
    shape: Shape,
    classes: int,
    seed: int,
    parts: Mapping[str, nn.Module] | None = None,
) -> nn.Module:
    """A fresh model on the CPU, in eval mode. Its weights depend on nothing but the seed and, for a
    Derived recipe, the `parts` that it is made from, which become its own. Raises ValueError where
    the recipe cannot build a network for `shape`."""
    if recipe.crop:
        check_images("crop", shape, "leave it out")
    with seeded(seed_for(seed, "weights"), torch.device("cpu")):
        if isinstance(recipe, Derived):
            return recipe.derive(shape, classes, **(parts or {})).eval()
        return recipe.build(shape, classes).eval()
