"""Gaussian naive Bayes, Markov random fields and other belief functions on trained subtasks."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses import GNB, MRF, NBR, Belief, BeliefEnsemble, Fractal, initialise, train
from defenses.fractal.aggregations import Aggregation, QuadraticEnsemble
from defenses.fractal.output_ensemble import OutputEnsemble
from defenses.fractal.tuning import RELIABILITIES, SLOPES
from tests.defenses.fractal.certified import assert_not_contradicted

Digits = tuple[Tensor, Tensor, Tensor, Tensor]

SHAPE, OFFSET = (1, 8, 8), 0.4


@dataclass
class Case:
    """A trained ensemble, and the data that it is for."""

    source: BeliefEnsemble
    x: Tensor
    y: Tensor
    test: Tensor

    def derived(self, recipe: Aggregation) -> Any:
        model = initialise(
            recipe, SHAPE, self.source.classes, 0, {"source": copy.deepcopy(self.source)}
        )
        train(recipe, model, self.x, self.y, threat=None, seed=0)
        return model.requires_grad_(False)


@pytest.fixture(scope="module", params=["two", "three"])
def case(request: pytest.FixtureRequest, digits: Digits) -> Case:
    """Two labels and a fractal structure; or three, their pairs, and a frame that has two of them
    in one group."""
    labels = [3, 8] if request.param == "two" else [3, 5, 8]
    options: dict[str, Any] = {"epochs": 8, "batch": 64, "learning_rate": 5e-3, "offset": OFFSET}
    recipe: NBR = Fractal(**options, levels="2+2+2")
    if request.param == "three":
        recipe = NBR(**options, frames="0-1,0-2,1-2,0+1-2")
    x, y, test, answers = digits
    known, tested = (torch.isin(of, torch.tensor(labels)) for of in (y, answers))
    x, y = x[known], torch.tensor(labels).eq(y[known][:, None]).int().argmax(1)
    model = initialise(recipe, SHAPE, len(labels), 0)
    train(recipe, model, x, y, threat=None, seed=0)
    assert isinstance(model, BeliefEnsemble)
    return Case(model.requires_grad_(False), x, y, test[tested])


RECIPES = [
    GNB(source="a"),
    MRF(source="a", offset=OFFSET),
    Belief(source="a", slope=20.0, reliability=0.7, rule="minimum"),
    Belief(source="a", offset=OFFSET, rule="sum"),
]
IDS = ["gnb", "mrf", "belief", "belief chosen"]
QUADRATIC = RECIPES[:2]


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_the_subtasks_are_the_very_same(case: Case, recipe: Aggregation) -> None:
    before = copy.deepcopy(case.source.state_dict())
    model = case.derived(recipe)
    own = model.source if isinstance(model, QuadraticEnsemble) else model
    for name, value in case.source.subtasks.state_dict().items():
        assert torch.equal(own.subtasks.state_dict()[name], value)
    assert torch.equal(model.outputs(case.test), case.source.outputs(case.test))
    assert torch.equal(own.fractions, case.source.fractions)
    after = case.source.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_gaussian_naive_bayes_is_scikit_learns(case: Case) -> None:
    from sklearn.naive_bayes import GaussianNB

    model = case.derived(GNB(source="a")).double()
    features = model.features(case.source.outputs_of(case.x)).double()
    assert features.var(0).min() > 1e-3
    other = GaussianNB(var_smoothing=0).fit(features.numpy(), case.y.numpy())
    tested = model.features(case.source.outputs(case.test)).double()
    expected = torch.from_numpy(other.predict_joint_log_proba(tested.numpy()))
    # The coefficients were kept in float32.
    outputs = case.source.outputs(case.test).double()
    torch.testing.assert_close(model.aggregate(outputs), expected, rtol=1e-4, atol=1e-4)


def test_a_feature_without_variance_leaves_logits_finite(case: Case) -> None:
    source = copy.deepcopy(case.source)
    source.slope.fill_(1e4)
    logits = Case(source, case.x, case.y, case.test).derived(GNB(source="a"))(case.test)
    assert logits.isfinite().all()


def test_gaussian_naive_bayes_needs_each_label(case: Case) -> None:
    few = Case(case.source, case.x[case.y == 0], case.y[case.y == 0], case.test)
    with pytest.raises(ValueError, match="each label needs a training sample"):
        few.derived(GNB(source="a"))


def test_a_markov_random_field_is_linear_in_its_features(case: Case) -> None:
    model = case.derived(MRF(source="a", offset=OFFSET)).double()

    def logits(features: Tensor) -> Tensor:
        return model.aggregate(features.logit() / model.slope)  # type: ignore[no-any-return]

    generator = torch.Generator().manual_seed(0)
    one, other = 0.01 + 0.98 * torch.rand(
        2, 50, len(model.slope), generator=generator, dtype=torch.float64
    )
    torch.testing.assert_close(
        logits(0.3 * one + 0.7 * other), 0.3 * logits(one) + 0.7 * logits(other)
    )
    # A subtask says nothing of labels that are not in its frame.
    assert (model.linear[case.source.sides == 0] == 0).all()
    assert (model.linear[case.source.sides != 0] != 0).all()


def test_no_other_weights_of_a_markov_random_field_do_better_in_the_worst_case(case: Case) -> None:
    model = case.derived(MRF(source="a", offset=OFFSET)).double()
    outputs = case.source.outputs_of(case.x).double()
    offset = outputs.new_full((len(outputs),), OFFSET)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model.worst_case(outputs, case.y, offset), case.y)

    best, linear, generator = loss(), model.linear.clone(), torch.Generator().manual_seed(0)
    for size in (0.1, 0.5, 2.0):
        for _ in range(10):
            change = torch.randn(linear.shape, generator=generator, dtype=torch.float64)
            model.linear.copy_(linear + size * change * (case.source.sides != 0))
            assert loss() > best - 1e-4


@pytest.mark.parametrize("recipe", QUADRATIC, ids=IDS[:2])
def test_the_worst_case_is_exact(case: Case, recipe: Aggregation) -> None:
    """By trying shifts of every subtask, which the leads are sums over."""
    model = case.derived(recipe).double()
    outputs, offset = case.source.outputs(case.test)[:20].double(), 0.3
    tries = torch.linspace(-offset, offset, 4001, dtype=torch.float64)
    x = model.features(outputs[..., None].add(tries).transpose(1, 2)).transpose(1, 2)
    for label in range(model.classes):
        worst = model.worst_case(
            outputs, torch.full((20,), label), torch.full((20,), offset).double()
        )
        assert (worst[:, label] == 0).all()
        for other in range(model.classes):
            square, linear, constant = (
                c[..., other] - c[..., label] for c in (model.square, model.linear, model.constant)
            )
            each = (square[:, None] * x + linear[:, None]) * x
            expected = constant + each.amax(2).sum(1)
            torch.testing.assert_close(worst[:, other], expected, rtol=0, atol=1e-3)
            assert (worst[:, other] >= expected - 1e-9).all()


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_within_the_radius_no_shift_of_outputs_changes_the_label(
    case: Case, recipe: Aggregation
) -> None:
    model = case.derived(recipe).double()
    outputs = case.source.outputs(case.test).double()
    radius, label = model.threshold(outputs), model.aggregate(outputs).argmax(1)
    assert (radius > 0.05).any()
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        signs = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).sign()
        moved = outputs + 0.999 * radius[:, None] * signs
        assert torch.equal(model.aggregate(moved).argmax(1)[radius > 0], label[radius > 0])


@pytest.mark.parametrize(
    "case", ["two", pytest.param("three", marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.parametrize(
    "recipe", [pytest.param(RECIPES[0], marks=pytest.mark.slow), *RECIPES[1:3]], ids=IDS[:3]
)
def test_no_strong_attack_contradicts_the_certificate(case: Case, recipe: Aggregation) -> None:
    model: OutputEnsemble = case.derived(recipe)
    x, eps = case.test[:30], 0.5
    assert_not_contradicted(model, x, eps)


@pytest.mark.parametrize("recipe", RECIPES[:3], ids=IDS[:3])
def test_a_surrogate_differs_in_slopes_alone(case: Case, recipe: Aggregation) -> None:
    model = case.derived(recipe)
    model.slope[0] = 3.0
    model.slope[1:] = 20.0
    easier, before = model.surrogate(), model.slope.clone()
    assert torch.equal(easier.slope, before.clamp(max=5.0))
    assert torch.equal(model.slope, before)
    rest = model.state_dict() | {"slope": easier.slope}
    assert all(torch.equal(rest[name], value) for name, value in easier.state_dict().items())
    assert easier(case.test).shape == model(case.test).shape


def test_what_is_chosen_keeps_the_most_training_images(case: Case) -> None:
    model = case.derived(Belief(source="a", offset=OFFSET))
    outputs = case.source.outputs_of(case.x)
    best = model.share_kept(outputs, case.y, OFFSET)
    assert best > 0.3
    for slope in SLOPES:
        for reliability in RELIABILITIES:
            other = case.derived(Belief(source="a", slope=slope, reliability=reliability))
            assert other.rule == "minimum"
            assert other.share_kept(outputs, case.y, OFFSET) <= best
    half = case.derived(Belief(source="a", slope=7.0, offset=OFFSET))
    assert (half.slope == 7).all()
    assert float(half.reliability[0]) in torch.tensor(RELIABILITIES).tolist()


def test_what_is_given_is_taken(case: Case) -> None:
    model = case.derived(Belief(source="a", slope=7.0, reliability=0.25, rule="sum"))
    assert (model.slope == 7).all()
    assert (model.reliability == 0.25).all()
    assert model.rule == "sum"
    same = case.derived(Belief(source="a", slope=5.0, reliability=0.9, rule=case.source.rule))
    assert torch.equal(same(case.test), case.source(case.test))


def test_the_share_kept_is_of_images_that_are_right_and_certified(case: Case) -> None:
    outputs = case.source.outputs_of(case.x)
    right = case.source.aggregate(outputs).argmax(1) == case.y
    kept = right & (case.source.threshold(outputs) >= OFFSET)
    share = case.source.share_kept(outputs, case.y, OFFSET)
    assert share == pytest.approx(kept.double().mean().item())
    assert 0.2 < share < 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"slope": 0.0}, "slope must be above 0"),
        ({"reliability": 1.5}, r"reliability must be in \(0, 1\]"),
        ({"rule": "mean"}, "unknown rule 'mean': use one of minimum, sum"),
        ({"slope": 5.0}, "give slope and reliability, or an offset"),
        ({"offset": -1.0}, "offset must be at least 0"),
        ({"offset": 1.0, "epochs": 3}, "leave epochs at 0"),
    ],
)
def test_options_that_are_none_get_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Belief(source="a", **options)


@pytest.mark.parametrize("recipe", RECIPES[:3], ids=IDS[:3])
def test_only_subtasks_can_be_aggregated(recipe: Aggregation) -> None:
    with pytest.raises(ValueError, match="must name an nbr or a fractal, not Flatten"):
        recipe.derive(SHAPE, 10, source=nn.Flatten())
