"""Models made elsewhere."""

from defenses.foreign.external import External, Normalised

__all__ = ["External", "Normalised"]
