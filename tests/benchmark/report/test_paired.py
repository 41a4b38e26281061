"""Two models on the same samples: exact answers, published ones, and how often intervals hold."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multinomial, norm

from benchmark.report.paired import Paired, PairedShares, score_interval

Z = float(norm.ppf(0.975))


@st.composite
def _paired(draw: st.DrawFn) -> Paired:
    total = draw(st.integers(1, 2000))
    first = draw(st.integers(0, total))
    return Paired(first, draw(st.integers(0, total - first)), total)


def test_chance_is_that_of_a_fair_coin() -> None:
    first, second = np.array([1, 1, 1, 0, 1], bool), np.array([1, 0, 0, 0, 0], bool)
    paired = Paired.of(first, second)
    assert paired == Paired(3, 0, 5)
    assert paired.difference == 3 / 5
    assert paired.chance("greater") == pytest.approx(1 / 8)
    assert paired.chance() == pytest.approx(1 / 4)
    assert Paired(0, 3, 5).chance("greater") == pytest.approx(1)
    assert Paired.of(first, first).chance() == 1


@pytest.mark.parametrize(
    ("first", "second", "total", "level", "limits"),
    [
        # Tango 1998: two cross-over trials.
        (9, 3, 32, 0.95, (-0.027, 0.390)),
        (0, 1, 44, 0.90, (-0.096, 0.037)),
        # Agresti and Min 2005, Tang et al. 2010, Fagerland et al. 2014, Chang et al. 2024.
        (16, 8, 86, 0.95, (-0.020, 0.207)),
        (3, 1, 14, 0.95, (-0.1670, 0.4327)),
        (1, 7, 21, 0.95, (-0.517, -0.026)),
        (25, 2, 102, 0.95, (0.139, 0.321)),
    ],
)
def test_intervals_are_the_published_ones(
    first: int, second: int, total: int, level: float, limits: tuple[float, float]
) -> None:
    assert score_interval(first, second, total, level) == pytest.approx(limits, abs=6e-4)


@pytest.mark.parametrize("total", [1, 10, 355, 10_000])
def test_where_no_sample_differs_the_interval_is_not_empty(total: int) -> None:
    """Then the most likely share of one side is |d|, and the limits are Wilson's of 0."""
    limit = Z**2 / (total + Z**2)
    assert Paired(0, 0, total).interval == pytest.approx((-limit, limit))
    low, high = PairedShares(np.zeros(total)).interval
    assert low == -high < 0


@given(_paired())
def test_intervals_hold_the_difference_and_turn_with_the_order(paired: Paired) -> None:
    low, high = paired.interval
    assert -1 <= low <= paired.difference <= high <= 1
    turned = Paired(paired.second, paired.first, paired.total)
    assert turned.interval == pytest.approx((-high, -low))
    assert turned.difference == -paired.difference
    assert turned.chance() == pytest.approx(paired.chance())


@given(_paired())
def test_the_interval_leaves_0_out_where_mcnemars_score_test_rejects(paired: Paired) -> None:
    low, high = paired.interval
    squared, bound = (paired.first - paired.second) ** 2, Z**2 * (paired.first + paired.second)
    if not math.isclose(squared, bound, rel_tol=1e-6):
        assert (low > 0 or high < 0) == (squared > bound)


@given(_paired(), st.integers(2, 5))
def test_more_samples_of_the_same_kind_make_it_narrower(paired: Paired, times: int) -> None:
    more = Paired(times * paired.first, times * paired.second, times * paired.total)
    (low, high), (closer_low, closer_high) = paired.interval, more.interval
    assert closer_high - closer_low < high - low
    assert more.difference == pytest.approx(paired.difference)


@given(_paired())
def test_shares_that_are_verdicts_have_the_adjusted_wald_interval(paired: Paired) -> None:
    """Bonett and Price 2012: one more sample is added to either side."""
    ones = np.repeat([1.0, -1.0, 0.0], [paired.first, paired.second, paired.total])
    shares = PairedShares(ones[: paired.total])
    n, first, second = paired.total + 2, paired.first + 1, paired.second + 1
    middle = (first - second) / n
    error = math.sqrt((first / n + second / n - middle**2) / n)
    limits = max(middle - Z * error, -1), min(middle + Z * error, 1)
    assert shares.interval == pytest.approx(limits)
    assert shares.difference == pytest.approx(paired.difference)
    assert shares.chance() == pytest.approx(2 * norm.sf(abs(middle) / error))
    # Both agree on what chance would do at the level of the interval.
    low, high = shares.interval
    if not math.isclose(abs(middle), Z * error, rel_tol=1e-6):
        assert (shares.chance() < 0.05) == (low > 0 or high < 0)


# Pairs of models: the robustness of the better one, by how much it is better, and the correlation.
MODELS = list(itertools.product([0.3, 0.5, 0.7, 0.9], [0.0, 0.02, 0.1, 0.2], [0.0, 0.4, 0.8]))


