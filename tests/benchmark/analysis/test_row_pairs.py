"""Pairs of rows: what they say of one another, and how often equal rows are called different."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmark.analysis.row_pairs import holm, paired_up
from benchmark.report.paired import LEVEL, Paired, PairedShares

CHANCES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(CHANCES)
def test_holm_corrects_upwards_in_any_order(chances: list[float]) -> None:
    corrected = holm(chances)
    assert all(p <= q <= 1 for p, q in zip(chances, corrected, strict=True))
    assert min(corrected) == min(len(chances) * min(chances), 1)
    order = np.random.default_rng(0).permutation(len(chances))
    assert holm([chances[place] for place in order]) == [corrected[place] for place in order]
    # The order of the corrected ones is that of the others.
    ordered = [q for _, q in sorted(zip(chances, corrected, strict=True))]
    assert ordered == sorted(ordered)


def test_holm_is_that_of_a_published_example() -> None:
    """Holm 1979 rejects one after another: at level 0.05, 0.01 and 0.013 of these, as 4 * 0.01 and
    3 * 0.013 are below it, and 2 * 0.03 is not."""
    assert holm([0.01, 0.03, 0.013, 0.04]) == pytest.approx([0.04, 0.06, 0.04, 0.06])
    assert holm([0.02]) == [0.02]


def test_a_pair_says_which_samples_only_one_counts() -> None:
    one, other = np.array([1.0, 1, 0, 0, 1]), np.array([1.0, 0, 1, 0, 0])
    (pair,) = paired_up({"a": one, "b": other}, [("a", "b")])
    assert (pair.first, pair.second, pair.by_shares) == ("a", "b", False)
    assert (pair.only_first.tolist(), pair.only_second.tolist()) == ([1, 4], [2])
    paired = Paired(2, 1, 5)
    assert (pair.difference, pair.interval) == (paired.difference, paired.interval)
    assert pair.p == pair.p_holm == paired.chance()
    assert (pair.better, pair.verdict) == (None, "not told apart")


def test_the_better_row_is_named_in_either_order() -> None:
    shares = {"a": np.ones(20), "b": np.repeat([0.0, 1.0], 10)}
    pairs = paired_up(shares, [("a", "b"), ("b", "a")])
    assert [pair.better for pair in pairs] == ["a", "a"]
    assert [pair.verdict for pair in pairs] == ["a is better"] * 2
    assert [pair.difference for pair in pairs] == [0.5, -0.5]


def test_rows_that_draw_count_by_shares() -> None:
    shares = {"a": np.array([0.9, 0.2, 1.0]), "b": np.ones(3), "c": np.array([1.0, 0, 0])}
    pairs = paired_up(shares, list(itertools.combinations(shares, 2)), {"a"})
    assert [pair.by_shares for pair in pairs] == [True, True, False]
    told = PairedShares.of(shares["a"], shares["b"])
    assert (pairs[0].difference, pairs[0].interval) == (told.difference, told.interval)
    assert pairs[0].p == told.chance()
    assert pairs[0].only_second.tolist() == [0, 1]


# How far each of five rows follows what all have in common.
FOLLOWING = (0.0, 0.4, 0.7, 0.9, 0.97)


def _equal_rows(rng: np.random.Generator, n: int) -> dict[str, NDArray[np.float64]]:
    """Verdicts of five rows that are as robust, with probability 0.6, and correlated."""
    common = rng.random(n) < 0.6
    return {
        str(row): np.where(rng.random(n) < follows, common, rng.random(n) < 0.6).astype(float)
        for row, follows in enumerate(FOLLOWING)
    }


def _false_alarms(draws: int, by_shares: bool) -> tuple[float, float]:
    """In what share of draws any of the pairs of equal rows is called different: corrected, and by
    p alone."""
    alarms, uncorrected = 0, 0
    for seed in range(draws):
        rows = _equal_rows(np.random.default_rng(seed), 200)
        names = list(itertools.combinations(rows, 2))
        pairs = paired_up(rows, names, rows if by_shares else ())
        alarms += any(pair.better is not None for pair in pairs)
        uncorrected += any(pair.p < LEVEL for pair in pairs)
    return alarms / draws, uncorrected / draws


@pytest.mark.parametrize("by_shares", [False, True])
def test_equal_rows_are_seldom_told_apart(by_shares: bool) -> None:
    corrected, uncorrected = _false_alarms(100, by_shares)
    assert corrected <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / 100)
    assert uncorrected > LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / 100)


@pytest.mark.slow
@pytest.mark.parametrize("by_shares", [False, True])
def test_equal_rows_are_told_apart_in_a_draw_of_twenty_at_most(by_shares: bool) -> None:
    corrected, uncorrected = _false_alarms(1000, by_shares)
    print(f"corrected {corrected:.3f}, uncorrected {uncorrected:.3f}")
    assert corrected <= LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / 1000)
