"""What is proven of networks: bounds over a ball, and whether any point of it is misclassified."""

from defenses.verification.balls import Ball
from defenses.verification.bounds import bound_units, lower_bounds, margins, sharpened
from defenses.verification.deciding import (
    BOUNDS_VERSION,
    Decision,
    Method,
    Status,
    decide,
    network_of,
)
from defenses.verification.reading import Program, read_graph

__all__ = [
    "BOUNDS_VERSION",
    "Ball",
    "Decision",
    "Method",
    "Program",
    "Status",
    "bound_units",
    "decide",
    "lower_bounds",
    "margins",
    "network_of",
    "read_graph",
    "sharpened",
]
