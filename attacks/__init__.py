"""How a perturbation is found: one attack per file, each from a Problem to points."""

from attacks.apgd import APGD
from attacks.carlini_wagner import CarliniWagner
from attacks.pgd import PGD
from attacks.problem import Attack, Problem
from attacks.threat import ThreatModel

__all__ = ["APGD", "PGD", "Attack", "CarliniWagner", "Problem", "ThreatModel"]
