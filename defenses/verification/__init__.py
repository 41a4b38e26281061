"""What is proven of networks: bounds over a ball, and whether any point of it is misclassified."""

from defenses.verification.balls import Ball
from defenses.verification.bounds import bound_units, lower_bounds, margins, sharpened
from defenses.verification.deciding import Decision, Method, Status, decide
from defenses.verification.reading import Program, read_graph

__all__ = [
    "Ball",
    "Decision",
    "Method",
    "Program",
    "Status",
    "bound_units",
    "decide",
    "lower_bounds",
    "margins",
    "read_graph",
    "sharpened",
]
