"""What is proven of a saved model, image by image: that it is robust, or that it is broken."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from attacks import ThreatModel
from benchmark.columns import escaped, frame_csv, frame_markdown
from benchmark.data.sets import load_dataset
from benchmark.errors import UserError
from benchmark.judge.records import write_text
from benchmark.models.trained import load_saved
from benchmark.report.captions import threat_name
from defenses import read_card
from defenses.training.saved import CARD
from defenses.verification.deciding import Decision, Method, Status, decide


@dataclass(frozen=True, eq=False)
class Certified:
    """What was decided about a model, sample by sample.

    model, data  the names of the model and of its data set.
    records      one row per sample, in the order of the data, with the columns index, label,
                 correct (whether the clean image is classified correctly), status ("robust",
                 "broken" or "undecided"), by (what showed it), bound (by how much the label leads
                 at least, by linear bounds alone), distance (from the clean image to the point
                 that breaks it; NaN unless it is broken) and seconds.
    total        how many samples were asked for; there are fewer records after an interruption.
    """

    model: str
    data: str
    threat: ThreatModel
    records: pd.DataFrame
    total: int

    def table(self) -> str:
        """A Markdown table of one row, with counts and percentages by status, and a caption."""
        decided = len(self.records)
        counts = {
            status: int((self.records["status"] == status).sum()) for status in get_args(Status)
        }
        percent = {status: f"{100 * count / decided:.1f}" for status, count in counts.items()}
        accuracy = percent["robust"]
        if counts["undecided"]:
            highest = 100 * (counts["robust"] + counts["undecided"]) / decided
            accuracy = f"[{accuracy}, {highest:.1f}]"
        row = {
            "model": self.model,
            "natural %": f"{100 * self.records['correct'].mean():.1f}",
            "proven robust %": accuracy,
            **{status: f"{counts[status]} ({percent[status]} %)" for status in counts},
            "seconds": f"{self.records['seconds'].sum():.1f}",
        }
        by_solver = int((self.records["by"] == "solver").sum())
        solver = (
            f" {by_solver} of them are known by the solver alone, up to its tolerance of 1e-6."
            if by_solver
            else ""
        )
        caption = (
            f"The first {decided} test images of {self.data}, {threat_name(self.threat)}. Robust: "
            "no point of the ball and the box ties or changes the label, whatever rounding does in "
            f"the proof.{solver} Broken: misclassified, as it is or at a point that was found and "
            "checked. Undecided: out of time, or too close to a tie; the robust accuracy is then "
            "an interval."
        )
        table = frame_markdown(pd.DataFrame([row]))
        return f"{table}\n\n{escaped(caption)}"

    def write(self, path: Path) -> None:
        """Write the records as CSV. Raises UserError where the file cannot be written."""
        write_text(path, frame_csv(self.records))


def certify_model(
    folder: Path,
    data: str | None,
    threat: ThreatModel,
    samples: int | None,
    method: Method,
    seconds: float,
    root: Path | None,
    progress: bool,
) -> Certified:
    """Decide for the first test images whether any perturbation breaks a saved model.

    folder   holds the model, as training leaves it.
    data     the name of the data set; by default, the one that the model's card names.
    samples  how many images to take; all by default.
    method   "crown" for linear bounds alone, "branch" for branch and bound after them.
    seconds  that an image may take, beside an attack and linear bounds, roughly.
    root     where data sets are looked for first.

    After an interruption, the records are those of the images that were decided before it. Raises
    UserError or SavedModelError where the folder, the data or the network cannot be used.
    """
    # Load the model and its data, and see that they fit.
    card = read_card(folder)
    model = load_saved(folder).model
    try:
        made_for, defense = str(card["data"]["name"]), str(card["defense"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CARD} is not a card of this program") from error
    dataset = load_dataset(data or made_for, root)
    if list(dataset.shape) != card["shape"] or dataset.classes != card["classes"]:
        raise UserError(f"{folder} is no model of {dataset.name}: name the data it was made for")
    if dataset.frozen is not None:
        raise UserError(f"{dataset.name} has frozen features, and the ball moves all")
    test = dataset.first("test", samples)
    x, y = test.x[:], test.y

    # Decide, image by image.
    try:
        results = decide(model, x, y, threat, seconds, method)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error
    with torch.no_grad():
        correct = (model.cpu()(x).argmax(1) == y).numpy()
    records = _records(results, x, y, correct, threat, progress)
    if records.empty:
        raise KeyboardInterrupt
    return Certified(defense, dataset.name, threat, records, len(y))


def _records(
    results: Iterator[Decision],
    x: Tensor,
    y: Tensor,
    correct: NDArray[np.bool_],
    threat: ThreatModel,
    progress: bool,
) -> pd.DataFrame:
    """One row for each image that is decided before the end or an interruption."""
    rows: list[dict[str, object]] = []
    tally: Counter[str] = Counter()
    shown = tqdm(results, total=len(y), unit="img", disable=None if progress else True, leave=False)
    # An interruption ends the loop; the rows made before it are valid.
    with suppress(KeyboardInterrupt), shown as bar:
        for i, result in enumerate(bar):
            distance = np.nan
            if result.point is not None:
                distance = float(threat.distance(result.point[None], x[i : i + 1]))
            rows.append(
                {
                    "index": i,
                    "label": int(y[i]),
                    "correct": bool(correct[i]),
                    "status": result.status,
                    "by": result.by,
                    "bound": result.bound,
                    "distance": distance,
                    "seconds": round(result.seconds, 4),
                }
            )
            tally[result.status] += 1
            bar.set_postfix(tally, refresh=False)
    return pd.DataFrame(rows)
