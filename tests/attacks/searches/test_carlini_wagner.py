"""Carlini-Wagner: where it begins, what restarts and confidence do, and whom it works on."""

import dataclasses

import pytest
import torch
from torch import Tensor

from attacks import CarliniWagner, Problem, ThreatModel
from attacks.objectives import decided, margin
from attacks.views import View
from tests.attacks.linear import Linear, mid_grey

NORMS = ["l2", "linf"]
QUICK = CarliniWagner(steps=60, searches=3)


def _problem(shape: tuple[int, ...], classes: int, n: int, threat: ThreatModel) -> Problem:
    model = Linear(shape, classes)
    x = mid_grey(shape, n)
    return Problem(model, x, model(x).argmax(1), threat)


def _median(problem: Problem) -> ThreatModel:
    """The threat with the median of the distances to the boundary as eps."""
    norm = problem.threat.norm
    return ThreatModel(norm, float(problem.model.optimum(problem.x, problem.y, norm).median()))


def _plateau(x: Tensor) -> Tensor:
    """No gradient up to 0.7 in the first pixel; beyond, class 1 gains, and leads from 0.8 on."""
    beyond = x[:, 0] - 0.7
    # A step that smoothing does not know.
    lead = beyond * torch.heaviside(beyond.detach(), beyond.new_zeros(())) - 0.1
    return torch.stack([torch.zeros_like(lead), lead], 1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("minimize", [True, False])
def test_a_start_beyond_a_plateau_is_where_the_search_begins(norm: str, minimize: bool) -> None:
    x = torch.full((3, 2), 0.5, dtype=torch.float64)
    attack = CarliniWagner(steps=100, searches=4, minimize=minimize)
    plain = Problem(_plateau, x, torch.zeros(3).long(), ThreatModel(norm, 0.31))
    assert torch.equal(attack(plain), x)
    for first in (0.75, 0.95):
        start = torch.tensor([first, 0.5]).double().expand(3, 2)
        points = attack(dataclasses.replace(plain, start=start))
        distance = plain.threat.distance(points, x)
        assert decided(_plateau(points), plain.y).all()
        assert (distance <= (0.303 if minimize else 0.31)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_within_the_budget_is_the_answer(norm: str) -> None:
    x = torch.full((3, 2), 0.5, dtype=torch.float64)
    start = torch.tensor([0.9, 0.5]).double().expand(3, 2)
    problem = Problem(_plateau, x, torch.zeros(3).long(), ThreatModel(norm, 0.5), start=start)
    assert torch.equal(QUICK(problem), start)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("minimize", [True, False])
def test_restarts_find_what_the_clean_image_does_not_point_to(norm: str, minimize: bool) -> None:
    """The clean image is on a flat top: only a random point has a direction."""
    model = lambda x: torch.stack(  # noqa: E731
        [torch.zeros(len(x)).to(x), ((x - 0.5).abs() - 0.01).clamp_min(0).amax(1) - 0.1], 1
    )
    x = torch.full((20, 3), 0.5, dtype=torch.float64)
    problem = Problem(model, x, torch.zeros(20).long(), ThreatModel(norm, 0.2))
    one = dataclasses.replace(QUICK, minimize=minimize)
    assert torch.equal(one(problem), x)
    points = dataclasses.replace(one, restarts=3)(problem)
    assert decided(model(points), problem.y).all()
    assert problem.threat.distance(points, x).max() <= 0.2


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("minimize", [True, False])
def test_restarts_never_hurt(norm: str, minimize: bool) -> None:
    problem = _problem((3, 5, 4), 4, 16, ThreatModel(norm, 1.0))
    problem = dataclasses.replace(problem, threat=_median(problem))
    one = dataclasses.replace(QUICK, steps=20, searches=2, minimize=minimize)
    first, best = one(problem), dataclasses.replace(one, restarts=3)(problem)
    length = [problem.threat.distance(points, problem.x) for points in (first, best)]
    broken = [decided(problem.model(points), problem.y) for points in (first, best)]
    assert (broken[1] | ~broken[0]).all()
    assert (length[1] <= length[0])[broken[0]].all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("confidence", [0.0, 0.05, 0.5])
def test_confidence_is_reached(norm: str, confidence: float) -> None:
    """And not by much more than the closed form: one unit of lead costs the same everywhere."""
    problem = _problem((1, 8, 8), 2, 10, ThreatModel(norm, 1.0))
    attack = CarliniWagner(steps=300, searches=4, confidence=confidence, minimize=True)
    points = attack(problem)
    z, y = problem.model(problem.x), problem.y
    optimum = problem.model.optimum(problem.x, y, norm) * (1 - confidence / margin(z, y))
    assert (margin(problem.model(points), y) >= confidence).all()
    assert (problem.threat.distance(points, problem.x) / optimum).max() <= 1.05


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(50,), (3, 5, 4), (1, 3, 7)])
@pytest.mark.parametrize("classes", [2, 5])
def test_verdicts_agree_with_the_closed_form(
    norm: str, shape: tuple[int, ...], classes: int
) -> None:
    problem = _problem(shape, classes, 20, ThreatModel(norm, 1.0))
    problem = dataclasses.replace(problem, threat=_median(problem))
    optimum = problem.model.optimum(problem.x, problem.y, norm) / problem.threat.eps
    points = CarliniWagner(steps=200, searches=3)(problem)
    inside = problem.threat.distance(points, problem.x) <= problem.threat.eps
    broken = decided(problem.model(points), problem.y) & inside
    assert broken[optimum <= 0.98].all()
    assert not broken[optimum > 1].any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("minimize", [True, False])
