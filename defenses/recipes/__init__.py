"""Recipes: how a defense is built, and on which loss it is trained."""

from defenses.recipes.adversarial import MART, TRADES, TRAINED_BY, AdversarialTraining
from defenses.recipes.batches import Batch, Epoch
from defenses.recipes.derived import Derived
from defenses.recipes.lp_robust import LPRobust
from defenses.recipes.methods import METHODS, Method
from defenses.recipes.recipe import Plain, Recipe, Vanilla
from defenses.recipes.schedules import SCHEDULES

__all__ = [
    "MART",
    "METHODS",
    "SCHEDULES",
    "TRADES",
    "TRAINED_BY",
    "AdversarialTraining",
    "Batch",
    "Derived",
    "Epoch",
    "LPRobust",
    "Method",
    "Plain",
    "Recipe",
    "Vanilla",
]
