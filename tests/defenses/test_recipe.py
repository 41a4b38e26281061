from typing import Any

import pytest

from attacks import ThreatModel
from defenses import Recipe, Vanilla


def rates(recipe: Recipe, parts: int = 1000) -> list[float]:
    return [recipe.rate(k / parts) for k in range(parts)]


def test_rates_of_the_schedules() -> None:
    peak = 0.2
    assert set(rates(Vanilla(learning_rate=peak))) == {peak}
    step = rates(Vanilla(learning_rate=peak, schedule="step"))
    assert set(step[:500]) == {peak}
    assert step[500:] == pytest.approx([peak / 10] * 500)
    cosine = Vanilla(learning_rate=peak, schedule="cosine")
    assert [cosine.rate(done) for done in (0.0, 0.5)] == pytest.approx([peak, peak / 2])
    cycle = rates(Vanilla(learning_rate=peak, schedule="one-cycle"))
    assert cycle[0] == pytest.approx(peak / 25)
    assert max(cycle) == pytest.approx(peak) == pytest.approx(cycle[300])
    for fall in (rates(cosine), cycle[300:]):
        assert fall == sorted(fall, reverse=True)
        assert 0 < fall[-1] < peak / 1e4


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": -1},
        {"batch": 0},
        {"learning_rate": 0.0},
        {"weight_decay": -1.0},
        {"momentum": float("nan")},
        {"optimizer": "adamw"},
        {"schedule": "stepwise"},
    ],
)
def test_hyperparameters_out_of_range_are_refused_in_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))) as refusal:
        Vanilla(**options)
    assert "\n" not in str(refusal.value)


def test_vanilla_depends_on_no_threat() -> None:
    assert Vanilla().trains_against(ThreatModel("l2", 1.0)) is None
