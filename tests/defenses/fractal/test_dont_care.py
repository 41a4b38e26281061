"""Don't-care conditions by hand, by appendix B's argument, and under offsets."""

import pytest
import torch
from torch import Tensor

from defenses.fractal.division import depths, nested
from defenses.fractal.dont_care import dont_care

THREE = (4, 4, 4)


def rights(levels: tuple[int, ...], *right: set[int], side: int = 0) -> Tensor:
    """Outputs (n, k) that are right, on a side, for the subtasks named, from 1 on."""
    count = sum(levels)
    signs = [[1.0 if i + 1 in row else -1.0 for i in range(count)] for row in right]
    return torch.tensor(signs) * (1 - 2 * side)


def holding(levels: tuple[int, ...], side: int, outputs: Tensor, offset: float = 0.0) -> list[str]:
    found = dont_care(levels, side, outputs, torch.ones(outputs.shape[1]), offset)
    return [name for name, holds in found.items() if bool(holds.item())]


FIRST, SECOND, THIRD = ({*range(4 * level + 1, 4 * level + 5)} for level in range(3))


@pytest.mark.parametrize(
    ("side", "right", "names"),
    [
        # Figure 4 (b) and theorem 1's condition without its weak requirement, for label I.
        (0, {*SECOND, 10}, ["one of level 3, all of level 2"]),
        (0, {*SECOND} - {5} | {10}, []),
        (0, {2}, ["one of level 1"]),
        (0, {*SECOND, *FIRST}, ["one of level 1"]),
        (0, {*THIRD}, []),
        # Figure 4 (a) and the other condition in the text, for label II.
        (1, {*FIRST, 7}, ["one of level 2, all of level 1"]),
        (1, {*FIRST, *THIRD}, ["all of level 1, all of level 3"]),
        (1, {*FIRST, *THIRD} - {12}, []),
        (1, {*SECOND, *THIRD}, []),
    ],
)
@pytest.mark.parametrize("begins", [0, 1])
def test_conditions_of_three_levels(
    side: int, right: set[int], names: list[str], begins: int
) -> None:
    """As in figure 4; with sides swapped where the structure begins with the second group. Those
    that are right are less sure than the others are wrong, so that nothing is exact."""
    levels = (0, *THREE) if begins else THREE
    side = 1 - side if begins else side
    outputs = rights(levels, right, side=side)
    outputs = torch.where(outputs * (1 - 2 * side) > 0, outputs / 2, outputs)
    assert holding(levels, side, outputs) == names


def test_one_subtask_is_right_or_wrong() -> None:
    for side, name in ((0, "one of level 1"), (1, "all of level 1")):
        exact = ["one of level 1, exact"] if side == 0 else []
        assert holding((1,), side, rights((1,), {1}, side=side)) == [*exact, name]
        assert holding((1,), side, rights((1,), set(), side=side)) == []


def test_the_exact_condition_is_theorem_1s() -> None:
    """In terms of x, slopes of their own, either start."""
    outputs = torch.randn(5000, 6, dtype=torch.float64)
    slope = torch.rand(6, dtype=torch.float64) + 0.5
    for levels, side, x in (
        ((2, 3, 1), 0, torch.sigmoid(slope * outputs)),
        ((0, 2, 3, 1), 1, torch.sigmoid(-slope * outputs)),
    ):
        expected = torch.zeros(5000, dtype=torch.bool)
        for i in range(2):
            others = [j for j in range(6) if j != i]
            expected |= (x[:, i] > 0.5) & (x[:, others] >= 1 - x[:, i : i + 1]).all(1)
        found = dont_care(levels, side, outputs, slope)
        assert torch.equal(found["one of level 1, exact"], expected)
        assert 100 < int(expected.sum()) < 4900
        assert not found["one of level 1, exact"][~found["one of level 1"]].any()
        assert "one of level 1, exact" not in dont_care(levels, 1 - side, outputs, slope)


@pytest.mark.parametrize("levels", [(3,), (0, 3), (3, 2), (2, 3, 2), (0, 2, 2, 3), (2, 1, 2, 3, 2)])
def test_where_all_members_are_right_each_sample_meets_a_condition(levels: tuple[int, ...]) -> None:
    """Appendix B: a training sample's subtasks are those of one of the conditions."""
    sides = (torch.randn(200) > 0).long()
    outputs = torch.randn(200, sum(levels))
    depth = depths(levels, sides, outputs, (False, True))
    members = nested(levels, sides, depth, outputs)
    sign = (1 - 2 * sides)[:, None]
    # All are wrong by far where they were not trained on a sample.
    answers = torch.where(members.T, 1.0, -10.0) * sign
    for side in (0, 1):
        found = dont_care(levels, side, answers[sides == side], torch.ones(sum(levels)))
        assert torch.stack(list(found.values())).any(0).all()


@pytest.mark.parametrize("side", [0, 1])
def test_what_holds_robustly_holds_wherever_outputs_move(side: int) -> None:
    levels, slope = (2, 2, 2), torch.full((6,), 3.0)
    outputs = torch.randn(2000, 6)
    robustly = dont_care(levels, side, outputs, slope, 0.3)
    for _ in range(20):
        moved = outputs + (torch.rand(2000, 6) * 2 - 1) * 0.3
        found = dont_care(levels, side, moved, slope)
        for name, holds in robustly.items():
            assert 0 < int(holds.sum()) < 2000
            assert found[name][holds].all()
    # And it is what holds at the worst of these.
    worst = dont_care(levels, side, outputs - 0.3 * (1 - 2 * side), slope)
    assert all(torch.equal(worst[name], robustly[name]) for name in robustly)
