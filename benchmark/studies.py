"""Studies: what a finished run, or a trained model, says beyond its table.

Each is of "Robustness via fractal divide and fractal aggregation" (Qian 2021).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmark.components import BEST
from benchmark.data import Dataset, Part, load_dataset
from benchmark.errors import UserError
from benchmark.models import load_saved
from benchmark.records import write, write_text
from benchmark.report import Report
from benchmark.runner import load_run
from benchmark.tables import contradictions
from defenses import BeliefEnsemble, read_card
from defenses.belief import evidence, fractal
from defenses.division import parts
from defenses.dont_care import dont_care
from defenses.saved import CARD

# The assumed bounds of table 6.
BOUNDS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)

# What a don't-care study calls having none of the conditions.
NONE = "none"


@dataclass(frozen=True, eq=False)
class Study:
    """What a study found: a row per line of its table, with shares as fractions (NaN: of nothing),
    a caption, and a figure of matplotlib. `name` is that of its files."""

    name: str
    records: pd.DataFrame
    caption: str
    figure: Any

    def markdown(self) -> str:
        """The table, shares in %, and its caption."""
        shown = self.records.copy()
        for column in self.records.select_dtypes(float):
            values = self.records[column]
            if column == "bound":
                shown[column] = [f"{value:g}" for value in values]
            else:
                shown[column] = ["-" if np.isnan(one) else f"{100 * one:.1f}" for one in values]
        return f"{shown.to_markdown(index=False, disable_numparse=True)}\n\n{self.caption}\n"

    def write(self, folder: Path) -> None:
        """NAME.md, NAME.csv and NAME.png. Raises UserError where they cannot be written."""
        write_text(folder / f"{self.name}.md", self.markdown())
        write_text(folder / f"{self.name}.csv", self.records.to_csv(index=False))
        picture = folder / f"{self.name}.png"
        write(picture, lambda file: self.figure.savefig(file, format="png", dpi=150))


def lipschitz(folder: Path) -> Study:
    """Robustness as predicted under assumed bounds of the local Lipschitz constant, and how often
    the attacks of a run agree (table 6), for each of its defenses with a certificate.

    Raises UserError where the folder holds no run, or no certificate.
    """
    _, manifest, reports = load_run(folder)
    rows = [row for report in reports for row in _predictions(report)]
    if not rows:
        raise UserError(f"no defense of {folder} offers a certificate: run it with one that does")
    records = pd.DataFrame(rows)
    first = reports[0]
    norm = {"l2": "L2", "linf": "L-infinity"}[first.threat.norm]
    attacks = ", ".join(dict.fromkeys(a for report in reports for a in report.measured))
    caption = (
        f"Prediction: % of all {first.total} {manifest['data']['name']} test images that are "
        "classified correctly and whose certified radius, divided by the assumed bound of the "
        f"local Lipschitz constant, is at least {norm} eps {first.threat.eps:g}. Correctness: % of "
        f"those that no attack broke ({attacks or 'none yet'}). Only bound 1 is proven."
    )
    caption += "".join(
        f" CONTRADICTION: {line}: it proves nothing." for line in contradictions(reports)
    )
    return Study("lipschitz", records, caption, _draw_predictions(records))


def _predictions(report: Report) -> Iterator[dict[str, object]]:
    attacked = report.accuracy(BEST) is not None
    for bound in BOUNDS:
        predicted = report.certified_within(bound * report.threat.eps)
        if predicted is None:
            return
        held = int(predicted[report.survivors()].sum())
        known = attacked and bool(predicted.any())
        yield {
            "defense": report.name,
            "bound": bound,
            "prediction": float(predicted.mean()),
            "correctness": held / int(predicted.sum()) if known else np.nan,
        }


def _draw_predictions(records: pd.DataFrame) -> Any:
    figure, axes = _axes(4.5)
    for place, (name, rows) in enumerate(records.groupby("defense", sort=False)):
        colour = f"C{place}"
        axes.plot(rows["bound"], 100 * rows["prediction"], "o-", color=colour, label=str(name))
        axes.plot(rows["bound"], 100 * rows["correctness"], "s--", color=colour)
    axes.set(
        xlabel="assumed bound of the local Lipschitz constant",
        ylabel="predicted robust, and (dashed) correctly so (%)",
        xlim=(max(BOUNDS) + 0.02, min(BOUNDS) - 0.02),
        ylim=(0, 103),
    )
    axes.legend()
    return figure


def dont_care_conditions(
    folder: Path, split: Part, samples: int | None, offset: float, root: Path | None
) -> Study:
    """Which don't-care conditions of section 3.4 hold for the images of a model's own data set, for
    each of its fractal structures and labels, with all outputs moved against the label by `offset`;
    and which explain that the structure classifies robustly.

    Raises UserError or SavedModelError where the folder, or the number of samples, will not do.

    Differs from the source: an image counts for the first condition that holds, in the order of
    levels; there, for that of the training subsets that it was in, which a saved model forgets.
    """
    model, dataset = _ensemble(folder, root)
    images = dataset.train if split == "train" else dataset.test
    if samples is not None and samples > len(images.y):
        raise UserError(
            f"{dataset.name} has {len(images.y)} {split} images, not {samples}: lower samples"
        )
    x, y = images.x[:samples], images.y[:samples]
    with torch.no_grad():
        rows = list(_explanations(model, dataset, x, y, offset))
    if not rows:
        raise UserError("none of these images has a label of a fractal structure: raise samples")
    records = pd.DataFrame(rows)
    uniform = all(len(model.reliability[rows].unique()) == 1 for rows in model.rows)
    caption = (
        f"Fractal structures of {folder.name} on {len(y)} {dataset.name} {split} images, with all "
        f"outputs moved against the label by {offset:g}. Correct: % classified correctly by the "
        "structure as they are; robust: moved. Holds: % for which the condition holds, moved; "
        "robust then: % robust of those; explains: % that are robust and for which it is the first "
        "that holds. Exact: by theorem 1; the others are approximate."
    )
    if not uniform:
        caption += " The subtasks' b differ: theorem 1 does not apply."
    return Study("dont-care", records, caption, _draw_explanations(records))


def _ensemble(folder: Path, root: Path | None) -> tuple[BeliefEnsemble, Dataset]:
    card = read_card(folder)
    model = load_saved(folder).model
    if not isinstance(model, BeliefEnsemble) or max(map(_subtasks, model.frames)) < 2:
        raise UserError(f"{folder} holds no fractal structure: name the model of a fractal defense")
    try:
        name = str(card["data"]["name"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CARD} is not a card of this program") from error
    return model, load_dataset(name, root)


def _explanations(
    model: BeliefEnsemble, dataset: Dataset, x: Tensor, y: Tensor, offset: float
) -> Iterator[dict[str, object]]:
    outputs = model.outputs_of(x)
    for number, frame in enumerate(model.frames):
        # One that is not the chosen of several structures has been trained on nothing.
        if _subtasks(frame) < 2 or not bool(model.fractions[model.rows[number]].any()):
            continue
        groups = (frame.first, frame.second)
        names = ["+".join(dataset.labels[label] for label in group) for group in groups]
        rows, labelled = model.rows[number], [(s, one) for s in (0, 1) for one in groups[s]]
        for side, label in labelled:
            own = outputs[y == label][:, rows]
            if not len(own):
                continue
            moved = own - (1 - 2 * side) * offset
            correct, robust = (_right(model, number, side, g) for g in (own, moved))
            conditions = dont_care(frame.levels, side, own, model.slope[rows], offset)
            conditions[NONE] = ~torch.stack(list(conditions.values())).any(0)
            left = robust
            for name, holds in conditions.items():
                yield {
                    "frame": " against ".join(names),
                    "label": dataset.labels[label],
                    "images": len(own),
                    "correct": _share(correct),
                    "robust": _share(robust),
                    "condition": name,
                    "holds": _share(holds),
                    "robust then": _share(robust[holds]),
                    "explains": _share(left & holds),
                }
                left = left & ~holds


def _subtasks(frame: Any) -> int:
    return sum(frame.levels)


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def _right(model: BeliefEnsemble, number: int, side: int, outputs: Tensor) -> Tensor:
    """Whether one structure, by its outputs (n, k), speaks less against a side than the other."""
    rows, levels = model.rows[number], model.frames[number].levels
    settings = model.slope[rows], model.reliability[rows], model.fractions[rows]
    weights = evidence(outputs, *settings)
    against = fractal([weights[:, part] for part in parts(levels)])
    return against[:, side] > against[:, 1 - side]


def _draw_explanations(records: pd.DataFrame) -> Any:
    bars = records["frame"] + ": " + records["label"]
    figure, axes = _axes(1.5 + 0.4 * bars.nunique())
    reached = dict.fromkeys(bars, 0.0)
    for name, rows in records.groupby("condition", sort=False):
        places = bars[rows.index].tolist()
        widths = (100 * rows["explains"]).tolist()
        lefts = [reached[place] for place in places]
        axes.barh(places, widths, left=lefts, label=str(name))
        reached |= {p: start + w for p, start, w in zip(places, lefts, widths, strict=True)}
    axes.set(xlabel="robust images, by the first condition that holds (%)", xlim=(0, 100))
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _axes(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes
