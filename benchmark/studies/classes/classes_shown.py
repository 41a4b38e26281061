"""How a study of classes reads: its table, its caption, and figures 1, 3 and 4 of RoBin."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmark.columns import percent
from benchmark.data.choice import Choice
from benchmark.report.captions import NORMS, chosen, on_missing, threat_name
from benchmark.spec.components import BEST, NATURAL
from benchmark.spec.roster import recipe_of
from benchmark.spec.run_spec import RunSpec

# The distances of the closest misclassified points of all orders, by number of classes: 0 where an
# image is misclassified clean, infinite where no misclassified point is known.
Distances = Mapping[int, NDArray[np.float64]]

_BINS = 40


def table(records: pd.DataFrame, texts: Mapping[float, str]) -> pd.DataFrame:
    """A row per defense, attack and eps, and a column per number of classes: mean and standard
    deviation over orders, and in brackets the mean balanced accuracy. `texts` is how each eps was
    written."""
    names = ["defense", "attack", "eps"]
    printed = records.assign(
        eps=[texts.get(eps, "0") for eps in records["eps"]],
        balanced=(records["first"] + records["rest"]) / 2,
    )
    rows = []
    for keys, group in printed.groupby(names, sort=False):
        row = dict(zip(names, keys, strict=True))
        for count, orders in group.groupby("classes"):
            accuracy, balanced = orders["accuracy"], percent(orders["balanced"].mean())
            spread = f" ± {percent(accuracy.std())}" if len(orders) > 1 else ""
            row[f"{count} classes"] = f"{percent(accuracy.mean())}{spread} ({balanced})"
        rows.append(row)
    return pd.DataFrame(rows)


def caption(
    spec: RunSpec,
    data: str,
    samples: int,
    choice: Choice | None,
    orders: int,
    rest: float,
    distances: Distances,
    flags: Sequence[Mapping[str, str]],
) -> str:
    """What the numbers are over. `rest` is the mean share of samples that are not of the first
    class; `flags` are those of each model."""
    attacked, *others = spec.defenses
    against = recipe_of(attacked).trains_against(spec.threat)
    over = f"mean ± standard deviation over {orders} orders" if orders > 1 else "one random order"
    images = chosen(samples, choice, f"{data} {spec.split} images")
    text = on_missing(choice) + (
        f"Accuracy in % over {images}, on one binary task, the first class "
        f"against the rest: {over} of the classes. A model of J classes is trained on the first "
        "J - 1 and on one that holds all others. A sample counts as robust if it is classified "
        f"correctly and the attack of the row, within its {NORMS[spec.norm]} eps, does not turn it "
        "from one side to the other; best-attack: if no point that any attack found, at whatever "
        "eps, is so close and does. Samples that are misclassified clean count as broken and are "
        f"not attacked. Always answering the rest is right on {percent(rest)}. In brackets: the "
        "mean of the accuracies on both sides, which is 50.0 for always giving one answer."
    )
    if against is not None:
        text += f" {attacked.label} is trained for {threat_name(against)}."
    text += "".join(f" {other.label} is measured clean only." for other in others)
    if distances:
        text += (
            " Mean distance of the closest misclassified points found, of samples that are "
            "classified correctly and have one: "
        )
        text += ", ".join(map(_mean_distance, distances, distances.values())) + "."
    counts = Counter(flag for of_model in flags for flag in of_model.items())
    for (code, explanation), count in sorted(counts.items()):
        text += f"\n\n{code}, {count} of {len(flags)} models: {explanation}."
    return text


def _known(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distances of images that are classified correctly and have a misclassified point."""
    return distance[(distance > 0) & np.isfinite(distance)]


def _mean_distance(count: int, distance: NDArray[np.float64]) -> str:
    """What the caption says of the distances with one number of classes."""
    known = _known(distance)
    mean = f"{known.mean():.3f}" if len(known) else "none"
    return f"{mean} with {count} classes ({int(np.isinf(distance).sum())} have none)"


def draw(
    records: pd.DataFrame,
    spec: RunSpec,
    texts: Mapping[float, str],
    rest: float,
    distances: Distances,
) -> Any:
    """Accuracy against eps, a line per number of classes (figure 3); against the number of classes,
    a line per eps (figure 4); where there are some, histograms of distances (figure 1)."""
    from matplotlib.figure import Figure

    panels = 3 if distances else 2
    figure = Figure(figsize=(7, 4 * panels), layout="constrained")
    places = figure.subplots(panels)
    for axes in places:
        axes.grid(alpha=0.3)
    attacked, *others = (component.label for component in spec.defenses)
    of_attacked = records["defense"] == attacked
    spread = _spread(records[of_attacked & records["attack"].isin([NATURAL, BEST])])
    _against_eps(places[0], spread, NORMS[spec.norm], rest)
    _against_classes(places[1], spread, texts)
    for label in others:
        spread = _spread(records[records["defense"] == label])
        _clean(places[1].twinx(), spread, label.partition("/")[0])
    if distances:
        _histograms(places[2], distances, NORMS[spec.norm])
    return figure


def _spread(records: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over orders, in %."""
    groups = records.groupby(["classes", "eps"])["accuracy"]
    return (100 * groups.agg(["mean", "std"])).fillna(0).reset_index()


def _against_eps(axes: Any, spread: pd.DataFrame, norm: str, rest: float) -> None:
    for count, rows in spread.groupby("classes"):
        axes.plot(rows["eps"], rows["mean"], "o-", label=f"{count} classes")
    axes.axhline(100 * rest, color="grey", linestyle=":", label="always the rest")
    axes.set(
        xlabel=f"eps ({norm})",
        ylabel="robust accuracy (%)",
        title="The first class against the rest",
    )
    axes.legend(loc="upper right")


def _against_classes(axes: Any, spread: pd.DataFrame, texts: Mapping[float, str]) -> None:
    for eps, text in texts.items():
        rows = spread[spread["eps"] == eps]
        axes.errorbar(
            rows["classes"], rows["mean"], rows["std"], fmt="o-", capsize=3, label=f"eps {text}"
        )
    axes.set(xlabel="number of classes trained on", ylabel="robust accuracy (%)")
    axes.set_xticks(sorted(spread["classes"].unique()))
    # Above, since lines may be anywhere within, and a second axis is at the right.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)


def _clean(axes: Any, spread: pd.DataFrame, name: str) -> None:
    axes.errorbar(spread["classes"], spread["mean"], spread["std"], fmt="ks--", capsize=3)
    axes.set_ylabel(f"clean accuracy of {name} (%), dashed")


def _histograms(axes: Any, distances: Distances, norm: str) -> None:
    known = {count: _known(distance) for count, distance in distances.items()}
    largest = max(float(distance.max(initial=0)) for distance in known.values())
    bins = np.linspace(0, largest or 1, _BINS)
    for count, distance in known.items():
        axes.hist(distance, bins=bins, alpha=0.5, label=f"{count} classes")
    axes.set(xlabel=f"{norm} distance of the closest misclassified point", ylabel="images")
    axes.legend(loc="upper right")
