"""An eps and bounds for each feature, and classes by which a model rejects."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark import UserError, evaluate

ATTACKS = ["pgd/steps=20", "cw/steps=100/searches=3", "square/steps=300", "apgd/steps=20"]
N = 24


class Line(nn.Module):
    """Class 1 where a weighted sum of the features is above 0."""

    def __init__(self, weights: Tensor, middle: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("middle", middle)

    def forward(self, x: Tensor) -> Tensor:
        rise = ((x - self.middle) * self.weights).flatten(1).sum(1)
        return torch.stack([-rise, rise], 1)


def _line(shape: tuple[int, ...], middle: float = 0.5) -> tuple[Line, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Line(torch.randn(shape), torch.full(shape, middle))
    x = middle + 0.2 * (torch.rand(N, *shape) - 0.5)
    return model.eval(), x, model(x).argmax(1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_eps_for_each_feature_is_met_exactly(norm: str) -> None:
    model, x, y = _line((6,))
    eps = torch.tensor([0.0, 0.001, 0.01, 0.02, 0.03, 0.05])
    report = evaluate(model, x, y, norm=norm, eps=eps, attacks=ATTACKS)
    assert not report.errors
    lead = ((x - model.middle) * model.weights).sum(1).abs()
    reach = (eps * model.weights).abs()
    most = reach.sum() if norm == "linf" else reach.norm()
    clear = (lead - most).abs() > 0.05 * most
    assert clear.sum() > N / 2
    found = torch.from_numpy(report.robust_to("best-attack"))
    assert torch.equal(found[clear], (lead > most)[clear])
    # Each example is within its own eps, and what must not change does not.
    for label in report.measured:
        examples = report.adversarial[label]
        delta = torch.from_numpy(examples.points - x[examples.index].numpy()).double()
        assert bool((delta[:, 0] == 0).all())
        part = delta[:, 1:].abs() / eps[1:]
        broken = report.frames[label].set_index("index")["broken"].loc[examples.index].to_numpy()
        length = part.amax(1) if norm == "linf" else part.norm(dim=1)
        assert bool((length[torch.tensor(broken)] <= 1 + 1e-4).all())
    assert any("eps differs by feature, from 0 to 0.05" in note for note in report.notes)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_normalised_inputs_have_the_figures_of_plain_ones(norm: str) -> None:
    shape = (3, 4, 4)
    model, x, y = _line(shape)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.full((3, 1, 1), 0.25)
    normalised = Line(model.weights * std, (model.middle - mean) / std).eval()
    eps = 0.05 if norm == "l2" else 0.005
    plain = evaluate(model, x, y, norm=norm, eps=eps, attacks=ATTACKS[:2])
    same = evaluate(
        normalised, (x - mean) / std, y, norm=norm, eps=eps / std,
        bounds=(-mean / std, (1 - mean) / std), attacks=ATTACKS[:2],
    )  # fmt: skip
    assert plain.natural == same.natural == 1.0
    assert 0 < plain.best_attack < 1
    assert same.per_attack == plain.per_attack


def test_bounds_of_each_feature_are_kept() -> None:
    model, x, y = _line((6,))
    lower, upper = np.full(6, 0.38), np.array([0.62, 0.62, 0.62, 0.62, 1.0, 2.0])
    report = evaluate(model, x, y, norm="linf", eps=0.4, bounds=(lower, upper), attacks=ATTACKS)
    for label in report.measured:
        points = report.adversarial[label].points
        assert ((points >= lower.astype(np.float32)) & (points <= upper.astype(np.float32))).all()
    # No point of the box is in the other class where its best corner is not.
    w, best = model.weights.numpy(), []
    for image, label in zip(x.numpy(), y.tolist(), strict=True):
        sign = 1 if label == 0 else -1
        corner = np.where(
            sign * w > 0, np.minimum(upper, image + 0.4), np.maximum(lower, image - 0.4)
        )
        best.append(sign * ((corner - 0.5) * w).sum() > 0)
    assert report.best_attack == 1 - np.mean(best)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"eps": torch.ones(5)}, "eps must broadcast to the shape of a sample, \\(6,\\): "),
        ({"eps": torch.zeros(6)}, "eps must be at least 0 for each feature, and above 0 for some"),
        ({"bounds": 1.0}, "bounds must be \\(lower, upper\\), each a number or one for each"),
        ({"bounds": (1.0, 0.0)}, "the box \\[1.0, 0.0\\] is empty"),
        ({"bounds": (0.45, 0.5)}, "images must lie in \\[0.45, 0.5\\], not "),
        ({"reject": 1}, "class 1 is that of rejected images, and some labels are it"),
    ],
)
def test_what_is_no_geometry_gets_one_line(options: dict[str, Any], line: str) -> None:
    model, x, y = _line((6,))
    with pytest.raises(UserError, match=line):
        evaluate(model, x, y, attacks=ATTACKS[:1], **{"eps": 0.1} | options)


class Rejecting(Line):
    """It rejects, as class 2, what is near to the line."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.cat([logits, torch.full_like(logits[:, :1], 0.1)], 1)


@pytest.mark.parametrize("attack", [*ATTACKS, "strong/steps=10/queries=100", "targeted:pgd"])
def test_rejections_are_reported_both_ways(attack: str) -> None:
    line, x, y = _line((6,))
    model = Rejecting(line.weights, line.middle).eval()
    lead = ((x - line.middle) * line.weights).sum(1).abs()
    eps = 0.03
    most = eps * line.weights.abs().sum()
    report = evaluate(model, x, y, norm="linf", eps=eps, reject=2, attacks=[attack])
    assert report.rejecting is not None
    natural = lead > 0.1
    assert report.natural == report.rejecting.natural == natural.double().mean()
    for found, needed in ((report, lead - 0.1), (report.rejecting, lead + 0.1)):
        clear = (needed - most).abs() > 0.05 * most
        robust = torch.from_numpy(found.robust_to("best-attack"))
        assert torch.equal(robust[clear], (natural & (needed > most))[clear])
    assert ", may reject" in report.to_markdown()


@pytest.mark.parametrize(("norm", "lead"), [("l2", 0.12), ("linf", 0.15)])
def test_features_that_must_not_change_stay_where_the_others_share_one_eps(
    norm: str, lead: float
) -> None:
    # Both features together lose the lead within eps, the first alone does not.
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    model.bias.data = torch.tensor([-1.0, 0.0])
    x = torch.tensor([[0.5, 0.5 + lead], [0.5 + lead, 0.5]])
    y = torch.zeros(2, dtype=torch.int64)
    assert evaluate(model, x, y, norm=norm, eps=[0.1, 0.0], suite="strong").best_attack == 1
    assert evaluate(model, x, y, norm=norm, eps=0.1, suite="strong").best_attack == 0
