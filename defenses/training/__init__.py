"""The training loop, its checkpoints, and trained models on disk."""

from defenses.training.checkpoints import Checkpoint
from defenses.training.initialisation import initialise
from defenses.training.loop import train
from defenses.training.saved import SavedModelError, describe, hardware_of, load, read_card, save
from defenses.training.tally import Progress, TrainingError

__all__ = [
    "Checkpoint",
    "Progress",
    "SavedModelError",
    "TrainingError",
    "describe",
    "hardware_of",
    "initialise",
    "load",
    "read_card",
    "save",
    "train",
]
