"""How a perturbation is found: one attack per file, each from a Problem to points."""

from attacks.problem import Attack, NotApplicableError, Problem
from attacks.searches.apgd import APGD
from attacks.searches.boundary import Boundary
from attacks.searches.carlini_wagner import CarliniWagner
from attacks.searches.pgd import PGD
from attacks.searches.square import Square
from attacks.searches.strong import Strong
from attacks.threat import ThreatModel
from attacks.wrappers.arms import HasArms
from attacks.wrappers.stages import HasStages
from attacks.wrappers.targeted import Targeted
from attacks.wrappers.transfer import HasSurrogate, Seeded, Transfer

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
