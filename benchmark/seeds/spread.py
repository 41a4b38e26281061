"""How much numbers of several trainings differ."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmark.columns import percent


@dataclass(frozen=True)
class Spread:
    """One number of each of several trainings, two at least.

    >>> spread = Spread((0.5, 0.75))
    >>> spread.mean, spread.sd
    (0.625, 0.1767766952966369)
    >>> print(spread)
    62.5 ± 17.7
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.mean(self.values)

    @property
    def sd(self) -> float:
        """The standard deviation of the trainings that these are a sample of: the sum of squares is
        divided by one less than their number."""
        return statistics.stdev(self.values)

    def __str__(self) -> str:
        """Shares as tables print them, in %."""
        return f"{percent(self.mean)} ± {percent(self.sd)}"


def seeds_named(seeds: Sequence[int]) -> str:
    """How tables and captions name some seeds.

    >>> seeds_named([1]), seeds_named([0, 2])
    ('seed 1', 'seeds 0, 2')
    """
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def on_spread(seeds: Sequence[int]) -> str:
    """What a caption says of what ± is."""
    return (
        f"mean ± sample standard deviation (n - 1 in its denominator) over n = {len(seeds)} seeds "
        f"({', '.join(map(str, seeds))}): each defense is trained with each seed, and attacked "
        "with the same one. ± is over trainings, not over samples."
    )
