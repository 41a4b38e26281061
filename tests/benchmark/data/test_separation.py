"""Distances between classes, and volumes, against values by hand and by brute force."""

import math

import pytest
import torch
from torch import Tensor

from attacks.threat import ThreatModel
from benchmark.data import separation
from benchmark.data.separation import inter_class_distance, log_volumes, oracle_radii

LINF = ThreatModel("linf", 0.3)


def cloud(n: int = 300, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 5, 6) whose first class is rare, with labels out of order."""
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(n, 1, 5, 6, generator=generator)
    y = torch.randint(1, classes, (n,), generator=generator)
    y[[3, 50, 51]] = 0
    return x, y


def everything(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """All distances (n, n), float64, by differences, and where labels differ."""
    flat = x.flatten(1).double()
    return (flat[:, None] - flat).norm(dim=2), y[:, None] != y


def by_sorting(x: Tensor, y: Tensor) -> float:
    """The inter-class distance, by its definition."""
    distances, apart = everything(x, y)
    margins = []
    for row, other in zip(distances, apart, strict=True):
        near = row[other].sort().values
        margins.append(near[: math.ceil(len(near) / 10)].mean())
    each, classes = torch.stack(margins), []
    for label in y.unique():
        least = each[y == label].sort().values
        classes.append(least[: math.ceil(len(least) / 10)].mean())
    return float(torch.stack(classes).mean())


# Oracle radii


def test_radii_on_a_line() -> None:
    x = torch.tensor([0.0, 0.25, 1.0, 0.5, 0.875]).view(5, 1, 1, 1)
    radii = oracle_radii(x, torch.tensor([7, 7, 7, 2, 2]))
    assert radii.dtype == torch.float64
    assert radii.tolist() == [0.25, 0.125, 0.0625, 0.125, 0.0625]


def test_radii_are_those_of_all_pairs() -> None:
    x, y = cloud()
    distances, apart = everything(x, y)
    expected = distances.masked_fill(~apart, math.inf).amin(1) / 2
    assert torch.allclose(oracle_radii(x, y), expected, rtol=1e-12)
    # The order of images and the names of labels mean nothing.
    mixed = torch.randperm(len(y))
    found = oracle_radii(x[mixed], 9 - y[mixed])
    assert torch.allclose(found, expected[mixed], rtol=1e-12)


def test_an_image_with_two_labels_has_radius_0() -> None:
    x, y = cloud()
    x[200], y[200], y[20] = x[20], 1, 2
    radii = oracle_radii(x, y)
    assert (radii == 0).nonzero()[:, 0].tolist() == [20, 200]
    # As does one whose copy is all but it, where a product of float32 would see nothing.
    x[200, 0, 2, 2] += 1e-5
    step = abs(float(x[200, 0, 2, 2].double() - x[20, 0, 2, 2].double()))
    assert oracle_radii(x, y)[[20, 200]].tolist() == [step / 2] * 2


def test_without_another_label_there_is_no_bound() -> None:
    x, y = cloud()
    assert oracle_radii(x, torch.ones_like(y)).tolist() == [math.inf] * len(y)
    assert inter_class_distance(x, torch.ones_like(y)) == math.inf
    assert oracle_radii(x[:1], y[:1]).tolist() == [math.inf]


# Inter-class distance


def test_the_inter_class_distance_takes_the_nearest_tenth_twice() -> None:
    # Twenty black images, of which two in the corner of a second pixel, and twenty others at 0.05,
    # 0.10, ... along the first. A tenth of twenty is two.
    x = torch.zeros(40, 1, 1, 2, dtype=torch.float64)
    x[20:, 0, 0, 0] = torch.arange(1, 21) / 20
    y = (torch.arange(40) >= 20).long()
    # Black: (0.05 + 0.10) / 2. Others: their two nearest are both black: 0.05 and 0.10.
    assert inter_class_distance(x, y) == pytest.approx(0.075, rel=1e-7)
    # One in the first class more: its tenth is three, the nearest three are 0.05, 0.10, 0.15 away.
    more = torch.cat([x[20:], torch.tensor([1.05, 0.0]).view(1, 1, 1, 2), x[:20]])
    y = (torch.arange(41) >= 21).long()
    black = (0.05 + 0.10 + 0.15) / 3
    assert inter_class_distance(more, y) == pytest.approx((black + black) / 2, rel=1e-7)


def test_the_inter_class_distance_is_that_of_all_pairs() -> None:
    x, y = cloud()
    assert inter_class_distance(x, y) == pytest.approx(by_sorting(x, y), rel=1e-7)
    # Also of few: two classes, three images.
    few = inter_class_distance(x[:3], torch.tensor([4, 4, 1]))
    assert few == pytest.approx(by_sorting(x[:3], torch.tensor([4, 4, 1])), rel=1e-7)
    # And it follows the scale of the data, also where that is tiny beside their place.
    small = inter_class_distance(0.5 + 1e-3 * x.double(), y)
    assert small == pytest.approx(1e-3 * by_sorting(x, y), rel=1e-6)


@pytest.mark.parametrize("block", [3, 64, 299])
def test_blocks_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud()
    radii, between, volumes = oracle_radii(x, y), inter_class_distance(x, y), log_volumes(x, LINF)
    monkeypatch.setattr(separation, "_BLOCK", block)
    assert torch.equal(oracle_radii(x, y), radii)
    assert inter_class_distance(x, y) == pytest.approx(between, rel=1e-7)
    assert torch.equal(log_volumes(x, LINF), volumes)


# Log volumes


def test_volumes_by_hand() -> None:
    corner = torch.tensor([0.0, 1.0, 1.0, 0.0])
    inside = torch.tensor([0.5, 0.3, 0.6, 0.7])
    mixed = torch.tensor([0.0, 0.5, 0.125, 1.0])
    found = log_volumes(torch.stack([corner, inside, mixed]).view(3, 1, 2, 2), LINF)
    expected = [
        4 * math.log2(0.3),
        4 * math.log2(0.6),
        2 * math.log2(0.3) + math.log2(0.6) + math.log2(0.425),
    ]
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_ball_larger_than_the_box_has_the_volume_of_the_box() -> None:
    x, _ = cloud()
    assert log_volumes(x, ThreatModel("linf", 1.5)).tolist() == [0.0] * len(x)


def test_without_bounds_all_images_have_the_same_room() -> None:
    x, _ = cloud()
    free = log_volumes(x, ThreatModel("linf", 0.3, -0.3, 1.3))
    assert torch.allclose(free, torch.tensor(30 * math.log2(0.6)).double(), rtol=1e-6)


def test_a_volume_in_l2_is_refused() -> None:
    with pytest.raises(ValueError, match="linf alone, not for l2"):
        log_volumes(cloud()[0], ThreatModel("l2", 0.3))
