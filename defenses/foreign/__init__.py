"""Models made elsewhere."""

from defenses.foreign.adapting.normalisation import Normalised
from defenses.foreign.external import External

__all__ = ["External", "Normalised"]
