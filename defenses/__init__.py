"""What is attacked: architectures, how they are trained, and models that are saved or foreign."""

from defenses.adversarial import MART, TRADES, AdversarialTraining
from defenses.aggregations import GNB, MRF, Belief, QuadraticEnsemble
from defenses.architectures import ARCHITECTURES, CNN2, MLP, LeNet5, build_architecture
from defenses.best import BestFractal
from defenses.decomposition import Decomposed, Decomposition
from defenses.decompositions import Ensemble, OneVsOne, RoBin, TwoStage
from defenses.derived import Derived
from defenses.ensembles import BeliefEnsemble
from defenses.external import External, Normalised
from defenses.fractal import Fractal
from defenses.hybrid import Hybrid, HybridClassifier
from defenses.l2nnn import L2NNN, L2NonexpansiveClassifier
from defenses.recipe import Batch, Recipe, Vanilla
from defenses.saved import (
    SavedModelError,
    describe,
    fingerprint,
    load,
    read_card,
    round_to_half,
    save,
)
from defenses.subtasks import NBR
from defenses.training import Progress, TrainingError, initialise, train

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
    "Decomposed",
    "Decomposition",
    "Derived",
    "Ensemble",
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
