"""What is proven of networks: bounds over a ball, and whether any point of it is misclassified."""

from defenses.graphs import Program, read_graph
from defenses.verification.balls import Ball
from defenses.verification.bounds import bound_units, lower_bounds, margins
from defenses.verification.deciding import (
    BOUNDS_VERSION,
    Decision,
    Method,
    Readable,
    Status,
    decide,
)
from defenses.verification.slopes import sharpened, tightened

__all__ = [
    "BOUNDS_VERSION",
    "Ball",
    "Decision",
    "Method",
    "Program",
    "Readable",
    "Status",
    "bound_units",
    "decide",
    "lower_bounds",
    "margins",
    "read_graph",
    "sharpened",
    "tightened",
]