def _cells(better: float, by: float, correlation: float) -> tuple[float, float] | None:
    """The probabilities that only the first, and only the second of two models is robust; None
    where no models are so correlated."""
    worse = better - by
    spread = math.sqrt(better * (1 - better) * worse * (1 - worse))
    both = better * worse + correlation * spread
    first, second = better - both, worse - both
    return (first, second) if min(first, second, both, 1 - better - second) >= 0 else None


@cache
def _interval(first: int, second: int, total: int) -> tuple[float, float]:
    return score_interval(first, second, total)


def test_intervals_cover_what_they_say() -> None:
    """Exactly: over all outcomes of 100 samples with their probabilities, in 93 to 97%; in more
    where fewer than 4 samples are expected to differ, and never in less."""
    n, covered = 100, {}
    first, second = (counts.ravel() for counts in np.mgrid[: n + 1, : n + 1])
    possible = first + second <= n
    first, second = first[possible], second[possible]
    outcomes = np.stack([first, second, n - first - second], 1)
    for setting in [*MODELS, (0.97, 0.0, 0.6), (0.97, 0.02, 0.3), (0.99, 0.0, 0.0)]:
        cells = _cells(*setting)
        if cells is None:
            continue
        chance = multinomial(n, [*cells, 1 - sum(cells)]).pmf(outcomes)
        likely = chance > 1e-7
        limits = [
            _interval(b, c, n)
            for b, c in zip(first[likely].tolist(), second[likely].tolist(), strict=True)
        ]
        holds = [low <= setting[1] <= high for low, high in limits]
        covered[setting] = float(chance[likely][holds].sum())
        assert covered[setting] >= 0.93, setting
        assert covered[setting] <= 0.97 or n * sum(cells) < 4, setting
    assert len(covered) >= 40
    print(f"exactly, n {n}: {min(covered.values()):.4f} to {max(covered.values()):.4f}")


def _simulated(n: int, draws: int) -> dict[tuple[float, float, float], float]:
    """In what share of draws the interval holds the true difference of two models."""
    covered = {}
    for seed, setting in enumerate(MODELS):
        cells = _cells(*setting)
        if cells is not None:
            rng = np.random.default_rng([n, seed])
            drawn = rng.multinomial(n, [*cells, 1 - sum(cells)], draws)[:, :2].tolist()
            limits = [_interval(first, second, n) for first, second in drawn]
            covered[setting] = float(np.mean([low <= setting[1] <= high for low, high in limits]))
    return covered


@pytest.mark.parametrize("n", [100, 1000])
def test_intervals_cover_in_a_few_draws(n: int) -> None:
    covered = list(_simulated(n, 100).values())
    assert min(covered) > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 100)
    assert 0.94 < np.mean(covered) < 0.96


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 1000])
def test_intervals_cover_in_many_draws(n: int) -> None:
    """The bounds are those of the exact test above, and the error of so many draws."""
    covered = list(_simulated(n, 1000).values())
    print(f"n {n}: {min(covered):.3f} to {max(covered):.3f}, mean {np.mean(covered):.4f}")
    assert min(covered) >= 0.93 - 2 * math.sqrt(0.93 * 0.07 / 1000)
    assert max(covered) <= 0.97 + 2 * math.sqrt(0.97 * 0.03 / 1000)
    assert 0.945 < np.mean(covered) < 0.955


def _covered_by_shares(n: int, draws: int) -> list[float]:
    """In what share of draws the interval of shares of 50 draws holds the true difference, of
    models that differ on all samples, on few, and by the noise of their draws alone."""
    covered = []
    for seed, (by, spread, differ) in enumerate(
        itertools.product([0.0, 0.02, 0.1], [0.05, 0.5, 5.0], [0.0, 0.05, 1.0])
    ):
        rng = np.random.default_rng([n, seed])
        # The probabilities with which the models are right: by so much better, where they do not
        # differ, and of two samples that are not alike where they do.
        one, other = rng.beta(spread, spread, (2, draws, n)) * (1 - by)
        other = np.where(rng.random((draws, n)) < differ, other, one)
        shares = rng.binomial(50, one + by) / 50, rng.binomial(50, other) / 50
        limits = [PairedShares.of(*pair).interval for pair in zip(*shares, strict=True)]
        covered.append(float(np.mean([low <= by <= high for low, high in limits])))
    return covered


def _rare(n: int, draws: int) -> float:
    """The same of models that differ on one sample of 50 alone, and there wholly."""
    rng = np.random.default_rng(n)
    noise = rng.normal(0, 0.02, (draws, n))
    differences = np.where(rng.random((draws, n)) < 0.02, 1.0, noise)
    limits = [PairedShares(of).interval for of in differences]
    return float(np.mean([low <= 0.02 <= high for low, high in limits]))


def test_intervals_of_shares_cover_in_a_few_draws() -> None:
    covered = [*_covered_by_shares(100, 100), _rare(100, 100)]
    assert min(covered) > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 100)


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 1000])
def test_intervals_of_shares_cover_in_many_draws(n: int) -> None:
    covered = [*_covered_by_shares(n, 1000), _rare(n, 1000)]
    print(f"n {n}: {min(covered):.3f} to {max(covered):.3f}, rare {covered[-1]:.3f}")
    assert min(covered) >= 0.93 - 2 * math.sqrt(0.93 * 0.07 / 1000)
