"""Exact robustness of small piecewise-linear networks."""

from defenses.verification.milp import ExactResult, Status, exact

__all__ = ["ExactResult", "Status", "exact"]
