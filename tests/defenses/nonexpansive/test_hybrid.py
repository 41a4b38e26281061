import copy

import pytest
import torch
from torch import Tensor, nn

from attacks import Problem, ThreatModel
from attacks.strong import Strong
from defenses import Vanilla, initialise, train
from defenses.nonexpansive.hybrid import Hybrid, HybridClassifier
from defenses.nonexpansive.l2nnn import L2NNN
from defenses.nonexpansive.nonexpansive_classifier import L2NonexpansiveClassifier, confidence_gap

Digits = tuple[Tensor, Tensor, Tensor, Tensor]

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module", params=[True, False], ids=["multi", "single"])
def hybrid(request: pytest.FixtureRequest, digits: Digits) -> HybridClassifier:
    """Trained on digits, and delegating a fifth of the test images."""
    parts = []
    sure = L2NNN(multi=request.param, widen=1.0, epochs=8, batch=32, learning_rate=1e-2)
    for recipe in (sure, Vanilla(epochs=20, batch=32)):
        model = initialise(recipe, SHAPE, 10, seed=0)
        train(recipe, model, *digits[:2], threat=None, seed=0)
        parts.append(model.requires_grad_(False))
    gap = confidence_gap(parts[0](digits[2]))
    threshold = gap.quantile(0.2).item()
    made = Hybrid(of="a", otherwise="b", threshold=threshold).derive(
        SHAPE, 10, of=parts[0], otherwise=parts[1]
    )
    assert isinstance(made, HybridClassifier)
    return made.eval()


def delegated(hybrid: HybridClassifier, x: Tensor) -> Tensor:
    """Which of the images the other model answers: bool (n,)."""
    return hybrid.of.confidence_gap(x) < hybrid.threshold


def test_each_image_is_answered_by_one_model(hybrid: HybridClassifier, digits: Digits) -> None:
    x, y = digits[2:]
    others = delegated(hybrid, x)
    assert 0.15 < others.float().mean() < 0.25
    logits = hybrid(x)
    assert torch.equal(logits[others], hybrid.otherwise(x)[others])
    assert torch.equal(logits[~others], hybrid.of(x)[~others])
    hits = [(model(x).argmax(1) == y).float().mean() for model in (hybrid, hybrid.of)]
    assert hits[0] > hits[1]


def test_gradients_are_those_of_the_model_that_answers(
    hybrid: HybridClassifier, digits: Digits
) -> None:
    def slope(model: nn.Module) -> Tensor:
        x = digits[2][:50].clone().requires_grad_()
        logits = model(x)
        (gradient,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), x)
        return gradient

    others = delegated(hybrid, digits[2][:50])
    assert 0 < others.sum() < 50
    expected = torch.where(others[:, None, None, None], slope(hybrid.otherwise), slope(hybrid.of))
    torch.testing.assert_close(slope(hybrid), expected)


def test_nothing_is_certified_where_delegated(hybrid: HybridClassifier, digits: Digits) -> None:
    x = digits[2]
    radius, others = hybrid.certified_radius(x), delegated(hybrid, x)
    assert (radius[others] == 0).all()
    assert (radius[~others] >= 0).all()
    assert (radius <= hybrid.of.certified_radius(x)).all()
    # What is left of the gap changes by at most this much over the radius.
    rise = 2 if hybrid.of.multi else 2**0.5
    left = hybrid.of.confidence_gap(x) - rise * radius
    torch.testing.assert_close(left[~others], torch.full_like(left, hybrid.threshold)[~others])


def test_within_the_radius_neither_the_switch_nor_the_answer_changes() -> None:
    torch.manual_seed(0)
    for multi in (True, False):
        of = L2NonexpansiveClassifier("mlp", SHAPE, 3, multi=multi).double().eval()
        model = HybridClassifier(of, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double(), 0.05)
        x = 2 * torch.randn(300, *SHAPE).double()
        radius, answer = model.certified_radius(x), model(x).argmax(1)
        x.requires_grad_()
        (slope,) = torch.autograd.grad(of.confidence_gap(x).sum(), x)
        ways = [-slope, *(torch.randn_like(x) for _ in range(20))]
        for way in ways:
            step = way / way.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * radius.view(-1, 1, 1, 1)
            moved = (x + step).detach()
            known = radius > 0
            assert not delegated(model, moved)[known].any()
            assert torch.equal(model(moved).argmax(1)[known], answer[known])
        assert known.any()
        assert not known.all()


@pytest.mark.slow
def test_no_strong_attack_contradicts_the_certificate(
    hybrid: HybridClassifier, digits: Digits
) -> None:
    x = digits[2][:30]
    answer, threat = hybrid(x).argmax(1), ThreatModel("l2", 0.25)
    points = Strong(classes=1, queries=50)(Problem(hybrid, x, answer, threat))
    broken, certified = hybrid(points).argmax(1) != answer, hybrid.certified_radius(x) >= 0.25
    assert not (broken & certified).any()
    assert broken.any()
    assert certified.any()


def test_a_copy_answers_alike(hybrid: HybridClassifier, digits: Digits) -> None:
    assert torch.equal(copy.deepcopy(hybrid)(digits[2]), hybrid(digits[2]))


def test_only_an_l2nnn_has_the_gap_that_it_switches_by() -> None:
    recipe, other = Hybrid(of="a", otherwise="b"), nn.Flatten()
    with pytest.raises(ValueError, match="must name an l2nnn"):
        recipe.derive(SHAPE, 10, of=other, otherwise=other)
    with pytest.raises(ValueError, match="threshold must be above 0"):
        Hybrid(of="a", otherwise="b", threshold=0.0)
