"""Defenses whose robustness is a mask or a mistake, by which attacks are qualified."""

from benchmark.canaries.masks import CANARIES, Canary
from benchmark.canaries.qualify import Outcome, qualify, twins

__all__ = ["CANARIES", "Canary", "Outcome", "qualify", "twins"]
