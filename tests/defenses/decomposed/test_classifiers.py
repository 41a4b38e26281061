"""Classifiers put together from simpler ones: what they say, given what those say."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, Problem, ThreatModel
from attacks.objectives import margin
from attacks.wrappers.arms import HasArms, SoftmaxAttack
from attacks.wrappers.stages import HasStages
from defenses import (
    Decomposed,
    Decomposition,
    Ensemble,
    OneVsOne,
    RoBin,
    TwoStage,
    build_architecture,
    initialise,
)

SHAPE = (1, 8, 8)
SMALL: dict[str, Any] = {"arch": "cnn2", "widen": 0.2}
RECIPES = [RoBin(**SMALL), OneVsOne(**SMALL), TwoStage(**SMALL), Ensemble(members=3, **SMALL)]


class Saying(nn.Module):
    """Networks that say given logits (tasks, n, labels), whatever they are shown."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def saying(recipe: Decomposed, classes: int, logits: Tensor) -> Any:
    model = initialise(recipe, SHAPE, classes, 0)
    model.networks = Saying(logits)
    return model


def images(count: int) -> Tensor:
    return torch.rand(count, *SHAPE, dtype=torch.float64)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: type(recipe).__name__)
def test_it_is_made_of_networks_of_the_architecture_and_says_what_they_say(
    recipe: Decomposed,
) -> None:
    model = initialise(recipe, SHAPE, 4, 0).double()
    assert isinstance(model, Decomposition)
    x = images(6)
    alone = build_architecture("cnn2", SHAPE, 4 if isinstance(recipe, Ensemble) else 2, widen=0.2)
    for task, logits in enumerate(model.tasks(x[None])):
        state = {name: row[task] for name, row in model.networks.network.state_dict().items()}
        alone.double().load_state_dict(state)
        torch.testing.assert_close(logits, alone(x))
    # What can be made again from the recipe is not saved.
    assert all(name.startswith("networks.network.") for name in model.state_dict())
    assert model(x).shape == (6, 4)


def test_arms_are_log_odds_and_the_highest_is_predicted() -> None:
    model = initialise(RoBin(**SMALL), SHAPE, 4, 0).double()
    assert isinstance(model, HasArms)
    x = images(30)
    odds = [task.softmax(1) for task in model.tasks(x[None])]
    expected = torch.stack([(p[:, 1] / p[:, 0]).log() for p in odds], 1)
    torch.testing.assert_close(model.arms(x), expected)
    assert torch.equal(model(x), model.arms(x))
    assert torch.equal(model(x).argmax(1), torch.stack([p[:, 1] for p in odds], 1).argmax(1))


def opposed(x: Tensor) -> tuple[nn.Module, nn.Module]:
    """A binary classifier that parts the images, and the aggregation of it and its
    negative."""
    binary = build_architecture("cnn2", SHAPE, 2, widen=0.2).double().eval()
    logits = binary(x)
    with torch.no_grad():
        binary.get_parameter("7.bias")[0] += (logits[:, 1] - logits[:, 0]).mean()
    model = initialise(RoBin(**SMALL), SHAPE, 2, 0).double()
    rows = model.networks.network.state_dict()
    for name, value in binary.state_dict().items():
        # Arm 1 is for class 1, and its second logit for being of it.
        last = name.startswith("7.")
        rows[name].copy_(torch.stack([value.flip(0) if last else value, value]))
    return binary, model


def test_two_opposite_arms_are_the_binary_classifier() -> None:
    x = images(50)
    binary, model = opposed(x)
    logits = binary(x)
    lead = logits[:, 1] - logits[:, 0]
    torch.testing.assert_close(model.arms(x), torch.stack([-lead, lead], 1))
    assert 10 < int((lead > 0).sum()) < 40
    assert torch.equal(model(x).argmax(1), logits.argmax(1))


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.6), ("linf", 0.06)])
def test_the_softmax_attack_on_opposite_arms_is_the_base_on_the_binary_classifier(
    norm: Any, eps: float
) -> None:
    x = images(40)
    binary, model = opposed(x)
    y = binary(x).argmax(1)
    base, threat = PGD(steps=6, restarts=2), ThreatModel(norm, eps)
    points = base(Problem(binary, x, y, threat, seed=4))
    same = SoftmaxAttack(base)(Problem(model, x, y, threat, seed=4))
    torch.testing.assert_close(same, points, rtol=0, atol=1e-9)
    assert 0 < int((binary(points).argmax(1) != y).sum()) < 40


def test_pairs_add_up_to_the_log_probabilities_of_a_class() -> None:
    leads = {(0, 1): 0.5, (0, 2): -1.0, (1, 2): 2.0}
    # Whatever they share says nothing.
    pairs = torch.tensor([[[3.0, 3.0 + lead]] for lead in leads.values()], dtype=torch.float64)
    model = saying(OneVsOne(**SMALL), 3, pairs)
    expected = [0.0, 0.0, 0.0]
    for (first, second), lead in leads.items():
        expected[first] += math.log(1 / (1 + math.exp(lead)))
        expected[second] += math.log(1 / (1 + math.exp(-lead)))
    assert model(images(1))[0].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_class_that_wins_all_its_pairs_surely_is_predicted(classes: int) -> None:
    pairs = list(itertools.combinations(range(classes), 2))
    for winner in range(classes):
        logits = torch.randn(len(pairs), 1, 2)
        for task, pair in enumerate(pairs):
            if winner in pair:
                logits[task, 0, pair.index(winner)] += 50
        model = saying(OneVsOne(), classes, logits)
        assert model(images(1)).argmax(1).item() == winner


