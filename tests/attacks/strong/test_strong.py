"""Strong against the exact robust error, and against what hides its gradients."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import APGD, Problem, ThreatModel
from attacks.objectives import decided
from attacks.strong import Strong
from attacks.strong.search import Search
from attacks.threat import Norm
from attacks.wrappers.targeted import Targeted
from benchmark import evaluate
from benchmark.data.sets import load_dataset
from defenses import AdversarialTraining, Recipe, Vanilla, initialise, train
from defenses.verification import decide
from tests.attacks.linear import Linear, mid_grey

RECIPES: dict[str, Recipe] = {
    "plain": Vanilla(arch="mlp", widen=0.2, epochs=60),
    "adversarial": AdversarialTraining(
        arch="mlp", widen=0.2, epochs=100, optimizer="adam", learning_rate=1e-3, weight_decay=0.0,
        schedule="constant",
    ),
}  # fmt: skip
CASES = [("plain", 0.07), ("plain", 0.09), ("adversarial", 0.12), ("adversarial", 0.15)]


@cache
def _trained(name: str) -> nn.Module:
    """A ReLU network of two hidden layers of 26 units, on digits."""
    digits = load_dataset("digits", None)
    model = initialise(RECIPES[name], digits.shape, digits.classes, seed=0)
    threat = ThreatModel("linf", 0.1)
    train(RECIPES[name], model, digits.train.x, digits.train.y, threat=threat, seed=0)
    return model.eval().requires_grad_(False)


def _correct(model: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    test = load_dataset("digits", None).test
    x, y = test.x[:count].to(next(model.parameters())), test.y[:count]
    right = model(x).argmax(1) == y
    return x[right], y[right]


def _left(attack: Strong | Targeted, problem: Problem) -> Tensor:
    """Where an attack does not break the model: bool (n,)."""
    points = problem.threat.enforce(attack(problem), problem.x)
    return problem.model(points).argmax(1) == problem.y


def _agrees(name: str, eps: float, count: int, limit_s: float) -> None:
    model, threat = _trained(name), ThreatModel("linf", eps)
    x, y = _correct(model, count)
    truth = [result.status for result in decide(model, x, y, threat, limit_s)]
    left = _left(Strong(), Problem(model, x, y, threat))
    assert "undecided" not in truth
    robust = torch.tensor([status == "robust" for status in truth])
    assert left[robust].all()
    assert int((left & ~robust).sum()) <= 1
    assert int((~robust).sum()) > count / 10


@pytest.mark.parametrize(
    ("name", "eps"), [pytest.param(*CASES[0], marks=pytest.mark.slow), CASES[2]]
)
def test_misses_the_exact_robust_error_by_at_most_one_sample(name: str, eps: float) -> None:
    _agrees(name, eps, count=100, limit_s=60)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "eps"), CASES)
def test_misses_it_by_at_most_one_of_all_test_images(name: str, eps: float) -> None:
    _agrees(name, eps, count=355, limit_s=120)


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", 0.1), pytest.param("l2", 0.6, marks=pytest.mark.slow)]
)
def test_is_below_targeted_apgd_with_fewer_passes(norm: str, eps: float) -> None:
    model = _trained("adversarial")
    x, y = _correct(model, 355)
    spent = {}
    left = {}
    for attack in (Strong(), Targeted(APGD(), classes=9, objective="dlr")):
        calls = torch.zeros(())
        meter = lambda rows, _, calls=calls: calls.add_(len(rows))  # noqa: E731
        problem = Problem(model, x, y, ThreatModel(norm, eps), meter=meter)
        name = type(attack).__name__
        left[name], spent[name] = int(_left(attack, problem).sum()), float(calls)
    assert left["Strong"] <= left["Targeted"]
    assert spent["Strong"] < spent["Targeted"]


class Decisions(nn.Module):
    """One-hot decisions in place of logits: no score says where to go, and no gradient, which is
    zero or, `cut`, not there at all."""

    def __init__(self, network: nn.Module, cut: bool) -> None:
        super().__init__()
        self.network, self.cut = network, cut

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x.detach() if self.cut else x)
        return 0 * logits + nn.functional.one_hot(logits.argmax(1), logits.shape[1])


@pytest.mark.parametrize("cut", [pytest.param(False, marks=pytest.mark.slow), True])
def test_asks_attacks_without_gradients_where_gradients_say_nothing(cut: bool) -> None:
    model = _trained("plain")
    x, y = _correct(model, 30)
    threat = ThreatModel("l2", 0.6)
    bare = _left(Strong(), Problem(model, x, y, threat)).sum()
    hidden = Problem(Decisions(model, cut), x, y, threat)
    seeing = _left(Strong(), hidden).sum()
    assert seeing <= bare + 4


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_decisions_are_followed_where_logits_show_nothing(norm: Norm) -> None:
    """Sigmoids that are 0 or 1 everywhere hide a linear model, whose distances are exact."""
    model, x = Linear((16,), 2), mid_grey((16,), 30)
    y = model(x).argmax(1)

    def flat(points: Tensor) -> Tensor:
        logits = model(points)
        return torch.sigmoid(1e6 * (logits - logits.mean(1, keepdim=True)))

    distance = model.optimum(x, y, norm)
    threat = ThreatModel(norm, 1.02 * float(distance.median()))
    search = Search(Problem(flat, x, y, threat))
    assert search.approach(torch.ones_like(search.broken), 100).all()
    assert torch.equal(search.broken, distance <= float(distance.median()))
    found = threat.distance(search.closest, x)
    assert (found / distance).median() < 1.05


def test_what_only_ties_is_kept_where_nothing_does_more() -> None:
    """Whole numbers as logits: where the label shares the lead, the first class is the answer."""
    model, x = Linear((16,), 2), mid_grey((16,), 40)
    y = torch.ones(40, dtype=torch.int64)

    def rounded(points: Tensor) -> Tensor:
        logits = model(points)
        lead = logits[:, 1] - logits[:, 0]
        return torch.stack([torch.zeros_like(lead), (50 * lead).round().clamp_min(0)], 1)

    correct = rounded(x).argmax(1) == 1
    problem = Problem(rounded, x[correct], y[correct], ThreatModel("linf", 1.0))
    points = Strong(queries=50)(problem)
    assert len(points)
    assert (rounded(points).argmax(1) == 0).all()


def test_a_sample_that_is_misclassified_clean_costs_one_pass() -> None:
    model = _trained("plain")
    x, y = _correct(model, 20)
    y = torch.where(torch.arange(len(y)) % 2 == 0, y, (y + 1) % 10)
    calls = torch.zeros(len(y))
    meter = lambda rows, _: calls.index_add_(0, rows, torch.ones(len(rows)))  # noqa: E731
    Strong(queries=5)(Problem(model, x, y, ThreatModel("linf", 1e-3), meter=meter))
    assert (calls[1::2] == 1).all()
    assert (calls[::2] > 30).all()


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model = copy.deepcopy(_trained("plain")).double()
    x, y = _correct(model, 40)
    problem = Problem(model, x, y, ThreatModel("linf", 0.08))
    whole = Strong(queries=50)(problem)
    part = torch.arange(len(x) - 1, 0, -3)
    assert torch.allclose(Strong(queries=50)(problem.select(part)), whole[part], atol=1e-12)


def test_a_model_of_another_library_is_asked() -> None:
    """Its scores come back in another shape than the images, so that no gradient can be had."""
    weight = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)).numpy()
    model = lambda x: torch.from_numpy(x.detach().flatten(1).numpy() @ weight)  # noqa: E731
    x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y, stages = model(x).argmax(1), []
    problem = Problem(
        model, x, y, ThreatModel("l2", 1.0), tell=lambda rows, stage: stages.append(stage)
    )
    points = Strong(queries=400)(problem)
    assert decided(model(points), y).any()
    assert set(stages) == {"queries"}


def test_what_is_misclassified_as_it_is_is_left_alone() -> None:
    model = lambda x: torch.stack([x.view(len(x), -1).sum(1), -x.view(len(x), -1).sum(1)], 1)  # noqa: E731
    x = torch.rand(4, 3)
    points = Strong()(Problem(model, x, torch.ones(4).long(), ThreatModel("l2", 0.1)))
    assert torch.equal(points, x)


class _Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        raise RuntimeError("no backward here")


def test_a_backward_pass_that_raises_leaves_the_queries() -> None:
    weight = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    model = lambda x: _Raises.apply(x).flatten(1) @ weight  # noqa: E731
    x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    problem = Problem(model, x, model(x).argmax(1), ThreatModel("l2", 1.0))
    assert decided(model(Strong(queries=400)(problem)), problem.y).any()


@pytest.mark.parametrize("block", [1, 2, 64])
def test_a_block_of_any_size_is_measured(block: int) -> None:
    """Restarts toward two classes run a sample twice at once, which the meter counts twice."""
    x = torch.full((3, 1), 0.5)
    lead = lambda x: torch.cat([0 * x, (x - 0.62).relu() + x - 0.621], 1)  # noqa: E731
    report = evaluate(
        Called(lead), x, torch.zeros(3).long(), norm="linf", eps=0.12, suite="strong", block=block
    )
    assert report.failed == []
    assert report.best_attack == 1.0
    assert int(report.records["forwards"].max()) > 100


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
