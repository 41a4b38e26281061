"""What attacks find is pulled toward its image, and strong says which of its stages found it."""

import pytest
import torch
from torch import Tensor, nn

from benchmark import Report, evaluate


def _attacked(*attacks: str) -> tuple[nn.Module, Tensor, Report]:
    """A linear model and images, attacked within a budget that breaks all but a few."""
    torch.manual_seed(0)
    model = nn.Linear(8, 2).requires_grad_(False)
    x = 0.5 + 0.2 * (torch.rand(40, 8) - 0.5)
    weight, bias = model.weight[0] - model.weight[1], model.bias[0] - model.bias[1]
    distance = (x @ weight + bias).abs() / weight.norm()
    eps = 1.2 * float(distance.median())
    y = model(x).argmax(1)
    return model, x, evaluate(model, x, y, norm="l2", eps=eps, attacks=list(attacks))


@pytest.mark.parametrize("attack", ["pgd/steps=20", "apgd/steps=20", "strong", "square/steps=200"])
def test_what_is_found_lies_on_the_boundary(attack: str) -> None:
    model, x, report = _attacked(attack)
    found = report.adversarial[attack]
    assert len(found.index) > 10
    clean, points = x[found.index], torch.from_numpy(found.points)
    assert (model(points).argmax(1) != model(clean).argmax(1)).all()
    # A hundredth nearer to the image, it is no longer misclassified.
    inside = clean + 0.99 * (points - clean)
    assert (model(inside).argmax(1) == model(clean).argmax(1)).all()


def test_strong_says_which_stage_broke_a_sample() -> None:
    _, _, report = _attacked("strong", "pgd")
    frame = report.records.query("attack == 'strong'")
    assert frame["broken"].any()
    assert not frame["broken"].all()
    assert set(frame["stage"][frame["broken"]]) <= {"survey", "ascents"}
    assert (frame["stage"][~frame["broken"]] == "").all()
    assert (report.records.query("attack == 'pgd'")["stage"] == "").all()
