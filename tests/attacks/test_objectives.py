"""Objectives by hand, and where plain cross-entropy would have no direction."""

import math

import pytest
import torch

from attacks.objectives import cross_entropy, decided, dlr, margin, probability_margin
from attacks.views import View

LOGITS = torch.tensor([[3.0, 1.0, 2.0, -1.0], [0.5, 4.0, 0.0, 1.0]])
Y = torch.tensor([0, 3])


def test_values_by_hand() -> None:
    assert margin(LOGITS, Y).tolist() == [-1.0, 3.0]
    assert dlr(LOGITS, Y).tolist() == pytest.approx([-1.0 / 2.0, 3.0 / 3.5])
    p = LOGITS.softmax(1).gather(1, Y[:, None]).squeeze(1)
    assert cross_entropy(LOGITS, Y).tolist() == pytest.approx(((1 - p) / p).log().tolist())


def test_cross_entropy_climbs_as_the_plain_one_does() -> None:
    logits = torch.randn(10, 5, dtype=torch.float64, requires_grad=True)
    y = torch.arange(10) % 5
    (ours,) = torch.autograd.grad(cross_entropy(logits, y).sum(), logits)
    plain = torch.nn.functional.cross_entropy(logits, y, reduction="sum")
    (theirs,) = torch.autograd.grad(plain, logits)
    cosine = torch.nn.functional.cosine_similarity(ours, theirs)
    assert torch.allclose(cosine, torch.ones(10).double())


def test_probability_margin_is_parallel_to_that_of_probabilities() -> None:
    logits = torch.randn(10, 5, dtype=torch.float64, requires_grad=True)
    y = torch.arange(10) % 5
    value = probability_margin(logits, y)
    plain = margin(logits.softmax(1), y)
    assert torch.allclose(value.exp() - 1, plain)
    assert torch.equal(value > 0, margin(logits, y) > 0)
    (ours,), (theirs,) = (torch.autograd.grad(of.sum(), logits) for of in (value, plain))
    cosine = torch.nn.functional.cosine_similarity(ours, theirs)
    assert torch.allclose(cosine, torch.ones(10).double())


def test_probability_margin_has_a_direction_on_confident_samples() -> None:
    logits = torch.tensor([[1e4, 0.0, 1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(probability_margin(logits, torch.tensor([0])).sum(), logits)
    assert gradient.abs().max() > 0.5


def test_cross_entropy_has_a_direction_on_confident_samples() -> None:
    logits = torch.tensor([[1e4, 0.0, 1.0]], requires_grad=True)
    y = torch.tensor([0])
    plain = torch.nn.functional.cross_entropy(logits, y)
    assert torch.autograd.grad(plain, logits)[0].abs().max() == 0
    assert torch.autograd.grad(cross_entropy(logits, y).sum(), logits)[0].abs().max() == 1


@pytest.mark.parametrize("objective", [margin, cross_entropy])
def test_two_classes_give_the_difference_of_logits(objective: object) -> None:
    logits = torch.randn(6, 2)
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    difference = logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None])
    assert torch.allclose(objective(logits, y), difference.squeeze(1), atol=1e-6)  # type: ignore[operator]


def test_dlr_is_invariant_and_of_two_classes_the_margin() -> None:
    assert torch.allclose(dlr(100 * LOGITS + 7, Y), dlr(LOGITS, Y), rtol=1e-4)
    two, y = LOGITS[:, :2], Y.clamp_max(1)
    assert torch.equal(dlr(two, y), margin(two, y))


def test_a_masked_class_does_not_keep_the_others_from_a_verdict() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf], [0.0, 1.0, -1e9]])
    assert decided(logits, torch.zeros(2).long()).all()


def test_ties_rounding_and_nan_are_not_verdicts() -> None:
    logits = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-6], [1.0, 1.1], [math.nan, 1.0]])
    assert decided(logits, torch.zeros(4).long()).tolist() == [False, False, True, False]


@pytest.mark.parametrize(("own", "other"), [(0.0, torch.inf), (-torch.inf, 0.0)])
def test_an_infinite_lead_decides_through_a_view_too(own: float, other: float) -> None:
    logits = torch.tensor([[own, other, -1.0], [other, own, -1.0]], requires_grad=True)
    y = torch.zeros(2).long()
    assert decided(logits, y).tolist() == [True, False]
    view = View(y, y, lambda outputs, y, _: margin(outputs, y))
    assert decided(view(logits), y).tolist() == [True, False]
    (gradient,) = torch.autograd.grad(view(logits)[:, 1].sum(), logits)
    assert not gradient.isnan().any()
