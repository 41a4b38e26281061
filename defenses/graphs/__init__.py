"""Networks as graphs of affine maps and of functions of one number, read from their modules."""

from defenses.graphs.graph import Affine, Graph, Node, Shape, Unary
from defenses.graphs.tracing import Program, read_graph

__all__ = ["Affine", "Graph", "Node", "Program", "Shape", "Unary", "read_graph"]
