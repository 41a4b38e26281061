"""Smooth derivatives for networks that are not smooth, so that ascents pass what masks them."""

from attacks.smoothing.cooling import WARM, Cooling
from attacks.smoothing.mode import Smoothing

__all__ = ["WARM", "Cooling", "Smoothing"]
