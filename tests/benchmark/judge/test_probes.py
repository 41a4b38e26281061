"""Networks that hide their gradients are broken as if they did not, or flagged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.threat import Norm
from benchmark import Report, evaluate
from benchmark.canaries.masks import Masked
from benchmark.data.sets import load_dataset
from defenses import Vanilla, initialise, train

Change = Callable[[Tensor], Tensor]


def _same(z: Tensor) -> Tensor:
    return z


EPS: dict[Norm, float] = {"l2": 0.5, "linf": 0.1}
SAMPLES = 60

# Flags by which a table says that gradients are hidden, or that a verdict holds for one draw.
MASKING = {"zero-gradient", "no-ascent", "large-eps", "gradient-free", "non-deterministic"}

# How much more robust than its twin a masked network may seem without a flag.
TOLERANCE = 0.02


class Binary(nn.Module):
    """One logit and its opposite: whether the digit is above 4, with a decision after it."""

    def __init__(self, network: nn.Module, decision: Change) -> None:
        super().__init__()
        self.network, self.decision = network, decision

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        lead = self.decision(logits[:, 5:].amax(1) - logits[:, :5].amax(1))
        return torch.stack([-lead, lead], dim=1)


def _centred(logits: Tensor) -> Tensor:
    """Logits less the middle of the top two, so that a sigmoid does not make them equal."""
    return logits - logits.topk(2, dim=1).values.mean(1, keepdim=True)


def _quantised(levels: float) -> Change:
    return lambda z: (levels * z).round() / levels


def _reversed(z: Tensor) -> Tensor:
    return 2 * z.detach() - z


MASKS: dict[str, dict[str, Change]] = {
    "sigmoid": {"after": lambda z: torch.sigmoid(100 * _centred(z))},
    "mild sigmoid": {"after": lambda z: torch.sigmoid(5 * _centred(z))},
    "softmax": {"after": lambda z: (100 * z).softmax(1)},
    "quantised input": {"before": _quantised(16)},
    "coarsely quantised input": {"before": _quantised(4)},
    "finely quantised input": {"before": _quantised(255)},
    "quantised features": {"within": _quantised(8)},
    "quantised logits": {"after": _quantised(1)},
    "random input": {"before": lambda x: x + 0.1 * torch.randn_like(x)},
    "random quantiser": {"before": lambda x: (8 * x + torch.rand_like(x)).floor() / 8},
    "random logits": {"after": lambda z: z + 0.3 * torch.randn_like(z)},
    "scaled logits": {"after": lambda z: 1e4 * z},
    "shrunk logits": {"after": lambda z: 1e-4 * z},
    "detached input": {"before": lambda x: x.detach() + 0 * x},
    "reversed gradient": {"before": _reversed},
    "sign features": {"within": lambda h: h.detach() + 1e-6 * (h - h.detach())},
    "shattered input": {"before": lambda x: x + 1e-3 * torch.sin(1e5 * x)},
    "shattered logits": {"after": lambda z: z + 0.05 * torch.sin(1e4 * z)},
    "misleading slope": {"before": lambda x: (16 * x).round() / 16 - 1e-2 * (x - 0.5)},
}


# The others take thousands of queries each.
QUICK = {("quantised input", "linf"), ("random quantiser", "l2")}
# By default each of these masks in one norm; all masks in both norms are slow.
CHOSEN = [
    pytest.param(mask, norm, marks=() if (mask, norm) in QUICK else pytest.mark.slow)
    for mask in MASKS
    for norm in EPS
]


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    digits = load_dataset("digits").train
    model = initialise(Vanilla(epochs=10), (1, 8, 8), 10, 0)
    train(Vanilla(epochs=10), model, digits.x, digits.y, threat=None, seed=0)
    assert isinstance(model, nn.Sequential)
    return model


def _strong(model: nn.Module, norm: Norm, binary: bool = False) -> Report:
    test = load_dataset("digits").test
    x, y = test.x[:SAMPLES], test.y[:SAMPLES]
    torch.manual_seed(0)  # of the models that are random
    y = (y > 4).long() if binary else y
    return evaluate(model.eval(), x, y, norm=norm, eps=EPS[norm], suite="strong")


@pytest.fixture(scope="module")
def plain(network: nn.Sequential) -> dict[tuple[Norm, bool], float]:
    """Best-attack of the unmasked twins, which raise no flag."""
    found: dict[tuple[Norm, bool], float] = {}
    for norm in EPS:
        for binary in (False, True):
            model = Binary(network, _same) if binary else Masked(network)
            report = _strong(model, norm, binary)
            assert report.flags == {}
            found[norm, binary] = report.best_attack
    return found


def _broken_or_flagged(report: Report, twin: float) -> bool:
    return report.best_attack <= twin + TOLERANCE or bool(MASKING & set(report.flags))


@pytest.mark.parametrize(("mask", "norm"), CHOSEN)
def test_a_masked_network_is_broken_or_flagged(
    mask: str, norm: Norm, network: nn.Sequential, plain: dict[tuple[Norm, bool], float]
) -> None:
    report = _strong(Masked(network, **MASKS[mask]), norm)
    assert _broken_or_flagged(report, plain[norm, False]), (report.best_attack, report.flags)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize(
    "decision",
    [
        lambda lead: 2 * torch.sigmoid(100 * lead) - 1,
        *(
            pytest.param(decision, marks=pytest.mark.slow)
            for decision in (
                lambda lead: 1e4 * lead,
                lambda lead: torch.tanh(2 * lead),
                lambda lead: (4 * lead).round(),
                lambda lead: lead.sign() + 1e-3 * lead,
            )
        ),
    ],
)
def test_a_masked_decision_is_broken_or_flagged(
    decision: Change,
    norm: Norm,
    network: nn.Sequential,
    plain: dict[tuple[Norm, bool], float],
) -> None:
    report = _strong(Binary(network, decision), norm, binary=True)
    assert _broken_or_flagged(report, plain[norm, True]), (report.best_attack, report.flags)


@pytest.mark.parametrize(
    ("mask", "norm"),
    [
        ("scaled logits", "l2"),
        ("shrunk logits", "linf"),
        pytest.param("scaled logits", "linf", marks=pytest.mark.slow),
        pytest.param("shrunk logits", "l2", marks=pytest.mark.slow),
    ],
)
def test_what_leaves_the_gradient_its_direction_hides_nothing(
    mask: str, norm: Norm, network: nn.Sequential, plain: dict[tuple[Norm, bool], float]
) -> None:
    assert _strong(Masked(network, **MASKS[mask]), norm).best_attack <= plain[norm, False]


def test_attacks_that_only_gradients_guide_are_fooled_and_the_table_says_so(
    network: nn.Sequential, plain: dict[tuple[Norm, bool], float]
) -> None:
    test = load_dataset("digits").test
    options: dict[str, Any] = {"norm": "linf", "eps": EPS["linf"], "attacks": ["pgd"]}
    masked = Masked(network, **MASKS["finely quantised input"])
    report = evaluate(masked.eval(), test.x[:SAMPLES], test.y[:SAMPLES], **options)
    assert report.best_attack > plain["linf", False] + 0.2
    assert "zero-gradient" in report.flags
    assert "- Masked: zero-gradient: " in report.to_markdown()
