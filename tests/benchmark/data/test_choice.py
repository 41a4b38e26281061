"""Choices of samples: in a fixed order, so that a larger one has all of a smaller one."""

import numpy as np
import pytest

from benchmark.data.choice import ordered
from benchmark.spec.run_spec import Choose

# Sorted by class, and not balanced.
SIZES = (60, 30, 9, 1)
LABELS = np.repeat(np.arange(4), SIZES)


@pytest.mark.parametrize("choose", ["first", "random", "stratified"])
def test_a_choice_of_all_is_of_each_sample_once(choose: Choose) -> None:
    order = ordered(LABELS, choose, 0)
    assert sorted(order.tolist()) == list(range(len(LABELS)))
    assert np.array_equal(order, ordered(LABELS, choose, 0))
    assert np.array_equal(order, ordered(LABELS, choose, 1)) == (choose == "first")


def test_the_first_are_those_in_front_and_random_ones_mind_no_class() -> None:
    assert ordered(LABELS, "first", 3).tolist() == list(range(len(LABELS)))
    of_others = ordered(LABELS[::-1], "random", 3)
    assert np.array_equal(ordered(LABELS, "random", 3), of_others)
    assert set(LABELS[of_others[:30]]) >= {0, 1}


@pytest.mark.parametrize("seed", range(5))
def test_a_stratified_choice_of_any_size_has_the_shares_of_the_split(seed: int) -> None:
    order = ordered(LABELS, "stratified", seed)
    for count in range(1, len(LABELS) + 1):
        of_class = np.bincount(LABELS[order[:count]], minlength=4)
        assert (of_class > 0).sum() == min(count, 4)
        # The one sample of each class that there is in any case may be more than its share.
        shares = np.maximum(1, count * np.array(SIZES) / len(LABELS))
        if count >= 20:
            assert np.abs(of_class - shares).max() <= 1


def test_of_classes_of_one_size_none_is_ahead_by_more_than_one() -> None:
    labels = np.repeat(np.arange(10), 35)
    order = ordered(labels, "stratified", 0)
    for count in range(1, len(labels)):
        of_class = np.bincount(labels[order[:count]], minlength=10)
        assert of_class.max() - of_class.min() <= 1


def test_the_order_is_the_same_everywhere() -> None:
    labels = np.arange(12) // 4
    assert ordered(labels, "random", 0)[:6].tolist() == [9, 2, 11, 6, 3, 10]
    assert ordered(labels, "stratified", 0)[:6].tolist() == [9, 2, 6, 11, 3, 7]
