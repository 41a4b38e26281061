"""What is proven of a saved model, rather than measured: exact robust accuracy."""

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
from benchmark.data.sets import load_dataset
from benchmark.errors import UserError
from benchmark.judge.records import write_text
from benchmark.models.trained import load_saved
from defenses import read_card
from defenses.training.saved import CARD
from defenses.verification.milp import ExactResult, Status, exact


@dataclass(frozen=True, eq=False)
class Certified:
    """A model's exact robustness.

    model, data  their names.
    records      a row per sample in the data's order: index, label, correct (on the clean image),
                 status ("robust", "broken" or "undecided"), distance (of the point that breaks it,
                 NaN unless broken) and seconds.
    total        how many samples were asked for; an interruption leaves fewer records.
    """

    model: str
    data: str
    threat: ThreatModel
    records: pd.DataFrame
    total: int

    def table(self) -> str:
        """Markdown: counts and percentages of the records, and the time."""
        done = len(self.records)
        counts = {s: int((self.records["status"] == s).sum()) for s in get_args(Status)}
        percent = {status: f"{100 * count / done:.1f}" for status, count in counts.items()}
        accuracy = percent["robust"]
        if counts["undecided"]:
            highest = 100 * (counts["robust"] + counts["undecided"]) / done
            accuracy = f"[{accuracy}, {highest:.1f}]"
        row = {
            "model": self.model,
            "natural %": f"{100 * self.records['correct'].mean():.1f}",
            "exact robust %": accuracy,
            **{status: f"{counts[status]} ({percent[status]} %)" for status in counts},
            "seconds": f"{self.records['seconds'].sum():.1f}",
        }
        caption = (
            f"The first {done} test images of {self.data}, L-infinity eps {self.threat.eps:g}. "
            "Robust: no point of the ball and the box ties or changes the label, up to the "
            "solver's tolerance of 1e-6. Broken: misclassified, as it is or at a point that was "
            "found and checked. Undecided: out of time, or too close to a tie; the robust "
            "accuracy is then an interval."
        )
        table = pd.DataFrame([row]).to_markdown(index=False, disable_numparse=True)
        return f"{table}\n\n{caption}"

    def write(self, path: Path) -> None:
        """The records as CSV. Raises UserError where it cannot be written."""
        write_text(path, self.records.to_csv(index=False))


def certify_exactly(
    folder: Path,
    data: str | None,
    threat: ThreatModel,
    samples: int | None,
    limit_s: float,
    root: Path | None,
    progress: bool,
) -> Certified:
    """Run the exact solver on the first test images, `limit_s` seconds each at most.

    data     its name; default: the data set that the model's card names.
    samples  how many images; default: all.

    An interruption ends it early, with what is decided by then. Raises UserError or SavedModelError
    where the folder, the data or the network will not do.
    """
    card = read_card(folder)
    model = load_saved(folder).model
    try:
        made_for, defense = str(card["data"]["name"]), str(card["defense"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CARD} is not a card of this program") from error
    dataset = load_dataset(data or made_for, root)
    if list(dataset.shape) != card["shape"] or dataset.classes != card["classes"]:
        raise UserError(f"{folder} is no model of {dataset.name}: name the data it was made for")
    test = dataset.first("test", samples)
    x, y, count = test.x, test.y, len(test.y)
    try:
        results = exact(model, x, y, threat, limit_s)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error
    with torch.no_grad():
        correct = (model.cpu()(x).argmax(1) == y).numpy()
    records = _records(results, x, y, correct, threat, progress)
    if records.empty:
        raise KeyboardInterrupt
    return Certified(defense, dataset.name, threat, records, count)


def _records(
    results: Iterator[ExactResult],
    x: Tensor,
    y: Tensor,
    correct: NDArray[np.bool_],
    threat: ThreatModel,
    progress: bool,
) -> pd.DataFrame:
    """A row for each image that is decided before the end, or before an interruption."""
    rows: list[dict[str, object]] = []
    tally: Counter[str] = Counter()
    shown = tqdm(results, total=len(y), unit="img", disable=None if progress else True, leave=False)
    # What is decided before an interruption holds.
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
                    "distance": distance,
                    "seconds": round(result.seconds, 4),
                }
            )
            tally[result.status] += 1
            bar.set_postfix(tally, refresh=False)
    return pd.DataFrame(rows)
