"""Several seeds: what was measured of trainings of one defense, and how much these differ."""

from benchmark.seeds.over_seeds import OverSeeds
from benchmark.seeds.spread import Spread

__all__ = ["OverSeeds", "Spread"]
