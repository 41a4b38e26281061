"""How a study that is a spec is shown: its table, what is said of it, its picture."""

import math
from collections.abc import Iterable
from typing import Any, Final

import pandas as pd

from benchmark.columns import NONE, eps_text, percent
from benchmark.report.captions import CHOSEN, NORMS, is_drawn, on_order, threat_name
from benchmark.report.report import Report
from benchmark.seeds.spread import Spread, on_spread
from benchmark.spec.components import BEST, NATURAL, SAVED
from benchmark.spec.roster import configured
from benchmark.spec.source_names import without_places
from benchmark.studies.outputs import FIRST
from benchmark.studies.study import flagged
from benchmark.studies.sweep.sweep_spec import SweepSpec

TEST: Final = "test"
TRAIN: Final = "train"

_INTERVAL = " [95% interval]"
_REPORTED = " (reported)"

# What captions say of each measure.
_SAID = {
    TRAIN: "train: over as many training images, chosen alike, with the labels trained on.",
    "predictions": (
        "predictions: correct is what the model says of the clean image (robustness with respect "
        "to predictions)."
    ),
    "unbounded": "unbounded: perturbed images may leave [0, 1].",
    "gap": "gap: mean confidence gap, the largest logit less the second largest.",
    "jacobian": (
        "jacobian: mean spectral norm of the Jacobian of the logits at the first images, at most "
        f"{FIRST}."
    ),
    "inter-class-distance": (
        "inter-class-distance: mean L2 distance of a class from the rest, by the nearest 10% of "
        "either (Ding et al. 2019, appendix D.2.1)."
    ),
    "log-volume": (
        "log-volume: log2 of the volume that the threat leaves around an image, mean over images."
    ),
}


def table(spec: SweepSpec, records: pd.DataFrame) -> pd.DataFrame:
    """A line for each point and defense; a column for each measure and setting, and beside it what
    a paper reported."""
    axes = list(spec.over)
    keys = [*axes, "defense"]
    if spec.seeds:
        records = over_seeds(spec, records)
    columns = [
        measure if setting == TEST else f"{measure}, {setting}"
        for measure, setting in zip(records["measure"], records["setting"], strict=True)
    ]
    texts = records.assign(column=columns, text=[_text(row) for row in records.itertuples()])
    lines = texts.loc[texts["defense"] != "", keys].drop_duplicates()
    reported = _reported(spec, keys)
    repeated = _repeated(records)
    measured = [column for column in dict.fromkeys(columns) if column not in repeated]
    for column in dict.fromkeys([*measured, *reported.columns.drop(keys)]):
        cells = texts[texts["column"] == column]
        if len(cells):
            # Numbers of the data, and not of a defense, stand in the lines of all defenses.
            on = keys if cells["defense"].all() else axes
            lines = lines.merge(cells[[*on, "text"]], "left", on).rename(columns={"text": column})
        if column in reported:
            beside = reported[[*keys, column]].rename(columns={column: f"{column}{_REPORTED}"})
            lines = lines.merge(beside, "left", keys)
    best = BEST if spec.seeds else f"{BEST}{_INTERVAL}"
    return lines.fillna(NONE).rename(columns={BEST: best})


def over_seeds(spec: SweepSpec, records: pd.DataFrame) -> pd.DataFrame:
    """One row for the numbers of all seeds: `value` has their mean, and `sd` their sample standard
    deviation. Both are NaN unless each seed has a number, and best-attack over the same attacks."""
    of_row = [*spec.over, "defense", "setting"]
    groups = list(records.groupby([*of_row, "measure"], sort=False))
    counts = [int(group["value"].count()) for _, group in groups]
    # What failed with some seeds, and not with others, makes best-attack another thing with each.
    unlike = {
        at[:-1]
        for (at, group), count in zip(groups, counts, strict=True)
        if group["low"].notna().any() and count < len(spec.seeds)
    }
    rows = []
    for (at, group), count in zip(groups, counts, strict=True):
        is_whole = count == len(spec.seeds) and not (at[-1] == BEST and at[:-1] in unlike)
        spread = Spread(tuple(group["value"])) if is_whole else None
        mean, sd = (spread.mean, spread.sd) if spread else (math.nan, math.nan)
        rows.append([*at, mean, sd, group["low"].max()])
    return pd.DataFrame(rows, columns=[*of_row, "measure", "value", "sd", "low"])


def _text(row: Any) -> str:
    """A number as the table has it: shares, which have an interval, in %."""
    if pd.isna(row.value):
        return NONE if row.measure == "jacobian" else "error"
    if hasattr(row, "sd"):
        if pd.notna(row.low):
            return f"{percent(row.value)} ± {percent(row.sd)}"
        # Numbers of the data are the same with each seed, unless that chose other images.
        is_alike = row.defense == "" and row.sd == 0
        return f"{row.value:.4g}" if is_alike else f"{row.value:.4g} ± {row.sd:.2g}"
    if pd.isna(row.low):
        return f"{row.value:.4g}"
    if (row.measure, row.setting) == (BEST, TEST):
        return f"{percent(row.value)} [{percent(row.low)}, {percent(row.high)}]"
    return percent(row.value)


def _repeated(records: pd.DataFrame) -> set[str]:
    """The columns of the only attack, which say what those of best-attack do."""
    attacks = set(records.loc[records["low"].notna(), "measure"]) - {NATURAL, BEST}
    if len(attacks) != 1:
        return set()
    (only,) = attacks
    return {only, *(f"{only}, {setting}" for setting in records["setting"])}


