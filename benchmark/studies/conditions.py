"""Which don't-care conditions hold for the images of a fractal classifier.

Source: "Robustness via fractal divide and fractal aggregation" (Qian 2021), section 3.4.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from benchmark.columns import percent
from benchmark.data.dataset import Dataset
from benchmark.data.sets import load_dataset
from benchmark.errors import UserError
from benchmark.models.trained import load_saved
from benchmark.spec.run_spec import Part
from benchmark.studies.study import Study, axes
from defenses import BeliefEnsemble, read_card
from defenses.fractal.belief import evidence, fractal
from defenses.fractal.division import parts
from defenses.fractal.dont_care import dont_care
from defenses.training.saved import CARD

# What the study calls it where none of the conditions holds.
NONE = "none"


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
    images = dataset.first(split, samples)
    x, y = images.x[:], images.y
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
    shares = map(str, records.select_dtypes(float))
    printed = {column: records[column].map(percent) for column in shares}
    return Study("dont-care", records, records.assign(**printed), caption, _draw(records))


def _ensemble(folder: Path, root: Path | None) -> tuple[BeliefEnsemble, Dataset]:
    """The model in a folder and the data set that it was made for. Raises UserError where it has no
    fractal structure."""
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
    """A record for each fractal structure, each of its labels and each condition."""
    outputs = model.outputs_of(x)
    for number, frame in enumerate(model.frames):
        # A structure that was not the chosen of several has been trained on nothing.
        if _subtasks(frame) < 2 or not bool(model.fractions[model.rows[number]].any()):
            continue
        groups = (frame.first, frame.second)
        names = ["+".join(dataset.labels[label] for label in group) for group in groups]
        rows = model.rows[number]
        labelled = [(side, label) for side, group in enumerate(groups) for label in group]
        for side, label in labelled:
            of_label = outputs[y == label][:, rows]
            if not len(of_label):
                continue
            # High outputs speak for the first side, low ones for the second: away from the label.
            moved = of_label - (1 - 2 * side) * offset
            correct, robust = (_right(model, number, side, g) for g in (of_label, moved))
            conditions = dont_care(frame.levels, side, of_label, model.slope[rows], offset)
            conditions[NONE] = ~torch.stack(list(conditions.values())).any(0)
            # Each image is explained by the first condition that holds for it.
            left = robust
            for name, holds in conditions.items():
                yield {
                    "frame": " against ".join(names),
                    "label": dataset.labels[label],
                    "images": len(of_label),
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
    """Whether a structure, by its outputs (n, k), speaks less against a side than against the
    other one: (n,)."""
    rows, levels = model.rows[number], model.frames[number].levels
    settings = model.slope[rows], model.reliability[rows], model.fractions[rows]
    weights = evidence(outputs, *settings)
    against = fractal([weights[:, level] for level in parts(levels)])
    return against[:, side] > against[:, 1 - side]


def _draw(records: pd.DataFrame) -> Any:
    """A bar for each structure and label, divided by the conditions that explain its images."""
    bars = records["frame"] + ": " + records["label"]
    figure, plot = axes(1.5 + 0.4 * bars.nunique())
    reached = dict.fromkeys(bars, 0.0)
    for name, rows in records.groupby("condition", sort=False):
        places = bars[rows.index].tolist()
        widths = (100 * rows["explains"]).tolist()
        lefts = [reached[place] for place in places]
        plot.barh(places, widths, left=lefts, label=str(name))
        reached |= {p: start + w for p, start, w in zip(places, lefts, widths, strict=True)}
    plot.set(xlabel="robust images, by the first condition that holds (%)", xlim=(0, 100))
    plot.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure
