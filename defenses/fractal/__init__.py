"""Neural belief reasoners and fractal classifiers, and how their subtasks are combined."""

from defenses.fractal.aggregations import GNB, MRF, Belief, QuadraticEnsemble
from defenses.fractal.best import BestFractal
from defenses.fractal.ensemble import BeliefEnsemble
from defenses.fractal.fractal_recipe import Fractal
from defenses.fractal.nbr import NBR

__all__ = [
    "GNB",
    "MRF",
    "NBR",
    "Belief",
    "BeliefEnsemble",
    "BestFractal",
    "Fractal",
    "QuadraticEnsemble",
]