PARTITIONS = [
    ("0+1-2+3", [[0, 1], [2, 3]]),
    ("2-0+1+3", [[2], [0, 1, 3]]),
    ("4+0-1-3+2+5", [[4, 0], [1], [3, 2, 5]]),
    ("1-0-2", [[1], [0], [2]]),
    (None, [[0, 1, 2], [3, 4]]),
]


def two_stages(text: str | None, groups: list[list[int]], scale: float) -> tuple[Any, Tensor]:
    """A hierarchical model of random logits, float32, and those."""
    most = max(len(groups), *map(len, groups))
    logits = torch.randn(1 + len(groups), 300, most)
    logits[1:] *= scale
    classes = sum(map(len, groups))
    return saying(TwoStage(groups=text), classes, logits.clone()), logits


@pytest.mark.parametrize("scale", [1.0, 0.1, 1e6])
@pytest.mark.parametrize(("text", "groups"), PARTITIONS)
def test_predicted_is_the_best_class_of_the_best_group(
    text: str | None, groups: list[list[int]], scale: float
) -> None:
    """However large the logits of the one stage beside those of the other."""
    model, logits = two_stages(text, groups, scale)
    group = logits[0, :, : len(groups)].argmax(1).tolist()
    predicted = model(images(300)).argmax(1).tolist()
    for number, best in enumerate(group):
        fine = logits[1 + best, number, : len(groups[best])]
        assert predicted[number] == groups[best][int(fine.argmax())]
    assert set(predicted) == set(range(sum(map(len, groups))))


@pytest.mark.parametrize(("text", "groups"), PARTITIONS)
def test_stages_are_as_attacks_take_them(text: str | None, groups: list[list[int]]) -> None:
    model, logits = two_stages(text, groups, 1.0)
    assert isinstance(model, HasStages)
    coarse, fine = model.stages(images(300))
    assert torch.equal(coarse, logits[0, :, : len(groups)])
    for number, group in enumerate(groups):
        for place, label in enumerate(group):
            assert model.groups[label] == number
            assert torch.equal(fine[:, label], logits[1 + number, :, place])


@pytest.mark.parametrize(("text", "groups"), PARTITIONS)
def test_the_margin_is_the_larger_lead_of_the_two_stages(
    text: str | None, groups: list[list[int]]
) -> None:
    model, _ = two_stages(text, groups, 1.0)
    x = images(300)
    coarse, fine = (part.double() for part in model.stages(x))
    for label, group in enumerate(model.groups.tolist()):
        y = torch.full((300,), label)
        first = margin(coarse, torch.full((300,), group))
        second = margin(fine.masked_fill(model.groups != group, -torch.inf), y)
        found = margin(model(x).double(), y)
        torch.testing.assert_close(
            found[second <= 0], first.maximum(second)[second <= 0], rtol=1e-5, atol=1e-5
        )
        assert torch.equal(found > 0, first.maximum(second) > 0)


def test_an_ensemble_averages_probabilities() -> None:
    model: Any = initialise(Ensemble(members=3, **SMALL), SHAPE, 4, 0).double()
    x = images(20)
    members = model.members(x)
    assert members.shape == (3, 20, 4)
    torch.testing.assert_close(model(x).exp(), members.softmax(2).mean(0))
    # Probabilities that float32 does not hold.
    unlikely = torch.tensor([[[0.0, -300.0]], [[0.0, -400.0]]])
    sure = saying(Ensemble(members=2), 2, unlikely)(images(1))
    assert sure[0].tolist() == pytest.approx([0.0, -300 - math.log(2)])


def test_the_tables_of_targets() -> None:
    assert RoBin().targets(3).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert OneVsOne().targets(3).tolist() == [[0, 1, -1], [0, -1, 1], [-1, 0, 1]]
    assert OneVsOne().targets(2).tolist() == [[0, 1]]
    assert len(OneVsOne().targets(10)) == 45
    assert TwoStage(groups="3-2+0+1").targets(4).tolist() == [
        [1, 1, 1, 0], [-1, -1, -1, 0], [1, 2, 0, -1]
    ]  # fmt: skip
    assert TwoStage().targets(3).tolist() == [[0, 0, 1], [0, 1, -1], [-1, -1, 0]]
    assert Ensemble(members=2).targets(3).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ("0+1+2", "give two or more"),
        ("0-1", "each label from 0 to 2"),
        ("0+1-1+2", "each label from 0 to 2"),
        ("0+1-2+3", "each label from 0 to 2"),
        ("0+1-2-", "written as"),
        ("0,1-2", "written as"),
        ("", "written as"),
    ],
)
def test_groups_that_are_no_partition_are_refused_in_one_line(groups: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        initialise(TwoStage(groups=groups), SHAPE, 3, 0)
    assert repr(groups) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_ensemble_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="members must be at least 1, not 0"):
        Ensemble(members=0)
