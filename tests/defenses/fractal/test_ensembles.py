"""Ensembles of subtasks, and their certificates, against hand-made ones of linear functions."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from attacks import Problem, ThreatModel
from attacks.strong import Strong
from defenses import NBR, Fractal, Recipe, initialise, train
from defenses.fractal.belief import Frame, Rule
from defenses.fractal.division import HARD, IN, OUT
from defenses.fractal.ensemble import BeliefEnsemble

Digits = tuple[Tensor, Tensor, Tensor, Tensor]


class Units(nn.Module):
    """Outputs along unit vectors (k, d)."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        directions = torch.linalg.qr(torch.randn(size, size))[0][:, :count].T
        self.weight = nn.Parameter(directions, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x[0] @ self.weight.T).T[..., None]


PAIRS = [Frame((a,), (b,)) for a in range(4) for b in range(a + 1, 4)]
DEEP = [Frame((0,), (1,), (2, 3, 2)), Frame((1,), (2,), (0, 2, 2)), Frame((0,), (2,))]
MIXED = [Frame((0, 2), (1,)), Frame((1, 2), (0,)), Frame((0,), (2,), (2, 2))]


def ensemble(
    frames: Sequence[Frame], classes: int, rule: Rule = "minimum", slope: float = 2.0
) -> BeliefEnsemble:
    """With orthogonal directions and random fractions, in float64."""
    count = sum(sum(frame.levels) for frame in frames)
    model = BeliefEnsemble(frames, classes, Units(count, count), slope, 0.8, rule).double().eval()
    model.fractions.copy_(0.2 + 0.8 * torch.rand(count, 2))
    return model.requires_grad_(False)


def predicted(model: BeliefEnsemble, outputs: Tensor) -> Tensor:
    return model.aggregate(outputs).argmax(-1)


ENSEMBLES = [(PAIRS, 4, "minimum"), (PAIRS, 4, "sum"), (DEEP, 3, "minimum"), (DEEP, 3, "sum")]


@pytest.mark.parametrize(("frames", "classes", "rule"), ENSEMBLES)
def test_the_threshold_is_exact_where_no_frame_has_two_labels_in_a_group(
    frames: list[Frame], classes: int, rule: Rule
) -> None:
    model = ensemble(frames, classes, rule)
    outputs = torch.randn(300, len(model.fractions), dtype=torch.float64)
    label, threshold = predicted(model, outputs), model.threshold(outputs)
    assert (threshold > 0.01).double().mean() > 0.5

    # Below it no move changes the label: at random, and in the corners.
    for number in range(200):
        moves = torch.rand_like(outputs) * 2 - 1
        moves = moves.sign() if number % 2 else moves
        moved = outputs + (1 - 1e-6) * threshold[:, None] * moves
        assert torch.equal(predicted(model, moved), label)

    # Beyond it one does: against the label, and for another.
    changed = torch.zeros(300, dtype=torch.bool)
    for other in range(classes):
        toward = torch.full_like(label, other)
        direction = torch.where(model.signs(label) != 0, -model.signs(label), model.signs(toward))
        moved = outputs + (1 + 1e-6) * (threshold[:, None] + 1e-6) * direction.T
        changed |= predicted(model, moved) != label
    assert changed.all()


@pytest.mark.parametrize("rule", ["minimum", "sum"])
def test_the_threshold_is_conservative_where_a_frame_has_both_in_a_group(rule: Rule) -> None:
    model = ensemble(MIXED, 3, rule)
    outputs = torch.randn(300, len(model.fractions), dtype=torch.float64)
    label, threshold = predicted(model, outputs), model.threshold(outputs)
    assert (threshold > 0.01).double().mean() > 0.2
    for number in range(400):
        moves = torch.rand_like(outputs) * 2 - 1
        moves = moves.sign() if number % 2 else moves
        moved = outputs + (1 - 1e-6) * threshold[:, None] * moves
        assert torch.equal(predicted(model, moved), label)


