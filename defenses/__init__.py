"""What is attacked: architectures, how they are trained, and models that are saved or foreign."""

from defenses.decomposed.classifiers import Ensemble, OneVsOne, RoBin, TwoStage
from defenses.decomposed.decomposition import Decomposed, Decomposition
from defenses.foreign.external import External, Normalised
from defenses.fractal.aggregations import GNB, MRF, Belief, QuadraticEnsemble
from defenses.fractal.best import BestFractal
from defenses.fractal.ensemble import BeliefEnsemble
from defenses.fractal.fractal_recipe import Fractal
from defenses.fractal.nbr import NBR
from defenses.networks.architectures import ARCHITECTURES, CNN2, MLP, LeNet5, build_architecture
from defenses.nonexpansive.classifier import L2NonexpansiveClassifier
from defenses.nonexpansive.hybrid import Hybrid, HybridClassifier
from defenses.nonexpansive.l2nnn import L2NNN
from defenses.recipes.adversarial import MART, TRADES, AdversarialTraining
from defenses.recipes.batches import Batch, Epoch
from defenses.recipes.derived import Derived
from defenses.recipes.recipe import Recipe, Vanilla
from defenses.training.checkpoints import Checkpoint
from defenses.training.initialisation import initialise
from defenses.training.loop import train
from defenses.training.saved import SavedModelError, describe, load, read_card, save
from defenses.training.tally import Progress, TrainingError
from defenses.weights import fingerprint, round_to_half

__all__ = [
    "ARCHITECTURES",
    "CNN2",
    "GNB",
    "L2NNN",
    "MART",
    "MLP",
    "MRF",
    "NBR",
    "TRADES",
    "AdversarialTraining",
    "Batch",
    "Belief",
    "BeliefEnsemble",
    "BestFractal",
    "Checkpoint",
    "Decomposed",
    "Decomposition",
    "Derived",
    "Ensemble",
    "Epoch",
    "External",
    "Fractal",
    "Hybrid",
    "HybridClassifier",
    "L2NonexpansiveClassifier",
    "LeNet5",
    "Normalised",
    "OneVsOne",
    "Progress",
    "QuadraticEnsemble",
    "Recipe",
    "RoBin",
    "SavedModelError",
    "TrainingError",
    "TwoStage",
    "Vanilla",
    "build_architecture",
    "describe",
    "fingerprint",
    "initialise",
    "load",
    "read_card",
    "round_to_half",
    "save",
    "train",
]
