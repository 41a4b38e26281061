"""Several threats: the reports on one model under each of them, combined sample by sample."""

from benchmark.threats.combined import Combined, combine

__all__ = ["Combined", "combine"]
