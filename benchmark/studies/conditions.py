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
from benchmark.data.sets import Dataset, load_dataset
from benchmark.errors import UserError
from benchmark.models.obtain import load_saved
from benchmark.spec.run_spec import Part
from benchmark.studies.study import Study, axes
from defenses import BeliefEnsemble, read_card
from defenses.fractal.belief import evidence, fractal
from defenses.fractal.division import parts
from defenses.fractal.dont_care import dont_care
from defenses.training.saved import CARD

# What a study calls having none of the conditions.
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
    x, y = images.x, images.y
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
    shown = {column: records[column].map(percent) for column in shares}
    return Study("dont-care", records, records.assign(**shown), caption, _draw(records))


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


def _draw(records: pd.DataFrame) -> Any:
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
