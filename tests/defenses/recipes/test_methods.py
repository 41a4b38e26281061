"""TRADES and MART against the formulas, in plain arithmetic."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from defenses.recipes.methods import divergence, mart, trades

Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Row = list[float]

# Right and wrong, sure and unsure, clean and attacked; labels; any number of them is attacked.
CASES: dict[int, tuple[list[Row], list[Row], list[int]]] = {
    2: ([[0.3, -0.4], [1.0, 2.5], [0.2, 0.2]], [[-0.7, 0.1], [0.4, 0.9], [1.5, -2.0]], [0, 0, 1]),
    3: (
        [[0.5, -1.0, 2.0], [0.1, 0.2, 0.3], [3.0, 0.0, -1.0]],
        [[1.5, -0.3, 0.9], [0.7, -0.2, 0.8], [-1.0, 1.0, 0.5]],
        [2, 1, 0],
    ),
}
BOTH = [trades, mart]


def softmax(row: Row) -> Row:
    weights = [math.exp(value) for value in row]
    return [weight / sum(weights) for weight in weights]


def by_hand(name: str, clean: list[Row], moved: list[Row], y: list[int], weight: float) -> float:
    terms = []
    for number, (before, label) in enumerate(zip(map(softmax, clean), y, strict=True)):
        attacked = number < len(moved)
        after = softmax(moved[number]) if attacked else before
        kl = sum(p * math.log(p / q) for p, q in zip(before, after, strict=True))
        if name == "trades":
            terms.append(-math.log(before[label]) + weight * kl)
        else:
            wrong = max(p for place, p in enumerate(after) if place != label)
            boosted = -math.log(after[label]) - math.log(1 - wrong)
            terms.append(boosted + weight * kl * (1 - before[label]))
    return sum(terms) / len(terms)


def tensors(classes: int, attacked: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and adversarial logits, float64, and labels, which tell gradients."""
    clean, moved, y = CASES[classes]
    logits = (torch.tensor(rows, dtype=torch.float64) for rows in (clean, moved))
    before, after = (value.requires_grad_() for value in logits)
    return before, after[:attacked], torch.tensor(y)


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Of the label, of two."""
    other = 1 - y[: len(logits)]
    pairs = torch.stack([y[: len(logits)], other], 1)
    own, rival = logits.gather(1, pairs).unbind(1)
    return own - rival


@pytest.mark.parametrize("weight", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("attacked", [0, 1, 3])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("loss", BOTH)
def test_the_loss_is_that_of_the_formula(
    loss: Loss, classes: int, attacked: int, weight: float
) -> None:
    clean, moved, y = CASES[classes]
    expected = by_hand(loss.__name__, clean, moved[:attacked], y, weight)
    found = loss(*tensors(classes, attacked), weight)
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("attacked", [0, 2, 3])
def test_of_two_classes_they_are_the_binary_losses_of_log_odds(attacked: int) -> None:
    clean, moved, y = tensors(2, attacked)
    s, t = log_odds(clean, y), log_odds(moved, y)
    p, q = s[:attacked].sigmoid(), t.sigmoid()
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    expected = softplus(-s).mean() + 3 * kl.sum() / 3
    torch.testing.assert_close(trades(clean, moved, y, 3.0), expected)
    boosted = 2 * softplus(-torch.cat([t, s[attacked:]]))
    expected = boosted.mean() + 3 * (kl * (1 - p)).sum() / 3
    torch.testing.assert_close(mart(clean, moved, y, 3.0), expected)


def naive(name: str, clean: Tensor, moved: Tensor, y: Tensor, weight: float) -> Tensor:
    count, rows = len(moved), torch.arange(len(y))
    p, q = clean.softmax(1), moved.softmax(1)
    kl = (p[:count] * (p[:count] / q).log()).sum(1)
    if name == "trades":
        return -p[rows, y].log().mean() + weight * kl.sum() / len(y)
    after = torch.cat([q, p[count:]])
    others = after.clone()
    others[rows, y] = 0
    boosted = -after[rows, y].log() - (1 - others.amax(1)).log()
    return boosted.mean() + weight * (kl * (1 - p[rows, y][:count])).sum() / len(y)


@pytest.mark.parametrize("attacked", [1, 3])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("loss", BOTH)
def test_gradients_are_those_of_the_formula(loss: Loss, classes: int, attacked: int) -> None:
    """By both logits: neither term treats any of them as given."""
    clean, moved, y = tensors(classes, attacked)
    value, same = loss(clean, moved, y, 2.5), naive(loss.__name__, clean, moved, y, 2.5)
    for found, expected in zip(
        torch.autograd.grad(value, (clean, moved)),
        torch.autograd.grad(same, (clean, moved)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        assert found.abs().max() > 1e-3


@pytest.mark.parametrize("size", [1e4, 1e30])
@pytest.mark.parametrize("loss", BOTH)
def test_extreme_logits_have_finite_losses_and_gradients(loss: Loss, size: float) -> None:
    signs = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    clean = (size * signs[:, None]).expand(3, 3, 3).flatten(0, 1).requires_grad_()
    moved = (size * signs[None]).expand(3, 3, 3).flatten(0, 1).detach().requires_grad_()
    for label in range(3):
        value = loss(clean, moved, torch.full((9,), label), 1.0)
        gradients = torch.autograd.grad(value, (clean, moved))
        assert value.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_confident_mistakes_cost_what_they_lead_by() -> None:
    """Where probabilities are 0 in float32. Two classes: the boosted loss is twice the lead."""
    logits, y = torch.tensor([[2e3, -2e3]]), torch.tensor([1])
    assert trades(logits, logits, y, 1.0).item() == pytest.approx(4e3)
    assert mart(logits, logits, y, 1.0).item() == pytest.approx(8e3)
    assert divergence(logits, -logits).item() == pytest.approx(4e3)


def test_mart_spares_what_is_surely_right() -> None:
    clean = torch.tensor([[200.0, 0.0, 1.0]], dtype=torch.float64)
    moved, y = torch.tensor([[0.0, 3.0, 1.0]], dtype=torch.float64), torch.tensor([0])
    assert divergence(clean, moved) > 3
    assert mart(clean, moved, y, 100.0).item() == mart(clean, moved, y, 0.0).item()
    other = mart(clean, moved, torch.tensor([1]), 100.0)
    assert other > 100 * divergence(clean, moved)


def test_a_divergence_is_zero_only_of_what_is_the_same() -> None:
    clean, moved, _ = tensors(3)
    assert divergence(clean, clean + 7).abs().max() < 1e-12
    assert (divergence(clean, moved) > 0.01).all()
    assert not torch.allclose(divergence(clean, moved), divergence(moved, clean))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", BOTH)
def test_a_label_that_a_task_lacks_changes_nothing(loss: Loss, dtype: torch.dtype) -> None:
    clean, moved, y = tensors(2, 2)
    clean, moved = clean.detach().to(dtype), moved.detach().to(dtype)

    def padded(logits: Tensor) -> Tensor:
        return torch.cat([logits, torch.full_like(logits[:, :1], -1e9)], 1).requires_grad_()

    wide = padded(clean), padded(moved)
    value = loss(*wide, y, 2.0)
    narrow = clean.requires_grad_(), moved.requires_grad_()
    expected = loss(*narrow, y, 2.0)
    torch.testing.assert_close(value, expected)
    for found, same in zip(
        torch.autograd.grad(value, wide), torch.autograd.grad(expected, narrow), strict=True
    ):
        torch.testing.assert_close(found[:, :2], same)
        assert not found[:, 2].any()


@pytest.mark.parametrize("loss", BOTH)
def test_a_task_of_one_label_has_nothing_to_learn(loss: Loss) -> None:
    clean, moved = (torch.tensor([[value, -1e9]]).requires_grad_() for value in (0.3, 2.0))
    value = loss(clean, moved, torch.tensor([0]), 1.0)
    assert value == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, (clean, moved)))
