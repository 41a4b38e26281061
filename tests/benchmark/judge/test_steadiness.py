"""What is rounding in logits, and what is not."""

import torch

from benchmark.judge.steadiness import differ, telling_of, usual_size


def test_at_a_boundary_the_usual_size_of_logits_counts() -> None:
    """Rounding of large numbers within a network, where all logits of some points are near 0."""
    near = torch.tensor([[1e-4, 0.0], [-2e-4, 0.0]])
    other = near + torch.tensor([[3e-7, 0.0], [-3e-7, 0.0]])
    assert differ(near, other, 1e-5)
    assert not differ(near, other, 1e-5, torch.tensor([True, False]), usual=2.0)
    clean = torch.tensor([[2.0, 0.0], [-3.0, 0.0], [1.0, 0.0]])
    assert usual_size(clean, telling_of(clean)) == 2.0
