"""What cannot be bounded is refused in one line, and never read as something else."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attacks import ThreatModel
from defenses.verification import Decision, Program, decide, read_graph

SHAPE = (1, 2, 2)


class Lead(nn.Module):
    """Two logits, of which the first leads by twice a function of an image."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.layer = nn.Linear(4, 4)
        nn.init.constant_(self.layer.weight, -0.75)
        nn.init.zeros_(self.layer.bias)
        self.norm = nn.BatchNorm1d(4)
        self.prelu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        lead = self.function(x.flatten(1)).flatten(1).mean(1, keepdim=True)
        return torch.cat([lead, -lead], 1)


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "rounding division": lambda x: 2.5 - torch.div(x, 0.25, rounding_mode="floor"),
    "floor": lambda x: 2.5 - (4 * x).floor(),
    "einsum of itself": lambda x: 0.5 - torch.einsum("bi,bi->bi", x, x),
    "product of itself": lambda x: 0.5 - x * x,
    "quotient": lambda x: 1 - 1 / (x + 1),
    "exponential": lambda x: 2.0 ** (-3 * (x * 1.0)) - 0.3,
    "half precision": lambda x: 1 - (x * 1e-7).half().to(x.dtype) * 1e7,
    "bfloat16": lambda x: 0.5 - x.bfloat16().to(x.dtype),
    "whole numbers": lambda x: 0.5 - (3 * x).long().to(x.dtype),
    "random": lambda x: x * 0 + torch.randn(x.shape),
    "random like": lambda x: x + torch.rand_like(x),
    "dropout": lambda x: nn.functional.dropout(x, 0.5, training=True),
    "places of maxima": lambda x: nn.functional.max_pool2d(
        x.view(-1, 1, 2, 2), 2, return_indices=True
    )[1].to(x.dtype),
    "sign": lambda x: x.sign() + 0.5,
    "condition": lambda x: torch.where(x > 0.7, -x, x),
    "gathered": lambda x: x.gather(1, (x > 0.7).long()),
    "weights that depend on the image": lambda x: nn.functional.batch_norm(
        x, torch.zeros(4), torch.ones(4), x.mean(0), None
    ),
    "slopes that depend on the image": lambda x: nn.functional.prelu(x, x.mean().view(1)),
    "bounds that depend on the image": lambda x: x.clamp(x.flip(1) - 0.1, x.flip(1) + 0.1),
    "norm": lambda x: nn.functional.layer_norm(x, (4,)),
    "softmax": lambda x: x.softmax(1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_affine_is_refused_in_one_line(name: str) -> None:
    model = Lead(REFUSED[name]).eval()
    x, y = torch.full((2, *SHAPE), 0.5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^(its|it) [^\n]*$"):
        list(decide(model, x, y, ThreatModel("linf", 0.3), 0, attacked=True))


def test_a_function_that_is_not_the_model_is_refused() -> None:
    """What a tracing freezes: a number that Python draws."""

    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lead = x.flatten(1)[:, :1] + random.random()
            return torch.cat([lead, -lead], 1)

    x, y = torch.full((2, *SHAPE), 0.5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="not read as the function that it computes"):
        list(decide(Drawing(), x, y, ThreatModel("linf", 0.3), 0, attacked=True))


def test_constants_of_a_model_without_weights_are_precise() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lead = (x * torch.tensor([[0.3, 0.1]], dtype=torch.float64)).sum(1, keepdim=True)
            return torch.cat([lead, -lead], 1)

    x = torch.full((1, 2), 0.01, dtype=torch.float64) + 1e-12
    y = torch.zeros(1, dtype=torch.int64)
    (found,) = decide(Scaled().double(), x, y, ThreatModel("linf", 0.01), 0, attacked=True)
    assert found.bound == pytest.approx(0.8e-12, rel=0.01)


def test_tied_weights_are_as_they_are_now() -> None:
    first = nn.Linear(4, 4)
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), first, nn.Linear(4, 2))
    program = Program(model, SHAPE)
    with torch.no_grad():
        first.weight.mul_(-2)
    x = torch.rand(3, *SHAPE)
    found = program.graph(model).forward(x[:, None])[-1][:, 0]
    torch.testing.assert_close(found, model(x))


SLOPES: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.5),
    "barely leaky": lambda: nn.LeakyReLU(0.01),
    "prelu": lambda: nn.PReLU(8, 0.3),
}


@pytest.mark.parametrize("networks", [8, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", SLOPES)
def test_a_search_proves_nothing_that_a_point_breaks(kind: str, networks: int) -> None:
    """Networks whose least lead over sampled points is a little below 0, by a shift."""
    generator = torch.Generator().manual_seed(0)
    threat = ThreatModel("linf", 0.4)
    statuses = []
    for seed in range(networks):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(3, 8), SLOPES[kind](), nn.Linear(8, 8), SLOPES[kind](), nn.Linear(8, 2)
        ).double()
        for layer in model[::2]:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight)
        x, y = torch.full((1, 3), 0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
        points = 0.1 + 0.8 * torch.rand(20_000, 3, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            logits = model(points)
            least = float((logits[:, 0] - logits[:, 1]).min())
            model[4].bias[0] -= least + 1e-3
            assert float((model(points)[:, 0] - model(points)[:, 1]).min()) < 0
        found: Decision
        (found,) = decide(model, x, y, threat, 0.5, attacked=True)
        assert found.status != "robust"
        with torch.no_grad():
            model[4].bias[0] += 0.3
        (found,) = decide(model, x, y, threat, 0.5, attacked=True)
        statuses.append(found.status)
    assert statuses.count("robust") > 0.6 * networks


def test_nothing_to_decide_and_nothing_left_to_bound() -> None:
    model = Lead(lambda x: x - 0.5).eval()
    threat = ThreatModel("linf", 0.3)
    assert (
        list(decide(model, torch.empty(0, *SHAPE), torch.empty(0, dtype=torch.int64), threat)) == []
    )
    x, y = torch.full((3, *SHAPE), 0.4), torch.zeros(3, dtype=torch.int64)
    assert [found.status for found in decide(model, x, y, threat)] == ["broken"] * 3
    assert read_graph(model, SHAPE).shape == (1, *SHAPE)


def test_the_class_that_is_allowed_need_not_be_led() -> None:
    """Class 1 wins above 0.6, and is allowed; class 2 wins nowhere."""

    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lead = x.flatten(1).mean(1, keepdim=True) - 0.6
            return torch.cat([torch.zeros_like(lead), lead, -torch.ones_like(lead)], 1)

    x, y = torch.full((2, *SHAPE), 0.5), torch.zeros(2, dtype=torch.int64)
    threat = ThreatModel("linf", 0.3)
    assert [found.status for found in decide(Three(), x, y, threat)] == ["broken"] * 2
    found = decide(Three(), x, y, threat, allowed=1)
    assert [one.status for one in found] == ["robust"] * 2
