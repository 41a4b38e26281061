"""What is attacked: architectures, how they are trained, and models that are saved or foreign."""

from defenses.adversarial import AdversarialTraining
from defenses.architectures import ARCHITECTURES, CNN2, MLP, LeNet5, build_architecture
from defenses.external import External, Normalised
from defenses.recipe import Batch, Recipe, Vanilla
from defenses.saved import SavedModelError, describe, fingerprint, load, read_card, save
from defenses.training import Progress, TrainingError, initialise, train

__all__ = [
    "ARCHITECTURES",
    "CNN2",
    "MLP",
    "AdversarialTraining",
    "Batch",
    "External",
    "LeNet5",
    "Normalised",
    "Progress",
    "Recipe",
    "SavedModelError",
    "TrainingError",
    "Vanilla",
    "build_architecture",
    "describe",
    "fingerprint",
    "initialise",
    "load",
    "read_card",
    "save",
    "train",
]
