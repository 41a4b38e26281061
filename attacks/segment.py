"""The segment between an image and a misclassified point."""

import torch
from torch import Tensor

from attacks.objectives import decided
from attacks.problem import Problem
from attacks.threat import per_sample


def pull(problem: Problem, points: Tensor, halvings: int = 10) -> Tensor:
    """Misclassified points (n, *shape), each moved toward its image as far as bisection finds.

    What is left to gain on the segment is 2^-halvings of its length at most where the segment
    crosses the boundary once. Costs `halvings` forwards.
    """
    delta = points - problem.x
    outer = points.new_ones(len(points))
    inner = torch.zeros_like(outer)
    with torch.no_grad():
        for _ in range(halvings):
            middle = (inner + outer) / 2
            logits = problem.logits(torch.addcmul(problem.x, delta, per_sample(middle, delta)))
            outside = decided(logits, problem.y)
            outer = torch.where(outside, middle, outer)
            inner = torch.where(outside, inner, middle)
    pulled = torch.addcmul(problem.x, delta, per_sample(outer, delta))
    return torch.where(per_sample(outer < 1, points), pulled, points)
