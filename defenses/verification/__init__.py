"""Exact robustness of small piecewise-linear networks."""