def _reported(spec: SweepSpec, keys: list[str]) -> pd.DataFrame:
    """What a paper reports, as text."""
    # Keys as text before pandas makes 1 beside 0.25 into 1.0.
    rows = [
        {column: str(value) if column in keys else value for column, value in row.items()}
        for row in (spec.reported.rows if spec.reported else [])
    ]
    return pd.DataFrame(rows, columns=None if rows else keys).astype(str).replace("nan", NONE)


def caption(spec: SweepSpec, records: pd.DataFrame, reports: Iterable[Report]) -> str:
    """What the numbers are over."""
    reports = list(reports)
    of_test = (records["setting"] == TEST) & (records["measure"] == NATURAL)
    images = sorted(set(records.loc[of_test, "images"]))
    counts = " to ".join(str(int(count)) for count in dict.fromkeys((images[0], images[-1])))
    attacks = dict.fromkeys(label for report in reports for label in report.measured)
    points = spec.points().values()
    balls = dict.fromkeys(threat_name(point.threat) for point in points)
    within = f" and within {' or '.join(balls)}" if attacks else ""
    ended = spec.about.endswith((".", "?", "!"))
    text = f"{spec.about}{'' if ended else '.'} " if spec.about else ""
    of = f"{without_places(spec.base)}{_chosen(reports)}"
    text += f"Accuracy in % over {counts} test images of {of}, natural{within}."
    text += "".join(map(_explained, spec.over.items()))
    text += _on_seeds(spec, reports) if spec.seeds else ""
    if not any(defense.name.startswith(SAVED) for point in points for defense in point.defenses):
        text += " Models are trained on the training images of the same data."
    if attacks:
        text += (
            f" {BEST}: classified correctly and broken by no attack ({', '.join(attacks)})."
            + on_order(reports[:1], "column")
        )
    text += "".join(f" {_SAID[measure]}" for measure in spec.measures)
    if spec.reported:
        text += f"{_REPORTED.replace('(', '').replace(')', '')}: {spec.reported.source}."
    return text + flagged(reports)


def _on_seeds(spec: SweepSpec, reports: Iterable[Report]) -> str:
    """What a caption says of several seeds, and of what ± and bars are."""
    untrained = dict.fromkeys(
        defense.label
        for point in spec.points().values()
        for defense in point.defenses
        if not configured(defense).is_trained
    )
    text = f" Numbers are {on_spread(spec.seeds)} Bars in the picture are ± too."
    if untrained:
        text += f" {', '.join(untrained)}: not trained here, so that only the attacks differ."
    if any(is_drawn(report) for report in reports):
        text += " With each seed other images are chosen, which is in ± too."
    return text


def _chosen(reports: Iterable[Report]) -> str:
    """How the images of some reports were chosen, where that is not all."""
    ways = dict.fromkeys(
        CHOSEN[report.choice.choose]
        for report in reports
        if report.choice and report.total < report.choice.of
    )
    return f" ({', '.join(ways)})" if ways else ""


def _explained(axis: tuple[str, Any]) -> str:
    """What the labels of an axis stand for, where it is a mapping."""
    name, values = axis
    if not isinstance(values, dict):
        return ""
    meanings = [
        f"{label} is {', '.join(f'{k} {v}' for k, v in settings.items()) or 'as it is'}"
        for label, settings in values.items()
    ]
    return f" {name}: {'; '.join(meanings)}."


def draw(spec: SweepSpec, records: pd.DataFrame) -> Any:
    """Natural accuracy (dashed) and best-attack along the first axis, with bars for the standard
    deviation over several seeds; a panel for the training images where these were measured."""
    from matplotlib.figure import Figure

    if spec.seeds:
        records = over_seeds(spec, records)
    first, *others = spec.over
    panels = [setting for setting in (TEST, TRAIN) if setting in set(records["setting"])]
    points = spec.points().values()
    balls = dict.fromkeys(f"{NORMS[point.norm]} {eps_text(point.eps)}" for point in points)
    figure = Figure(figsize=(7, 4.2 * len(panels) + 0.6), layout="constrained")
    for plot, setting in zip(
        figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True
    ):
        of_panel = records[(records["setting"] == setting) & (records["defense"] != "")]
        for place, (name, rows) in enumerate(of_panel.groupby(["defense", *others], sort=False)):
            label = ", ".join(map(str, name))
            for measure, style in ((BEST, "o-"), (NATURAL, "s--")):
                line = rows[rows["measure"] == measure]
                if len(line):
                    drawn = f"{label}: {measure}" if setting == TEST else None
                    plot.errorbar(
                        _places(line[first]), 100 * line["value"],
                        100 * line["sd"] if spec.seeds else None, fmt=style,
                        color=f"C{place % 10}", label=drawn, markersize=4, capsize=3,
                    )  # fmt: skip
        plot.set(xlabel=first, ylabel=f"accuracy on {setting} images (%)", ylim=(-2, 102))
        plot.grid(alpha=0.3)
    title = f"{without_places(spec.base)}, {' or '.join(balls)}"
    figure.suptitle(title, fontsize="medium")
    figure.legend(loc="outside lower center", fontsize="small", ncols=2)
    return figure


def _places(labels: "pd.Series[str]") -> list[Any]:
    """Numbers where all labels are numbers, the labels themselves otherwise."""
    numbers = pd.to_numeric(labels, errors="coerce")
    finite = numbers.notna().all() and (numbers.abs() != float("inf")).all()
    return list(numbers) if finite else list(labels)