def test_the_radius_of_one_linear_subtask_is_the_distance_to_its_boundary() -> None:
    model = ensemble([Frame((0,), (1,))], 2)
    model.subtasks = units = Units(1, 2).double()
    x = torch.randn(50, 2, dtype=torch.float64)
    distance = x @ units.weight[0]
    torch.testing.assert_close(model.certified_radius(x), distance.abs(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("frames", "classes", "rule"), [*ENSEMBLES, (MIXED, 3, "minimum")])
def test_withstanding_ends_once_and_at_the_threshold(
    frames: list[Frame], classes: int, rule: Rule
) -> None:
    model = ensemble(frames, classes, rule)
    outputs = torch.randn(100, len(model.fractions), dtype=torch.float64)
    label, threshold = predicted(model, outputs), model.threshold(outputs)
    before = torch.ones(100, dtype=torch.bool)
    for offset in torch.linspace(0.01, 3, 100, dtype=torch.float64):
        holds = model.withstands(outputs, label, offset.expand(100))
        assert not (holds & ~before).any()
        assert torch.equal(holds, offset <= threshold)
        before = holds


def test_a_certificate_is_each_images_own() -> None:
    model = ensemble(DEEP, 3)
    x = torch.randn(20, len(model.fractions), dtype=torch.float64)
    alone = torch.cat([model.certified_radius(image[None]) for image in x])
    torch.testing.assert_close(model.certified_radius(x), alone)


def test_ties_and_undefined_outputs_are_certified_by_nothing() -> None:
    model = ensemble(PAIRS, 4)
    outputs = torch.zeros(2, 6, dtype=torch.float64)
    outputs[1] = torch.nan
    assert model.threshold(outputs).tolist() == [0, 0]


def test_each_label_sums_its_own_side_of_its_frames() -> None:
    """Frames 0-1 and 0-2 of saturated subtasks, b = 0.8: belief 0.8 f / (0.6 + 0.4 f)."""
    model = ensemble([Frame((0,), (1,)), Frame((0,), (2,))], 3, "sum")
    fractions = torch.tensor([[0.5, 1.0], [1.0, 0.25]], dtype=torch.float64)
    model.fractions.copy_(fractions)
    weight = torch.log(1 - 0.8 * fractions / (0.6 + 0.4 * fractions))
    outputs = torch.tensor([[-1e3, -1e3], [1e3, 1e3]], dtype=torch.float64)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    expected[0, 0] = weight[:, 0].sum()
    expected[1, 1:] = weight[:, 1]
    torch.testing.assert_close(model.aggregate(outputs), expected)
    model.rule = "minimum"
    expected[0, 0] = weight[:, 0].amin()
    torch.testing.assert_close(model.aggregate(outputs), expected)


def test_fractions_are_of_the_data_of_either_group() -> None:
    model = ensemble([Frame((0,), (1, 2), (2,)), Frame((1,), (2,))], 3)
    y = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2])
    roles = torch.tensor(
        [
            [IN, IN, HARD, OUT, IN, IN, IN, IN],
            [OUT, OUT, OUT, IN, IN, IN, HARD, OUT],
            [OUT, OUT, OUT, OUT, IN, IN, IN, IN],
        ],
        dtype=torch.uint8,
    )
    model.divide(roles, y)
    expected = torch.tensor([[0.75, 1], [0.25, 0.75], [1, 1]], dtype=torch.float64)
    torch.testing.assert_close(model.fractions, expected)


def test_a_surrogate_has_lower_slopes_and_is_a_copy() -> None:
    model = ensemble(PAIRS, 4, slope=50.0)
    easier = model.surrogate()
    assert (easier.slope == 5).all()
    assert (model.slope == 50).all()
    assert (ensemble(PAIRS, 4, slope=2.0).surrogate().slope == 2).all()


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(
            NBR(epochs=5, batch=64, learning_rate=5e-3, offset=0.3), marks=pytest.mark.slow
        ),
        pytest.param(
            NBR(epochs=5, batch=64, learning_rate=5e-3, offset=0.3, frames="0-1,0+1-2,0-2,1-2"),
            marks=pytest.mark.slow,
        ),
        Fractal(epochs=8, batch=64, learning_rate=5e-3, offset=0.3, levels="2+2+2"),
        pytest.param(
            Fractal(epochs=8, batch=64, offset=0.3, levels="2+3", variant=1, slope=40.0),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_no_strong_attack_contradicts_the_certificate(recipe: Recipe, digits: Digits) -> None:
    x, y, x_test, y_test = digits
    few, tested = y < 3, y_test < 3
    model = initialise(recipe, (1, 8, 8), 3, seed=0)
    train(recipe, model, x[few], y[few], threat=None, seed=0)
    model.requires_grad_(False)
    assert isinstance(model, BeliefEnsemble)
    x_test, y_test = x_test[tested][:40], y_test[tested][:40]
    answer, radius = model(x_test).argmax(1), model.certified_radius(x_test)
    assert (answer == y_test).float().mean() > 0.85
    threat = ThreatModel("l2", 0.7)
    found = Strong(classes=1, queries=50)(Problem(model, x_test, answer, threat))
    near = threat.distance(found, x_test) < radius - 1e-5
    broken = model(found).argmax(1) != answer
    assert not (broken & near).any()
    assert broken.any()
    assert (radius > 0.3).any()
