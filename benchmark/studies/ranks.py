"""How stable the order of defenses is when the data change and their meaning does not."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmark.columns import percent
from benchmark.errors import UserError
from benchmark.report.report import Report
from benchmark.spec.components import BEST, NATURAL
from benchmark.studies.study import Study, axes, flagged
from benchmark.studies.sweep.sweep_runs import load_sweep
from benchmark.studies.sweep.sweep_spec import ORIGINAL, VARIANT

# Resamples of the images, drawn from this seed.
_DRAWS, _SEED = 1000, 0

Counts = NDArray[np.int64]


def ranks(folder: Path) -> Study:
    """The rank of each defense by best-attack on each variant of a study, and Kendall's tau (b, for
    ties) of each variant's order with that on the original data, with its mean over the variants.

    Intervals are of 95%, by a percentile bootstrap over images, the same ones for all defenses and
    variants. Models are taken as they are: what other seeds of training would give is not in them.

    Records have one row per number: variant, defense (empty for tau), measure, value, low, high.
    Tau between two resamples of the original images says what chance alone leaves of the order.

    Raises UserError where the folder holds no study over variants alone, the original data among
    them, of two defenses or more, on images with the same labels, or where an attack failed.
    """
    spec, points = load_sweep(folder)
    if list(spec.grid) != [VARIANT]:
        axes = ", ".join(spec.grid)
        raise UserError(f"{folder} is a study over {axes}: ranks need one over {VARIANT} alone")
    robust = {
        variant: {report.name: _robust(report) for report in reports}
        for (variant,), reports in points.items()
    }
    if ORIGINAL not in robust:
        raise UserError(f"the study of {folder} lacks the variant {ORIGINAL!r}, to compare with")
    robust = {ORIGINAL: robust[ORIGINAL], **robust}
    names = list(robust[ORIGINAL])
    all_reports = [report for reports in points.values() for report in reports]
    labels = [report.frames[NATURAL]["label"] for report in all_reports]
    if len(names) < 2 or len(robust) < 2:
        raise UserError("ranks need two defenses and two variants at least")
    if not all(map(labels[0].equals, labels)):
        raise UserError("ranks need variants of the same images: these have other labels")
    verdicts = np.stack([[of_variant[name] for name in names] for of_variant in robust.values()])
    records = pd.DataFrame(list(_measure(verdicts, list(robust), names)))
    caption = _caption(records, len(labels[0])) + flagged(all_reports)
    return Study("ranks", records, _table(records), caption, _draw(records))


def _robust(report: Report) -> NDArray[np.bool_]:
    """The samples (n,) that best-attack accuracy counts. Raises UserError where there is none."""
    robust = report.robust_to(BEST)
    if report.failed or robust is None:
        why = f"{report.failed[0]} failed" if report.failed else "it was not attacked"
        raise UserError(f"{report.name} has no rank by {BEST}: {why}")
    return robust


def _measure(
    verdicts: NDArray[np.bool_], variants: list[str], names: list[str]
) -> Iterator[dict[str, object]]:
    """All records, from verdicts (variants, defenses, images), the original data first."""
    # The same resamples of the images for all defenses and variants.
    images = verdicts.shape[2]
    draws = np.random.default_rng(_SEED).multinomial(images, np.full(images, 1 / images), _DRAWS)
    counts, resampled = verdicts.sum(2), np.einsum("bn,vdn->bvd", draws, verdicts, optimize=True)
    # Accuracy and rank of each defense on each variant.
    ranks_of_all, ranks_of_draws = _ranks(counts), _ranks(resampled)
    for v, variant in enumerate(variants):
        for d, name in enumerate(names):
            keys = {"variant": variant, "defense": name}
            shares = resampled[:, v, d] / images
            yield keys | _with_interval(BEST, counts[v, d] / images, shares)
            yield keys | _with_interval("rank", ranks_of_all[v, d], ranks_of_draws[:, v, d])
    # How far the order on each variant agrees with that on the original data.
    taus = np.array([_tau(counts[0], of_variant) for of_variant in counts[1:]])
    drawn = np.array([[_tau(draw[0], of_variant) for of_variant in draw[1:]] for draw in resampled])
    for v, variant in enumerate(variants[1:]):
        yield {"variant": variant, "defense": ""} | _with_interval("tau", taus[v], drawn[:, v])
    of_all = {"variant": "all variants", "defense": ""}
    yield of_all | _with_interval("tau", _mean(taus), np.array([*map(_mean, drawn)]))
    # How far the orders on two resamples of the original data agree, by chance alone.
    by_chance = np.array(
        [_tau(a[0], b[0]) for a, b in zip(resampled[::2], resampled[1::2], strict=True)]
    )
    of_original = {"variant": ORIGINAL, "defense": ""}
    yield of_original | _with_interval("tau between resamples", _mean(by_chance), by_chance)


def _ranks(counts: Counts) -> Counts:
    """Ranks along the last dimension, from 1 for the highest count; equal counts share a rank."""
    higher: Counts = (counts[..., None, :] > counts[..., :, None]).sum(-1)
    return higher + 1


def _tau(first: Counts, second: Counts) -> float:
    """Kendall's tau between two orders of the defenses; NaN where all are level in either."""
    from scipy.stats import kendalltau

    return float(kendalltau(first, second).statistic)


