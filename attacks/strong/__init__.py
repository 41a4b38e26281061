"""The attack `strong`: what it does in which order, what it knows, and its ascents."""

from attacks.strong.strong import Strong

__all__ = ["Strong"]
