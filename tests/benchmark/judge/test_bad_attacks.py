"""An attack is believed nothing, and a crash is never robustness."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, Problem, ThreatModel
from attacks.problem import Family
from attacks.searches.boundary import Boundary
from benchmark import UserError, evaluate
from tests.benchmark.small import Dropping, N, Returning, X, Y, attacked, evaluate_small


def test_an_attack_that_leaves_the_model_in_training_mode_changes_no_verdict() -> None:
    def flip(problem: Problem) -> Tensor:
        problem.model.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            problem.model(problem.x + torch.arange(N)[: len(problem), None] * 50.0)
        return problem.x

    def fail(problem: Problem) -> Tensor:
        flip(problem)
        raise RuntimeError("no")

    model = Dropping().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for first in (flip, fail):
        attacks = [Returning(first), PGD(steps=5)]
        report = evaluate_small(model, attacks=attacks, block=3)
        assert report.per_attack["PGD"] == 0.0
        assert report.per_attack["Returning"] == 1.0 or first is fail
        assert not model.training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_attack_that_raises_is_flagged_and_the_others_count() -> None:
    def fail(problem: Problem) -> Tensor:
        raise ValueError("two\nlines")

    report = evaluate_small(attacks=[Returning(fail), PGD(steps=5)])
    assert report.errors == {"Returning": "ValueError: two lines"}
    assert math.isnan(report.per_attack["Returning"])
    assert (report.per_attack["PGD"], report.best_attack) == (0.0, 0.0)
    assert list(report.flags) == ["attack-error"]
    assert "- Linear: Returning failed: ValueError: two lines" in report.to_markdown()

    alone = attacked(fail)
    assert math.isnan(alone.best_attack)
    assert list(alone.flags) == ["attack-error"]


def test_an_attack_that_raises_in_a_cascade_decides_nothing() -> None:
    def fail(problem: Problem) -> Tensor:
        if 3 in problem.index:
            raise MemoryError
        return problem.x + torch.tensor([0.15, 0, 0, 0])

    attacks = [Returning(fail), Returning(lambda p: p.x)]
    report = evaluate_small(attacks=attacks, mode="cascade", block=2)
    assert report.errors == {"Returning": "MemoryError"}
    assert report.best_attack == 1.0  # over the other attack alone, as the flag says
    assert list(report.flags) == ["attack-error"]


@pytest.mark.parametrize(
    "points",
    [
        lambda p: p.x[:2],
        lambda p: p.x[:, :2],
        lambda p: p.x[None],
        lambda p: None,
        lambda p: p.x.numpy(),
        lambda p: (p.x, p.y),
    ],
)
def test_an_attack_that_returns_no_points_is_an_error(points: Callable[[Problem], Any]) -> None:
    report = attacked(points)
    assert list(report.errors) == ["Returning"]
    assert math.isnan(report.best_attack)


def _moved(*delta: float) -> Callable[[Problem], Tensor]:
    return lambda problem: problem.x + torch.tensor(delta)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    ("delta", "broken"),
    [
        ((5.0, 0.0, 0.0, 0.0), True),  # projected to 0.2 along the first pixel
        ((0.101, 0.5, 0.5, -0.5), False),  # misclassified, but not where it is projected to
        ((-5.0, 0.0, 0.0, 0.0), False),
        ((math.inf, 0.0, 0.0, 0.0), True),
    ],
)
def test_points_outside_the_ball_are_projected_and_flagged(
    norm: str, delta: tuple[float, ...], broken: bool
) -> None:
    if norm == "linf" and not broken and delta[0] > 0:
        delta = (0.0, *delta[1:])  # each pixel is projected by itself
    report = attacked(_moved(*delta), norm=norm)
    assert report.best_attack == (0.0 if broken else 1.0)
    assert list(report.flags) == ["outside-ball"]
    examples = report.adversarial["Returning"]
    assert len(examples.index) == (N if broken else 0)
    points = torch.from_numpy(np.asarray(examples.points))
    if broken:
        distance = ThreatModel("l2" if norm == "l2" else "linf", 0.2).distance(points, X)
        assert bool((distance <= 0.2).all())
        assert bool(((points >= 0) & (points <= 1)).all())


@pytest.mark.parametrize("family", ["fixed-budget", "minimal-norm"])
def test_points_outside_the_box_are_clipped_and_flagged(family: Family) -> None:
    x = torch.full((N, 4), 0.95)
    x[:, 0] = 0.5

    def points(problem: Problem) -> Tensor:
        return problem.x + torch.tensor([0.15, 0.1, 0.0, 0.0])

    report = evaluate_small(x=x, attacks=[Returning(points, family)])
    assert list(report.flags) == ["outside-ball"]
    assert report.best_attack == 0.0
    # Clipped to (0.15, 0.05), and pulled to where the first pixel has moved by 0.1.
    assert float(report.adversarial["Returning"].points.max()) < 1.0
    reach = float(report.records["distance"].max())
    assert reach == pytest.approx(math.hypot(0.15, 0.05) * 2 / 3, abs=1e-3)


@pytest.mark.parametrize(("eps", "best"), [(0.05, 1.0), (0.2, 0.0)])
def test_what_a_minimal_norm_attack_finds_is_pulled_inward(eps: float, best: float) -> None:
    report = evaluate_small(eps=eps, attacks=[Returning(_moved(0.3, 0, 0, 0), "minimal-norm")])
    assert (report.best_attack, report.flags) == (best, {})
    points = report.adversarial["Returning"].points
    assert points[:, 0] == pytest.approx(np.full(N, 0.6), abs=1e-3)
    assert (points[:, 0] > 0.6).all()


@pytest.mark.parametrize("eps", [0.2, 0.3])
def test_rounding_is_no_reason_for_a_flag(eps: float) -> None:
    report = attacked(_moved(eps * (1 + 1e-6), 0, 0, 0), eps=eps)
    assert (report.best_attack, report.flags) == (0.0, {})


@pytest.mark.parametrize("family", ["fixed-budget", "minimal-norm"])
def test_points_that_are_not_numbers_are_flagged_and_break_nothing(family: Family) -> None:
    def points(problem: Problem) -> Tensor:
        found = problem.x + torch.tensor([0.15, 0, 0, 0])
        found[problem.index < 2] = math.nan
        return found

    report = evaluate_small(attacks=[Returning(points, family)])
    assert report.best_attack == 2 / N
    assert list(report.flags) == ["outside-ball"]
    assert not np.isnan(report.adversarial["Returning"].points).any()


def test_an_attack_that_changes_its_problem_changes_no_verdict() -> None:
    def forge(problem: Problem) -> Tensor:
        problem.x.add_(torch.tensor([0.4, 0, 0, 0]))
        problem.y.fill_(1)
        return problem.x

    report = attacked(forge)
    # 0.4 away is not in the ball: projected, it is at 0.2, and pulled, at the boundary.
    assert report.records.query("attack == 'Returning'")["distance"].tolist() == pytest.approx(
        [0.1] * N, abs=1e-3
    )
    assert report.records["label"].tolist() == [0] * 2 * N
    assert list(report.flags) == ["outside-ball"]
    assert torch.equal(X, torch.full((N, 4), 0.5))
    assert torch.equal(Y, torch.zeros(N, dtype=torch.int64))


def test_attacks_that_are_no_list_or_no_attack_are_refused() -> None:
    for attacks, line in (
        ("pgd", "attacks must be a list: ['pgd']"),
        ([PGD], "is not an attack"),
        ([3], "3 is not an attack"),
        ([print], "attack 'builtin_function_or_method' does not say what it is: give it facts"),
        ([{"name": "pgd", "label": "natural"}], "'natural' is a column of the table"),
        (
            [{"name": "pgd", "label": "a"}, {"name": "pgd", "steps": 3, "label": "a"}],
            "two attacks are labelled 'a'",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(line)):
            evaluate_small(attacks=attacks)
    with pytest.raises(UserError, match="runs under l2 only"):
        evaluate_small(norm="linf", attacks=[Boundary()])


def test_what_one_precision_alone_misclassifies_is_not_broken_and_flagged() -> None:
    class OtherwiseInFloat64(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sign = 1.0 if x.dtype is torch.float32 else -1.0
            moved = (x[:, 0] > 0.55).to(x)
            lead = (1 - moved) - sign * moved + 1e-3 * x[:, 0]
            return torch.stack([lead, torch.zeros_like(lead)], 1)

    # An attack that knows: the gradient does not lead there.
    report = evaluate_small(
        OtherwiseInFloat64().eval(), attacks=[Returning(lambda problem: problem.x + 0.1)]
    )
    assert report.best_attack == 1
    assert "rounding" in report.flags


def test_an_attack_cannot_widen_the_threat_that_it_is_judged_by() -> None:
    x = torch.full((6, 4), 0.3, dtype=torch.float64)
    model = nn.Linear(4, 2).double()
    model.weight.data = torch.tensor([[1.0, 0, 0, 0], [0.0, 0, 0, 0]]).double()
    model.bias.data = torch.tensor([0.0, 0.42]).double()

    def widen(problem: Problem) -> Tensor:
        for bound in (problem.threat.lower, problem.threat.upper):
            if isinstance(bound, Tensor):
                bound.fill_(0.9 if bound is problem.threat.upper else 0.0)
        object.__setattr__(problem.threat, "eps", 1.0)
        return problem.x + 0.4

    for given in (
        {"eps": [0.0, 0.6, 0.6, 0.6]},
        {"eps": 0.6, "bounds": (0.0, [0.41, 0.9, 0.9, 0.9])},
        {"eps": 0.05},
    ):
        attacks = [Returning(widen), PGD(steps=3), Returning(widen)]
        report = evaluate(
            model,
            x,
            [1] * 6,
            norm="linf",
            attacks=attacks,
            block=2,
            **given,  # type: ignore[arg-type]
        )
        assert report.natural == report.best_attack == 1.0, given


def test_an_attack_cannot_reach_the_labels_of_the_user() -> None:
    y = torch.zeros(N, dtype=torch.int64)

    def relabel(problem: Problem) -> Tensor:
        y.fill_(1)
        return problem.x

    model = nn.Linear(X.shape[1], 2)
    model.weight.data.zero_()
    model.bias.data = torch.tensor([1.0, 0.0])
    report = evaluate(model, X, y, eps=0.1, attacks=[Returning(relabel), PGD(steps=2)], block=2)
    assert report.natural == report.best_attack == 1.0


def test_global_settings_and_hooks_are_put_back() -> None:
    def meddle(problem: Problem) -> Tensor:
        torch.set_default_device("meta")
        torch.autograd.set_detect_anomaly(True)
        nn.modules.module.register_module_forward_hook(lambda module, x, z: -z)
        torch.set_default_device("cpu")
        return problem.x

    attacked(meddle)
    assert torch.get_default_device() == torch.device("cpu")
    assert not torch.is_anomaly_enabled()
    assert not nn.modules.module._global_forward_hooks
