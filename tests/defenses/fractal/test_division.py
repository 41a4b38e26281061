"""Fractal divide: every pair of samples of opposite sides is contrasted exactly once."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from defenses.fractal.division import (
    HARD,
    IN,
    OUT,
    Division,
    by_clusters,
    depth_of,
    depths,
    nested,
    one_level,
    parts,
    split,
    splitting_levels,
)

STRUCTURES = [
    (*begins, *sizes)
    for begins in ((), (0,))
    for sizes in ((3,), (2, 3), (4, 2, 3), (2, 3, 2, 4), (3, 1, 2, 2, 3))
]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sides_of(count: int) -> Tensor:
    """Two sides of unequal size, in no order."""
    return (drawn(0, count) > 0.3).long()


def contrasts(members: Tensor, sides: Tensor) -> Tensor:
    """How many subtasks have each pair of opposite sides in their training subset."""
    one, other = (members[:, sides == side].int() for side in (0, 1))
    return one.T @ other


def assert_divided(levels: Sequence[int], sides: Tensor, members: Tensor) -> None:
    assert (contrasts(members, sides) == 1).all()
    first = parts(levels)[int(levels[0] == 0)]
    whole = sides == 1 - int(levels[0] == 0)
    assert members[first][:, whole].all()


@pytest.mark.parametrize("levels", STRUCTURES)
@pytest.mark.parametrize("swapped", [(False, False), (True, False), (False, True), (True, True)])
def test_every_pair_is_contrasted_once_after_every_repartition(
    levels: tuple[int, ...], swapped: tuple[bool, bool]
) -> None:
    sides = sides_of(120)
    depth = depths(levels, sides, drawn(1, 120, sum(levels)), swapped)
    members = nested(levels, sides, depth, by_clusters(levels, sides, drawn(2, 120, 5), depth))
    assert_divided(levels, sides, members)
    for seed in range(3, 7):
        again = drawn(seed, 120, sum(levels))
        # Data move between the subtasks of a level, not between levels.
        assert torch.equal(depth_of(levels, sides, members), depth)
        moved = nested(levels, sides, depth_of(levels, sides, members), again)
        assert_divided(levels, sides, moved)
        assert not torch.equal(moved, members) or max(levels) == 1
        members = moved


@pytest.mark.parametrize("levels", STRUCTURES)
def test_swapped_parts_change_places(levels: tuple[int, ...]) -> None:
    sides = sides_of(120)
    outputs = drawn(1, 120, sum(levels))
    plain = depths(levels, sides, outputs, (False, False))
    for side in (0, 1):
        mine = splitting_levels(levels, side)
        found = [int((plain[sides == side] == level).sum()) for level in mine]
        assert sum(found) == int((sides == side).sum())
        assert found == sorted(found, reverse=True)
        swapped = depths(levels, sides, outputs, (side == 0, side == 1))
        for level, other in zip(mine, mine[::-1], strict=True):
            assert torch.equal(plain == level, swapped == other) or len(mine) == 1
            assert torch.equal(
                (plain == level) & (sides == side), (swapped == other) & (sides == side)
            )
        assert torch.equal(plain[sides != side], swapped[sides != side])


def test_a_structure_by_hand() -> None:
    """Two levels of two, samples a to d of the first group and e to h of the second."""
    sides = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    depth = torch.tensor([0, 0, 0, 2, 1, 1, 1, 1])
    outputs = torch.tensor(
        [
            [5, 1, 0, 0], [1, 5, 0, 0], [-3, -2, 0, 0], [0, 0, 0, 0],
            [0, 0, -2, 1], [0, 0, 1, 2], [0, 0, 0, -1], [0, 0, -9, -8],
        ]
    ).float()  # fmt: skip
    names = "abcdefgh"
    found = nested((2, 2), sides, depth, outputs)
    shown = ["".join(n for n, inside in zip(names, row, strict=True) if inside) for row in found]
    # d is split by no level, and contrasted with the second group in the second level.
    assert shown == ["aefgh", "bcefgh", "defh", "dg"]


def test_a_level_by_itself_contrasts_all_pairs() -> None:
    sides = sides_of(60)
    members = one_level((3, 4), sides, drawn(1, 60, 7))
    for part in parts((3, 4)):
        assert (contrasts(members[part], sides) == 1).all()


def test_samples_go_to_the_subtask_that_is_the_surest_of_them() -> None:
    outputs = torch.tensor([[1.0, 2.0], [4.0, 3.0], [9.0, 0.0]])
    data = torch.tensor([True, True, False])
    first, second = split(data, outputs, 0), split(data, outputs, 1)
    assert first.tolist() == [[False, True, False], [True, False, False]]
    assert second.tolist() == [[True, False, False], [False, True, False]]


def test_clusters_of_pixels_are_a_partition_and_name_themselves() -> None:
    """Far apart, they are found whole, by both groups' rule."""
    sides = torch.tensor([0, 1]).repeat_interleave(30)
    cluster = torch.arange(60) % 3
    features = drawn(0, 60, 4) * 0.01 + 10 * torch.eye(4)[cluster]
    outputs = by_clusters((3, 3), sides, features)
    for part, side in zip(parts((3, 3)), (0, 1), strict=True):
        members = split(sides == side, outputs[:, part], side)
        for number in range(3):
            (holder,) = members[:, (sides == side) & (cluster == number)].all(1).nonzero()
            assert int(members[holder].sum()) == 10


def test_members_of_a_batch_are_gathered_row_by_row() -> None:
    division = Division()
    division.roles = torch.tensor([[IN, OUT, HARD, IN], [OUT, OUT, IN, OUT]], dtype=torch.uint8)
    roles, places = division.of(torch.tensor([3, 1, 2]))
    assert roles.tolist() == [[IN, HARD], [IN, OUT]]
    assert places[0].tolist() == [0, 2]
    assert places[1, 0] == 2


def test_roles_are_kept_with_the_state_until_forgotten_and_stay_on_the_device() -> None:
    division, other = Division(), Division()
    division.roles = torch.tensor([[IN, OUT]], dtype=torch.uint8)
    other.load_state_dict(division.state_dict())
    assert torch.equal(other.roles, division.roles)
    elsewhere = Division().to("meta")
    elsewhere.load_state_dict(division.state_dict())
    assert elsewhere.roles.device.type == "meta"
    division.forget()
    assert division.state_dict()["_extra_state"].shape == (0, 0)
