"""Training on proven bounds."""

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, Problem, ThreatModel
from defenses import LPRobust, initialise, train
from defenses.recipes.batches import Batch, Epoch
from defenses.recipes.projections import estimated_units
from defenses.verification import Ball, bound_units, decide, read_graph

THREAT = ThreatModel("linf", 0.05)
SHAPE = (1, 8, 8)


def _batch(x: Tensor, y: Tensor, progress: float = 1.0, threat: ThreatModel = THREAT) -> Batch:
    return Batch(x, y, torch.arange(len(x)), threat, 0, 0, progress)


def _images(n: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, *SHAPE, generator=generator), torch.arange(n) % 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("bounds", ["dual", "crown-ibp"])
@pytest.mark.parametrize("arch", ["cnn2", "mlp"])
def test_the_loss_is_above_that_of_any_perturbation(norm: str, bounds: str, arch: str) -> None:
    recipe = LPRobust(arch=arch, widen=0.25, bounds=bounds, norm=norm, eps=0.05)  # type: ignore[arg-type]
    model = initialise(recipe, SHAPE, 3, seed=0)
    x, y = _images()
    for progress in (0.0, 0.25, 1.0):
        eps = recipe.radius(progress, 0.05)
        threat = ThreatModel(norm, eps)  # type: ignore[arg-type]
        proven = float(recipe.loss(model, _batch(x, y, progress)))
        points = PGD(steps=30)(Problem(model, x, y, threat))
        attacked = float(nn.functional.cross_entropy(model(points), y))
        clean = float(nn.functional.cross_entropy(model(x), y))
        assert clean <= attacked <= proven + 1e-6


def test_the_dual_bound_is_the_one_of_wong_and_kolter() -> None:
    """Of a network of one hidden layer: their closed form (2018, equation 5 and theorem 1)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    x, y = _images(5)
    x = x.double()
    box = ThreatModel("linf", 0.05, -10.0, 10.0)  # theirs has no box
    recipe = LPRobust(norm="linf", eps=0.05, ramp=0)
    found = recipe._leads(model, _batch(x, y, threat=box), box)
    first, last = model[1], model[3]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    for i in range(5):
        middle = first(x[i].flatten())
        radius = 0.05 * first.weight.abs().sum(1)
        low, high = middle - radius, middle + radius
        unstable = (low < 0) & (high > 0)
        slope = torch.where(unstable, high / (high - low), (high > 0).double())
        others = [c for c in range(3) if c != y[i]]
        for place, other in enumerate(others):
            row = last.weight[y[i]] - last.weight[other]
            bias = last.bias[y[i]] - last.bias[other]
            back = row * slope
            pulled = back @ first.weight
            lost = torch.where(unstable, slope * low * row.clamp(max=0).abs(), 0.0).sum()
            value = bias + back @ first.bias + pulled @ x[i].flatten() + lost
            value = value - 0.05 * pulled.abs().sum()
            assert float(found[i, place]) == pytest.approx(float(value), abs=1e-6)


def test_eps_grows_with_each_step_up_to_half_of_all() -> None:
    recipe = LPRobust(norm="linf", eps=0.3, epochs=4)
    assert recipe.radius(0.0, 0.3) == pytest.approx(0.01)
    assert recipe.radius(0.25, 0.3) == pytest.approx(0.155)
    assert recipe.radius(0.5, 0.3) == recipe.radius(1.0, 0.3) == pytest.approx(0.3)
    assert recipe.radius(0.0, 0.005) == 0.005  # no more than what it grows to
    x, y = _images(6)
    split = [torch.arange(3), torch.arange(3, 6)]
    model = nn.Flatten()
    batches = list(recipe.batches(model, x, y, Epoch(1, 4, split, THREAT, 0)))
    assert [batch.progress for batch in batches] == [0.375, 0.5]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projections_estimate_what_bounds_are(norm: str) -> None:
    recipe = LPRobust(arch="cnn2", norm=norm, eps=0.05)  # type: ignore[arg-type]
    model = initialise(recipe, SHAPE, 3, seed=0).double()
    x = 0.3 + 0.4 * _images(4)[0].double()  # in the L2 ball, the box counts for exact bounds alone
    graph = read_graph(model, SHAPE)
    ball = Ball.around(x[:, None], ThreatModel(norm, 0.05))  # type: ignore[arg-type]
    exact = bound_units(graph, ball, choice="parallel")
    torch.manual_seed(0)
    estimated = estimated_units(graph, ball, 2000)
    for number, line in exact.lines.items():
        both = line.unstable & estimated.lines[number].unstable
        assert int(both.sum()) >= 10
        low, near = line.low[both], estimated.lines[number].low[both]
        assert float((low - near).abs().mean() / (line.high[both] - low).mean()) < 0.03


def test_projections_are_for_rectifiers_alone() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3].square()

    ball = Ball.around(_images(2)[0][:, None], THREAT)
    with pytest.raises(ValueError, match="for rectifiers, not for its"):
        estimated_units(read_graph(Square(), SHAPE), ball, 5)


@pytest.mark.parametrize(
    "options",
    [{"epochs": 12}, {"epochs": 6, "projections": 10}, {"epochs": 30, "bounds": "crown-ibp"}],
)
def test_what_is_trained_is_proven_to_be_robust(
    digits: tuple[Tensor, Tensor, Tensor, Tensor], options: dict[str, object]
) -> None:
    x, y, tests, labels = digits
    recipe = LPRobust(arch="mlp", norm="linf", eps=0.05, **options)  # type: ignore[arg-type]
    model = initialise(recipe, SHAPE, 10, seed=0)
    train(recipe, model, x, y, threat=None, seed=0)
    decisions = list(decide(model, tests[:60], labels[:60], THREAT, 0, "crown"))
    proven = sum(decision.status == "robust" for decision in decisions)
    assert proven >= 42, proven
    assert sum(decision.status == "undecided" for decision in decisions) <= 6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"norm": "l1", "eps": 1.0}, "bounds are for linf and l2, not l1"),
        ({"bounds": "lp"}, "unknown bounds 'lp': use dual or crown-ibp"),
        ({"ramp": 1.5}, "start and projections must be at least 0, and ramp in"),
        ({"projections": 5, "bounds": "crown-ibp"}, "projections are for the bounds dual"),
        ({"eps": -1.0}, "eps"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LPRobust(**options)  # type: ignore[arg-type]


def test_eps_does_not_start_above_its_value() -> None:
    assert LPRobust(norm="linf", eps=0.005).radius(0.0, 0.005) == 0.005
    with pytest.raises(ValueError, match=r"start 0\.2 is above eps 0\.1"):
        LPRobust(start=0.2).trains_against(ThreatModel("linf", 0.1))
    assert LPRobust(start=0.1).trains_against(ThreatModel("linf", 0.1)).eps == 0.1


def test_a_network_that_bounds_cannot_pass_is_refused_in_one_line() -> None:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3].sin()

    x, y = _images(2)
    with pytest.raises(ValueError, match="its operation sin is not supported"):
        LPRobust(norm="linf", eps=0.1).loss(Sine(), _batch(x, y))


def test_statistics_that_bounds_do_not_learn_are_refused() -> None:
    with pytest.raises(ValueError, match="myrtle has batch norm, whose statistics bounds do not"):
        LPRobust(arch="myrtle", widen=0.1, norm="linf", eps=0.1).build((1, 8, 8), 3)