def test_no_sample_influences_another(norm: str, minimize: bool) -> None:
    """Bit by bit, on a model whose own arithmetic does not depend on the batch."""
    weight = torch.linspace(-1, 1, 6, dtype=torch.float64)

    def model(x: Tensor) -> Tensor:
        lead = sum(w * (x[:, i] - 0.45) ** (1 + i % 2) for i, w in enumerate(weight))
        return torch.stack([-lead, lead, lead.sin()], 1)

    x = mid_grey((6,), 9)
    problem = Problem(model, x, model(x).argmax(1), ThreatModel(norm, 0.05))
    attack = CarliniWagner(steps=40, searches=3, restarts=2, minimize=minimize)
    whole = attack(problem)
    for part in (torch.arange(9).flip(0), torch.tensor([4]), torch.tensor([7, 2, 5])):
        assert torch.equal(attack(problem.select(part)), whole[part])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("minimize", [True, False])
def test_decided_samples_cost_one_pass(norm: str, minimize: bool) -> None:
    problem = _problem((50,), 2, 12, ThreatModel(norm, 1e-9))
    y = problem.y.clone()
    y[:5] = 1 - y[:5]
    calls = torch.zeros(12)
    meter = lambda rows, _: calls.index_add_(0, rows, torch.ones(len(rows)))  # noqa: E731
    attack = dataclasses.replace(QUICK, minimize=minimize, restarts=2)
    problem = dataclasses.replace(problem, y=y, meter=meter)
    points = attack(problem)
    assert torch.equal(points[:5], problem.x[:5])
    assert (calls[:5] == 1).all()
    assert (calls[5:] > 1).all()
    assert (calls <= attack.facts.passes).all()
    calls.zero_()
    misclassified = dataclasses.replace(problem, y=1 - problem.model(problem.x).argmax(1))
    assert torch.equal(attack(misclassified), problem.x)
    assert (calls == 1).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_view_of_two_logits_aims_at_its_class(norm: str) -> None:
    """Each push is on one class; nothing is measured for the others: one backward per slope."""
    problem = _problem((1, 8, 8), 10, 10, ThreatModel(norm, 1.0))
    model, y = problem.model, problem.y
    target = (y + 3) % 10
    lead = lambda z, y, t: (z.gather(1, t) - z.gather(1, y[:, None])).squeeze(1)  # noqa: E731
    view = View(y, target[:, None], lead, lambda z, y, t: lead(z, y, t).clamp_max(0))
    points = CarliniWagner(steps=300, searches=3, minimize=True)(problem.seen(view))
    assert decided(model(points), y).all()
    nearest = model.optimum(problem.x, y, norm)
    difference = model.weight[y] - model.weight[target]
    dual = difference.norm(p=2 if norm == "l2" else 1, dim=1)
    aimed = -lead(model(problem.x), y, target[:, None]) / dual
    distance = problem.threat.distance(points, problem.x)
    assert (distance >= nearest).all()
    assert (distance <= 1.01 * aimed).all()


@pytest.mark.parametrize(
    "option", [{"steps": 0}, {"restarts": 0}, {"searches": 0}, {"confidence": -1.0}]
)
def test_hyperparameters_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="cw: "):
        CarliniWagner(**option)  # type: ignore[arg-type]
