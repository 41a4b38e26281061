"""Classifiers put together from networks for simpler tasks, trained side by side."""

from defenses.decomposed.classifiers import Ensemble, OneVsOne, RoBin, TwoStage
from defenses.decomposed.decomposition import Decomposed, Decomposition

__all__ = ["Decomposed", "Decomposition", "Ensemble", "OneVsOne", "RoBin", "TwoStage"]
