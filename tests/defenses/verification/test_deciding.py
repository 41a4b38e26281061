"""Decisions against closed forms, grids, other ways to write a network, and their promises."""

import itertools
import re

import numpy as np
import pytest
import torch
from scipy.optimize import OptimizeResult, linprog
from torch import Tensor, nn

from attacks import PGD, Problem, ThreatModel
from attacks.objectives import decided
from defenses import MLP, Normalised
from defenses.verification import Decision, decide, deciding
from tests.defenses.verification.piecewise_networks import NETWORKS, SHAPE, mlp


def _solve(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> list[Decision]:
    """The results, of which each point is checked."""
    results = list(decide(model, x, y, threat, 30.0))
    for i, result in enumerate(results):
        assert (result.point is not None) == (result.status == "broken")
        assert (result.by == "") == (result.status == "undecided")
        if result.point is not None:
            point = result.point[None]
            assert torch.equal(point, threat.clamp(point))
            assert float(threat.distance(point, x[i : i + 1])) <= threat.eps
            assert decided(model(point), y[i : i + 1]).all()
            assert result.point.dtype == x.dtype
    return results


def _statuses(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> list[str]:
    return [result.status for result in _solve(model, x, y, threat)]


def _dense(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return layer


@pytest.mark.parametrize("classes", [2, 5])
def test_a_linear_network_is_broken_where_eps_passes_the_gap_over_the_l1_norm(classes: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    x = 0.5 + 0.01 * torch.rand(6, *SHAPE)
    z, weight = model(x).detach(), model[1].weight.detach()
    y = z.argmax(1)
    for i in range(len(x)):
        others = [j for j in range(classes) if j != y[i]]
        gaps = z[i, y[i]] - z[i, others]
        nearest = float((gaps / (weight[others] - weight[y[i]]).abs().sum(1)).min())
        for factor, status in ((0.999, "robust"), (1.001, "broken")):
            threat = ThreatModel("linf", factor * nearest)
            assert _statuses(model, x[i : i + 1], y[i : i + 1], threat) == [status]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
@pytest.mark.parametrize("eps", [0.1, 0.3])
def test_in_two_dimensions_it_agrees_with_a_fine_grid(
    activation: type[nn.Module], eps: float
) -> None:
    model = mlp(2, 12, 12, 3, activation=activation).double()
    for layer in model[::2]:
        nn.init.normal_(layer.weight)
    x = torch.rand(12, 2, dtype=torch.float64)
    y = model(x).argmax(1)
    threat = ThreatModel("linf", eps)
    steps = torch.linspace(-eps, eps, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(steps, steps)
    robust = 0
    for i, result in enumerate(_solve(model, x, y, threat)):
        z = model(threat.clamp(x[i] + grid)).detach()
        lead = float((z - z[:, y[i : i + 1]]).scatter(1, y[i].expand(len(z), 1), -np.inf).max())
        # Between two points of the grid, the logits' lead rises by little.
        assert result.status == ("robust" if lead < 0 else "broken") or -0.05 < lead < 0
        robust += result.status == "robust"
    assert 0 < robust < len(x)


def test_it_agrees_with_every_activation_pattern() -> None:
    """Within a pattern the network is linear, so a linear program gives the largest lead in it."""
    model = mlp(4, 6, 3).double()
    nn.init.normal_(model[0].weight)
    nn.init.normal_(model[2].weight)
    (weight, bias), (last, last_bias) = (
        (model[i].weight.detach().numpy(), model[i].bias.detach().numpy()) for i in (0, 2)
    )
    x = torch.rand(5, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    threat = ThreatModel("linf", 0.25)
    statuses = []
    for i, label in enumerate(y.tolist()):
        box = np.stack([x[i].clamp_min(0.25) - 0.25, x[i].clamp_max(0.75) + 0.25], axis=1)
        largest = -np.inf
        for pattern in itertools.product([0.0, 1.0], repeat=6):
            on = np.array(pattern)
            sign = 1 - 2 * on[:, None]  # so that sign * z <= 0
            for j in {0, 1, 2} - {label}:
                row, offset = last[j] - last[label], last_bias[j] - last_bias[label]
                best = linprog(-(row * on) @ weight, sign * weight, -sign[:, 0] * bias, bounds=box)
                if best.status == 0:
                    largest = max(largest, -best.fun + (row * on) @ bias + offset)
        statuses.append("broken" if largest > 0 else "robust")
    assert _statuses(model, x, y, threat) == statuses
    assert len(set(statuses)) == 2


@pytest.mark.parametrize(("inner", "outer"), [(1e-7, 1.0), (1.0, 1e-9), (1e6, 1e3)])
def test_the_size_of_weights_does_not_matter(inner: float, outer: float) -> None:
    model = mlp(4, 12, 12, 3).double()
    for layer in model[::2]:
        nn.init.normal_(layer.weight)
    x = torch.rand(12, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    threat = ThreatModel("linf", 0.1)
    before = _statuses(model, x, y, threat)
    with torch.no_grad():
        # Scaling all inputs of a ReLU scales its output.
        scales = (inner, 1.0, outer), (inner, inner, inner * outer)
        for layer, weight, bias in zip(model[::2], *scales, strict=True):
            layer.weight *= weight
            layer.bias *= bias
    assert _statuses(model, x, y, threat) == before
    assert set(before) == {"robust", "broken"}


def test_a_solver_that_lies_or_fails_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp(2, 12, 12, 3)
    for layer in model[::2]:
        nn.init.normal_(layer.weight)
    x = torch.rand(20, 2)
    y = model(x).argmax(1)
    threat = ThreatModel("linf", 0.15)
    truth = _statuses(model, x, y, threat)
    for share in ("_FIRST", "_SEARCH"):  # so that there is something for the solver
        monkeypatch.setattr(deciding, share, 0.0)
    for status in (0, 1, 4):  # solved; out of time; failed
        found = lambda c, status=status, **_: OptimizeResult(status=status, x=np.zeros(len(c)))  # noqa: E731
        monkeypatch.setattr("scipy.optimize.milp", found)
        told = _statuses(model, x, y, threat)
        assert all(said in (true, "undecided") for said, true in zip(told, truth, strict=True))
        assert "undecided" in told


def test_the_box_keeps_points_out_and_all_within_counts() -> None:
    """Class 1 leads only where x0 > 0.9."""
    model = mlp(2, 2, 2)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.copy_(torch.tensor([-0.85, 0.0]))
        model[2].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        model[2].bias.copy_(torch.tensor([0.05, 0.0]))
    x, y = torch.full((1, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    assert _statuses(model, x, y, ThreatModel("linf", 0.45)) == ["broken"]
    assert _statuses(model, x, y, ThreatModel("linf", 0.39)) == ["robust"]
    assert _statuses(model, x, y, ThreatModel("linf", 0.45, 0.0, 0.8)) == ["robust"]
    assert _statuses(model, x, y, ThreatModel("linf", 0.45, 0.0, 0.95)) == ["broken"]


def test_what_is_broken_stays_so_at_a_larger_eps_and_attacks_break_nothing_robust(
    digits: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    model = _digits_model(digits, MLP(SHAPE, 10, widen=0.1))
    x, y = digits[2][:15], digits[3][:15]
    before = [False] * len(x)
    for eps in (0.04, 0.08):
        threat = ThreatModel("linf", eps)
        statuses = _statuses(model, x, y, threat)
        assert "undecided" not in statuses
        broken = [status == "broken" for status in statuses]
        points = PGD(steps=20, objective="margin")(Problem(model, x, y, threat))
        attacked = decided(model(points), y).tolist()
        assert all(now >= then for now, then in zip(broken, before, strict=True))
        assert all(now >= hit for now, hit in zip(broken, attacked, strict=True))
        before = broken
    assert 2 < sum(before) < 15


def _digits_model(digits: tuple[Tensor, Tensor, Tensor, Tensor], model: nn.Module) -> nn.Module:
    x, y = digits[0], digits[1]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", ["cnn2", "normalised"])
def test_a_convolutional_network_is_as_robust_as_its_dense_form(name: str) -> None:
    shape, build = NETWORKS[name]
    model = build().eval()
    x = torch.rand(8, *shape)
    y = model(x).argmax(1)
    threat = ThreatModel("linf", 0.05)
    dense: list[nn.Module] = [nn.Flatten()]
    part, inputs = nn.Sequential(), shape
    for layer in _leaves(model.double()):
        if isinstance(layer, nn.ReLU | nn.LeakyReLU):
            dense += [_matrix(part, inputs), layer]
            inputs = tuple(part(torch.zeros(1, *inputs).double()).shape[1:])
            part = nn.Sequential()
        else:
            part.append(layer)
    dense.append(_matrix(part, inputs))
    statuses = _statuses(model.float(), x, y, threat)
    assert _statuses(nn.Sequential(*dense), x.double(), y, threat) == statuses
    assert "undecided" not in statuses


def _leaves(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, Normalised):
        mean, std = model.mean.flatten().tolist(), model.std.flatten().tolist()
        return [Normalised(nn.Identity(), mean, std).double(), *_leaves(model.model)]
    return (
        [leaf for child in model for leaf in _leaves(child)]
        if len(list(model.children()))
        else [model]
    )


@torch.no_grad()
def _matrix(part: nn.Module, shape: tuple[int, ...]) -> nn.Linear:
    """An affine network as one layer."""
    inputs = int(np.prod(shape))
    zero = part(torch.zeros(1, *shape).double()).flatten()
    rows = part(torch.eye(inputs).double().view(-1, *shape)).flatten(1) - zero
    return _dense(rows.T.numpy(), zero.numpy())


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("width", [2, 5])
def test_the_largest_of_pixels_moves_by_eps(width: int, sign: float) -> None:
    """Class 1 leads where the largest pixel is above 0.5, or below it."""
    model = nn.Sequential(nn.MaxPool2d((1, width)), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[0.0], [sign]]))
        model[2].bias.copy_(torch.tensor([0.5 * sign, 0.0]))
    x = 0.4 + 0.2 * torch.rand(10, 1, 1, width)
    largest = x.flatten(1).amax(1)
    y = (sign * largest > sign * 0.5).long()
    robust = (largest - 0.5).abs() > 0.03
    expected = ["robust" if kept else "broken" for kept in robust]
    assert _statuses(model, x, y, ThreatModel("linf", 0.03)) == expected


def test_without_time_only_the_attack_and_linear_bounds_decide() -> None:
    model = mlp(4, 8, 8, 3)
    for layer in model[::2]:
        nn.init.normal_(layer.weight)
    x = torch.rand(30, 4)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    results = list(decide(model, x, y, ThreatModel("linf", 0.2), 0.0))
    assert results[0].status == "broken"
    assert torch.equal(results[0].point, x[0])
    assert {result.by for result in results} <= {"attack", "crown", ""}
    cheap = list(decide(model, x, y, ThreatModel("linf", 0.2), method="crown"))
    assert [r.status for r in cheap] == [r.status for r in results]


def test_a_tie_is_neither_robust_nor_broken() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    threat = ThreatModel("linf", 0.1)
    assert _statuses(model, torch.rand(1, 2), torch.tensor([0]), threat) == ["undecided"]


def test_results_come_one_by_one_and_leave_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)).train()
    x = torch.rand(3, 4)
    y = model.eval()(x).argmax(1)
    alone = [_statuses(model, x[i : i + 1], y[i : i + 1], ThreatModel("linf", 0.2)) for i in (0, 1)]
    results = decide(model.train(), x, y, ThreatModel("linf", 0.2))
    assert [[next(results).status], [next(results).status]] == alone
    assert model.training
    assert model[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), "its operation sigmoid is not supported"),
        (nn.Linear(4, 1), "it gives one number for an image, not two or more logits"),
        (
            nn.Sequential(nn.Linear(4, 3), _dense(np.full((3, 3), np.nan), np.zeros(3)).float()),
            "it has weights that are not finite",
        ),
    ],
)
def test_a_network_that_it_cannot_read_is_refused_at_once(model: nn.Module, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        decide(model, torch.rand(1, 4), torch.tensor([0]), ThreatModel("linf", 0.1))


@pytest.mark.parametrize(
    ("threat", "limit", "line"),
    [
        (ThreatModel("l1", 0.1), 1.0, "bounds are for linf and l2, not l1"),
        (
            ThreatModel("linf", 0.1), -1.0,
            "the time for an image must be at least 0 seconds, not -1.0",
        ),
        (ThreatModel("linf", 0.1, 0.0, 0.5), 1.0, "images lie out of the box [0.0, 0.5]"),
    ],
)  # fmt: skip
def test_what_it_cannot_answer_is_refused_at_once(
    threat: ThreatModel, limit: float, line: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        decide(mlp(4, 4, 2), torch.full((1, 4), 0.7), torch.tensor([0]), threat, limit)
