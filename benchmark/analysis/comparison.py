"""Rows on the same samples, compared pair by pair: by how much they differ, and how surely."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from benchmark.analysis.comparable import broken_by, check_comparable, counted
from benchmark.analysis.comparison_text import rendered
from benchmark.analysis.row_pairs import Pair, paired_up
from benchmark.columns import AsMarkdown
from benchmark.errors import UserError, did_you_mean
from benchmark.report.accuracy import Accuracy
from benchmark.report.measurements import Measurements
from benchmark.spec.components import BEST, CERTIFIED, NATURAL


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(AsMarkdown):
    """Rows on the same samples, compared pair by pair.

    of     which accuracy is compared: "natural", "certified", "best-attack" or that of an attack.
    rows   the reports, by the names of their rows.
    pairs  each two of them, or each with the one that all are compared with, which is the second.

    >>> import torch
    >>> from benchmark.direct.evaluate import evaluate
    >>> x, y = torch.rand(40, 1, 1, 2), torch.zeros(40, dtype=torch.long)
    >>> x[:, :, :, 0] += 1  # the two pixels are the logits
    >>> good, bad = torch.nn.Flatten(), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Tanh())
    >>> reports = [
    ...     evaluate(model, x / 2, y, eps=eps, attacks=["pgd"], name=name)
    ...     for model, eps, name in [(good, 0.1, "a"), (bad, 0.1, "b")]
    ... ]
    >>> (pair,) = compare(*reports).pairs
    >>> pair.difference, pair.p, pair.verdict
    (0.0, 1.0, 'not told apart')
    """

    of: str
    rows: Mapping[str, Measurements]
    pairs: tuple[Pair, ...]

    @cached_property
    def accuracies(self) -> dict[str, Accuracy]:
        """The accuracy of each row, with its interval, by its name."""
        accuracies = {name: report.accuracy(self.of) for name, report in self.rows.items()}
        return {name: accuracy for name, accuracy in accuracies.items() if accuracy is not None}

    def to_frame(self) -> pd.DataFrame:
        """One row for each pair: the accuracies of both, and what `Pair` has, where `only_first`
        and `only_second` are how many samples there are of either kind."""
        return pd.DataFrame(
            {
                "of": self.of,
                "first": pair.first,
                "second": pair.second,
                "first_accuracy": self.accuracies[pair.first].value,
                "second_accuracy": self.accuracies[pair.second].value,
                "difference": pair.difference,
                "low": pair.interval[0],
                "high": pair.interval[1],
                "only_first": len(pair.only_first),
                "only_second": len(pair.only_second),
                "p": pair.p,
                "p_holm": pair.p_holm,
                "verdict": pair.verdict,
            }
            for pair in self.pairs
        )

    def changed(self) -> pd.DataFrame:
        """One row for each pair and each sample that does not count the same for both: the place of
        the sample and its label; how much it counts for either, 1, 0, or a share of draws; and what
        broke it for either ("natural" where it is misclassified clean)."""
        frames = [self._changed(pair) for pair in self.pairs]
        return pd.concat(frames, ignore_index=True)

    def _changed(self, pair: Pair) -> pd.DataFrame:
        """The rows of `changed` for one pair."""
        index = np.sort(np.concatenate([pair.only_first, pair.only_second]))
        first, second = self.rows[pair.first], self.rows[pair.second]
        return pd.DataFrame(
            {
                "first": pair.first,
                "second": pair.second,
                "index": index,
                "label": first.frames[NATURAL]["label"].to_numpy()[index],
                "first_counts": counted(pair.first, first, self.of)[index],
                "second_counts": counted(pair.second, second, self.of)[index],
                "first_broken_by": broken_by(first, self.of, index),
                "second_broken_by": broken_by(second, self.of, index),
            }
        )

    def to_markdown(self) -> str:
        """The rows with their accuracies, a Markdown table of the pairs, and what its numbers mean,
        in lines of up to 80 characters."""
        return rendered(self.of, self.rows, self.accuracies, self.pairs)


def compare(*reports: Measurements, of: str = BEST, against: str | None = None) -> Comparison:
    """Compare reports on the same samples, each two of them.

    reports  two or more, as `evaluate` returns them; a name that comes again gets a number.
    of       which accuracy: "natural", "certified", "best-attack" (the default), or an attack by
             its label.
    against  the name of the report that all others are compared with, in place of each two.

    The interval of a difference is Tango's (1998), and p is by McNemar's exact test. Randomised
    models count samples by shares of draws: interval and p are then normal, over paired differences
    (Bonett and Price 2012). p_holm is corrected by Holm's method for all pairs together. Attacks
    need not be the same: `to_markdown` says where they are not.

    Raises UserError where reports are not of the same samples and labels under one threat, as far
    as their records tell, or lack records or the accuracy.
    """
    rows: dict[str, Measurements] = {}
    for report in reports:
        if not isinstance(report, Measurements):
            raise UserError(f"compare takes reports of evaluate, not {type(report).__name__}")
        name, number = report.name, 2
        while name in rows:
            name, number = f"{report.name}-{number}", number + 1
        rows[name] = report
    return compared(rows, of, against)


def compared(
    rows: Mapping[str, Measurements], of: str = BEST, against: str | None = None
) -> Comparison:
    """Compare reports by the names of their rows: see `compare`."""
    if len(rows) < 2:
        raise UserError("there is nothing to compare: name two rows or more")
    if against is not None and against not in rows:
        hint = did_you_mean(against, rows, f"there are {', '.join(rows)}")
        raise UserError(f"no row {against!r}: {hint}")
    check_comparable(rows)
    shares = {name: counted(name, report, of) for name, report in rows.items()}
    # Radii are certified once, whatever a model draws.
    drawn = {name for name, report in rows.items() if report.draws and of != CERTIFIED}
    if against is None:
        names = list(itertools.combinations(rows, 2))
    else:
        names = [(name, against) for name in rows if name != against]
    return Comparison(of, rows, paired_up(shares, names, drawn))