def _mean(draws: NDArray[Any]) -> float:
    """The mean of the numbers that are not NaN; NaN where all are."""
    return float("nan") if np.isnan(draws).all() else float(np.nanmean(draws))


def _with_interval(measure: str, value: float, draws: NDArray[Any]) -> dict[str, object]:
    """A number, and its interval by what resamples gave, as a part of a record."""
    known, low, high = draws[~np.isnan(draws)], math.nan, math.nan
    if len(known):
        # The ends are draws themselves: there is no rank between two ranks.
        low, high = np.percentile(known, [2.5, 97.5], method="inverted_cdf")
    return {"measure": measure, "value": float(value), "low": float(low), "high": float(high)}


def _table(records: pd.DataFrame) -> pd.DataFrame:
    """A line for each variant, a column for each defense, and tau."""
    lines = []
    for variant, rows in records.groupby("variant", sort=False):
        line = {"variant": str(variant)}
        for name, of_defense in rows[rows["defense"] != ""].groupby("defense", sort=False):
            share, rank = (
                of_defense[of_defense["measure"] == measure].iloc[0] for measure in (BEST, "rank")
            )
            among = f"{rank.low:.0f}-{rank.high:.0f}" if rank.low < rank.high else f"{rank.low:.0f}"
            line[str(name)] = f"{rank.value:.0f} ({among}): {percent(share.value)}"
        for tau in rows[rows["measure"] == "tau"].to_dict("records"):
            low, high = tau["low"], tau["high"]
            line["tau"] = f"{tau['value']:.2f} [{low:.2f}, {high:.2f}]".replace(
                "nan [nan, nan]", "-"
            )
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def _caption(records: pd.DataFrame, images: int) -> str:
    of_all = records[records["variant"] == "all variants"].iloc[0]
    (chance,) = records.loc[records["measure"] == "tau between resamples", "value"]
    return (
        f"Rank by {BEST} (95% interval of the rank): {BEST} accuracy in %, over {images} images of "
        "each variant. tau: Kendall's, of the order of the defenses with that on the original "
        "data, 1 if it is the same, -1 if it is reversed and - where all are level; its mean over "
        f"the other variants is {of_all.value:.2f}. Between two resamples of the original images "
        f"it is {chance:.2f} on average, by chance alone. Intervals: bootstrap over images, the "
        f"same ones for all defenses and variants, {_DRAWS} draws, seed {_SEED}; they lie low "
        "where defenses are close, as resamples shuffle these, and training is not repeated."
    )


def _draw(records: pd.DataFrame) -> Any:
    """The rank of each defense on each variant, with its interval."""
    ranked = records[records["measure"] == "rank"]
    figure, plot = axes(4.5)
    names = list(ranked["defense"].unique())
    for place, (name, rows) in enumerate(ranked.groupby("defense", sort=False)):
        # Side by side, so that intervals do not hide each other.
        x = np.arange(len(rows)) + 0.06 * (place - (len(names) - 1) / 2)
        reach = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        plot.plot(x, rows["value"], color=f"C{place}", alpha=0.25)
        plot.errorbar(
            x, rows["value"], reach, fmt="o", color=f"C{place}", capsize=3, label=str(name)
        )
    plot.set_xticks(range(ranked["variant"].nunique()), list(ranked["variant"].unique()))
    plot.set(ylabel=f"rank by {BEST}", yticks=range(1, len(names) + 1))
    plot.invert_yaxis()
    figure.legend(loc="outside lower center", fontsize="small", ncols=3)
    return figure
