"""What a view shows: a verdict that is the model's, a direction that is the view's."""

import pytest
import torch
from torch import Tensor

from attacks.objectives import OBJECTIVES, decided, margin
from attacks.views import View

OUTPUTS = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(200) % 4


def _push(outputs: Tensor, y: Tensor, data: Tensor) -> Tensor:
    return (outputs * data).sum(1)


def _behind(outputs: Tensor, y: Tensor, data: Tensor) -> Tensor:
    return margin(outputs, y) - 3


@pytest.mark.parametrize("progress", [None, _behind])
@pytest.mark.parametrize("objective", ["cross-entropy", "margin", "dlr"])
def test_verdicts_are_the_model_s_and_gradients_the_push_s(
    objective: str, progress: object
) -> None:
    data = torch.randn(200, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs = OUTPUTS.clone().requires_grad_()
    logits = View(Y, data, _push, progress)(outputs)
    label = torch.zeros_like(Y)
    assert torch.equal(decided(logits, label), decided(OUTPUTS, Y))
    value = OBJECTIVES[objective](logits, label)
    (gradient,) = torch.autograd.grad(value.sum(), outputs)
    torch.testing.assert_close(gradient, data)
    wrong = margin(OUTPUTS, Y) > 0
    torch.testing.assert_close(value[wrong], margin(OUTPUTS, Y)[wrong])
    right = margin(OUTPUTS, Y)[~wrong] - (0 if progress is None else 3)
    torch.testing.assert_close(value[~wrong], right)


def test_leads_within_rounding_are_no_verdict() -> None:
    """In float32, beside logits of 1e4: shown at their own scale."""
    outputs = torch.tensor([[1e4, 1e4 + 0.01], [1e4, 1e4 + 1], [0.0, 0.01]])
    y = torch.zeros(3).long()
    view = View(y, torch.ones(3, 2), _push)
    assert decided(view(outputs), y).tolist() == [False, True, True]
    assert decided(outputs, y).tolist() == [False, True, True]


def test_a_far_aim_keeps_its_precision() -> None:
    """In float32, a progress of 1e-3 is not rounded away by logits of 1e4."""
    outputs = torch.tensor([[1e4, 0.0]])
    near = View(torch.tensor([0]), torch.ones(1, 2), _push, lambda z, y, d: z[:, 1] - 1.2345e-3)
    logits = near(outputs)
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], torch.tensor([-1.2345e-3]))
