"""Networks that never expand an L2 distance, and the classifiers made of them."""

from defenses.nonexpansive.hybrid import Hybrid, HybridClassifier
from defenses.nonexpansive.l2nnn import L2NNN
from defenses.nonexpansive.nonexpansive_classifier import L2NonexpansiveClassifier

__all__ = ["L2NNN", "Hybrid", "HybridClassifier", "L2NonexpansiveClassifier"]
