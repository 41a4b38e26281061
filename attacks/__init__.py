"""How a perturbation is found: one attack per file, each from a Problem to points."""

from attacks.aggregation import HasArms
from attacks.apgd import APGD
from attacks.boundary import Boundary
from attacks.carlini_wagner import CarliniWagner
from attacks.hierarchical import HasStages
from attacks.pgd import PGD
from attacks.problem import Attack, NotApplicableError, Problem
from attacks.square import Square
from attacks.strong import Strong
from attacks.targeted import Targeted
from attacks.threat import ThreatModel
from attacks.transfer import HasSurrogate, Seeded, Transfer

__all__ = [
    "APGD",
    "PGD",
    "Attack",
    "Boundary",
    "CarliniWagner",
    "HasArms",
    "HasStages",
    "HasSurrogate",
    "NotApplicableError",
    "Problem",
    "Seeded",
    "Square",
    "Strong",
    "Targeted",
    "ThreatModel",
    "Transfer",
]
