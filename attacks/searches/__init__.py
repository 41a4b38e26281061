"""Attacks that search for adversarial points themselves, one algorithm a file."""

from attacks.searches.apgd import APGD
from attacks.searches.boundary import Boundary
from attacks.searches.carlini_wagner import CarliniWagner
from attacks.searches.ddn import DDN
from attacks.searches.pgd import PGD
from attacks.searches.rays import RayS
from attacks.searches.square import Square

__all__ = ["APGD", "DDN", "PGD", "Boundary", "CarliniWagner", "RayS", "Square"]
