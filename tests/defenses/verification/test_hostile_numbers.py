"""Nothing is proven where numbers overflow, are none, vanish, or hide others."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attacks import ThreatModel
from defenses.verification import decide
from defenses.verification.deciding import Decision, Method

X, Y = torch.full((1, 20), 0.5), torch.tensor([0])


class Computed(nn.Module):
    """A network without weights, as a function of the image."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _decided(
    model: nn.Module, method: Method, x: Tensor = X, norm: str = "linf", eps: float = 0.1
) -> Decision:
    threat = ThreatModel("l2" if norm == "l2" else "linf", eps)
    (decision,) = decide(model, x, Y, threat, 1.0, method, attacked=True)
    return decision


def _total(x: Tensor) -> Tensor:
    return x.sum(1, keepdim=True)


def _overflowing(x: Tensor) -> Tensor:
    """A dead unit whose bound is infinite, beside one that breaks the image."""
    dead = torch.relu(_total(x) - 100)
    for _ in range(3):
        dead = dead * 1e150
    broken = 100 * torch.relu(_total(x) - 11.8)
    return torch.cat([0 * broken + 1, broken + dead], 1)


def _too_large(x: Tensor) -> Tensor:
    """Finite in float64, and no number in float32."""
    unit = torch.relu(3e19 * torch.relu(1e20 * (_total(x) - 11.8)))
    return unit * torch.tensor([1e-38, 0.0]).to(x) + torch.tensor([1.0, 0.0]).to(x)


def _rooted(x: Tensor) -> Tensor:
    """Of which no number is left where the sum is below 8.2."""
    lead = 1 - 0.1 * torch.sqrt(_total(x) - 8.2)
    return torch.cat([lead, 0 * lead], 1)


@pytest.mark.parametrize("method", ["crown", "branch"])
@pytest.mark.parametrize("function", [_overflowing, _too_large, _rooted])
def test_what_may_be_no_number_is_not_proven(
    function: Callable[[Tensor], Tensor], method: Method
) -> None:
    assert _decided(Computed(function), method).status != "robust"


def test_a_root_of_squares_is_bounded() -> None:
    """Rounding must not make the sum of squares look negative."""
    model = nn.Sequential(
        Computed(lambda x: torch.cat([_total(x.square()).sqrt() + 1, 0 * _total(x)], 1))
    )
    assert _decided(model, "crown", torch.zeros(1, 20)).status == "robust"


def test_weights_whose_squares_vanish_are_not_proven() -> None:
    """At 0.3 below, the classes change places."""
    model = nn.Linear(4, 2).double()
    with torch.no_grad():
        model.weight.zero_()
        model.weight[:, 0] = torch.tensor([1e-170, -1e-170])
        model.bias.copy_(torch.tensor([-0.5e-170, 0.5e-170]))
    x = torch.full((1, 4), 0.6, dtype=torch.float64)
    assert _decided(model, "crown", x, "l2", 0.3).status != "robust"


class Hidden(nn.Module):
    """Another function where tracing does not look, at a corner of the ball."""

    def forward(self, x: Tensor) -> Tensor:
        lead = 1 + 0 * _total(x)
        if not torch.compiler.is_compiling() and float(x.sum()) > 11.8:
            lead = -lead
        return torch.cat([lead, 0 * lead], 1)


def _rounded(x: Tensor) -> Tensor:
    """A staircase that float32 makes, beside a class whose logit is huge."""
    stairs = 2 * ((x[:, :1] + 2.0**21).to(torch.float32).to(x.dtype) - 2.0**21)
    lead = stairs - 3 * x[:, :1] + 0.5
    return torch.cat([lead, 0 * lead, 0 * lead - 1e6], 1)


@pytest.mark.parametrize(
    ("model", "x", "eps"),
    [(Hidden(), X, 0.1), (Computed(_rounded), torch.full((1, 20), 0.4), 0.05)],
)
def test_what_was_read_is_compared_at_corners_and_class_by_class(
    model: nn.Module, x: Tensor, eps: float
) -> None:
    with pytest.raises(ValueError, match="not read as the function that it computes"):
        _decided(model, "crown", x, eps=eps)


@pytest.mark.parametrize("mask", [-1e6, -1e9])
def test_a_masked_class_does_not_keep_others_from_being_proven(mask: float) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(20, 3)
            with torch.no_grad():
                self.linear.weight.mul_(0.01)
                self.linear.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + torch.tensor([0.0, 0.0, mask]).to(x)

    assert _decided(Masked(), "crown").status == "robust"


def test_a_reason_why_a_network_cannot_be_traced_is_short_and_says_where() -> None:
    class Choosing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2] if x.sum() > 0 else -x[:, :2]

    with pytest.raises(ValueError, match="depends on the values") as refused:
        _decided(Choosing(), "crown")
    assert "test_hostile_numbers.py:" in str(refused.value)
    assert len(str(refused.value)) < 400
    with pytest.raises(ValueError, match="scripted"):
        _decided(torch.jit.script(nn.Sequential(nn.Linear(20, 2))), "crown")
