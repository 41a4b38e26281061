"""What a look at a model's outputs tells."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.benchmark.small import Wrapped, X, evaluate_small


def _lead(z: Tensor) -> Tensor:
    return z[:, 1] - z[:, 0]  # above 0 for class 1


@pytest.mark.parametrize("shaped", [lambda z: z, lambda z: z[:, None]], ids=["(n,)", "(n, 1)"])
def test_a_sigmoid_at_the_end_of_a_binary_model_is_flagged(
    shaped: Callable[[Tensor], Tensor],
) -> None:
    closed = evaluate_small(Wrapped(lambda z: shaped(_lead(z).sigmoid())).eval(), binary=True)
    assert "probabilities" in closed.flags
    saturated = Wrapped(lambda z: shaped((1e6 * _lead(z)).sigmoid())).eval()
    assert "probabilities" in evaluate_small(saturated, binary=True).flags
    assert evaluate_small(Wrapped(lambda z: shaped(_lead(z))).eval(), binary=True).flags == {}


class _Strict(nn.Module):
    """A model that refuses what is no image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        if bool((x < 0).any() or (x > 1).any()):
            raise ValueError("no image")
        logits: Tensor = self.model(x)
        return logits


def test_small_logits_of_a_binary_model_are_no_probabilities() -> None:
    small = nn.Linear(4, 1).eval()
    with torch.no_grad():
        small.weight.fill_(0.1)
        small.bias.fill_(0.1)
    y = torch.ones(len(X), dtype=torch.int64)
    for eps in (0.1, 0.4):
        assert "probabilities" not in evaluate_small(small, y=y, binary=True, eps=eps).flags
    closed = _Strict(nn.Sequential(small, nn.Sigmoid())).eval()
    assert "probabilities" in evaluate_small(closed, y=y, binary=True).flags
