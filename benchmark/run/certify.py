"""What is proven of a saved model, image by image: that it is robust, or that it is broken."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from attacks import ThreatModel
from attacks.messages import described
from attacks.threat import Norm
from benchmark.columns import escaped, frame_csv, frame_markdown
from benchmark.data.dataset import Dataset
from benchmark.data.sets import load_dataset
from benchmark.errors import UserError
from benchmark.judge.records import write_text
from benchmark.models.named_model import named_model
from benchmark.report.captions import threat_name
from benchmark.spec.components import SAVED
from benchmark.spec.proof_setting import Proofs
from benchmark.spec.run_spec import make_threat
from defenses import read_card
from defenses.training.saved import CARD
from defenses.verification.deciding import Decision, Status, decide

# How models are named that are not in a folder of a training.
_ELSEWHERE = "external"

# What is told of each image.
_COLUMNS = ("index", "label", "correct", "status", "by", "bound", "distance", "seconds")


@dataclass(frozen=True, eq=False)
class Certified:
    """What was decided about a model, sample by sample.

    model, data  the names of the model and of its data set.
    why          what is said of the norm, where the user did not name it.
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
    why: str = ""

    def table(self) -> str:
        """A line on what was certified, a Markdown table of one row, with counts and percentages by
        status, and a caption."""
        decided = len(self.records)
        counts = {
            status: int((self.records["status"] == status).sum()) for status in get_args(Status)
        }
        percent = {status: f"{100 * count / decided:.1f}" for status, count in counts.items()}
        heading, accuracy = "robust %", percent["robust"]
        if counts["undecided"]:
            highest = 100 * (counts["robust"] + counts["undecided"]) / decided
            heading, accuracy = "robust % [proven, not broken]", f"[{accuracy}, {highest:.1f}]"
        row = {
            "model": self.model,
            "natural %": f"{100 * self.records['correct'].mean():.1f}",
            heading: accuracy,
            **{status: f"{counts[status]} ({percent[status]} %)" for status in counts},
            "seconds": f"{self.records['seconds'].sum():.1f}",
        }
        by_solver = int((self.records["by"] == "solver").sum())
        solver = (
            f" By the solver alone, up to its tolerance of 1e-6: {by_solver} of them."
            if by_solver
            else ""
        )
        caption = (
            f"The first {decided} test images of {self.data}, {threat_name(self.threat)}. Robust: "
            "no point of the ball and the box ties or changes the label, whatever rounding does in "
            f"the proof.{solver} Broken: misclassified, as it is or at a point that was found and "
            "checked. Undecided: out of time, or too close to a tie; the robust accuracy is then "
            "known to lie between what is proven and what is not broken."
        )
        line = f"{self.model} on {self.data}, {threat_name(self.threat)}{self.why}:"
        table = frame_markdown(pd.DataFrame([row]))
        return f"{escaped(line)}\n\n{table}\n\n{escaped(caption)}"

    def write(self, path: Path) -> None:
        """Write the records as CSV. Raises UserError where the file cannot be written."""
        write_text(path, frame_csv(self.records))


def check_out(path: Path) -> None:
    """Raises UserError where the records should not be written to a path, before there are any: it
    is a folder, or a file of another kind, which would be lost."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a CSV file for the result per image")
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline().strip()
    except (OSError, UnicodeDecodeError):
        first = ""
    if first != ",".join(_COLUMNS):
        raise UserError(f"{path} holds something else than such results: name another file")


def certify_model(
    written: str,
    data: str | None,
    norm: Norm | None,
    eps: str,
    samples: int | None,
    proofs: Proofs,
    root: Path | None,
    progress: bool,
) -> Certified:
    """Decide for the first test images whether any perturbation breaks a model.

    written  the folder of a model, as training leaves it, or the name of one made elsewhere, such
             as external/python=net.py:Net.
    data     the name of the data set; by default, the one that the model's card names.
    norm     of the threat; by default, that which it was trained against by its card.
    samples  how many images to take; all by default.

    After an interruption, the records are those of the images that were decided before it. Raises
    UserError or SavedModelError where the model, the data or the network cannot be used.
    """
    model, card, dataset, threat = _loaded(written, data, norm, eps, root)
    test = dataset.first("test", samples)
    x, y = test.x[:].to(_dtype_of(model)), test.y

    # Decide, image by image.
    try:
        results = decide(model, x, y, threat, proofs.seconds, proofs.method)
        with torch.no_grad():
            correct = (model.cpu()(x).argmax(1) == y).numpy()
    except ValueError as error:
        raise UserError(f"{written}: {error}") from error
    except RuntimeError as error:
        raise UserError(f"{written} fails on {dataset.name}: {described(error)}") from error
    records = _records(results, x, y, correct, threat, progress)
    if records.empty:
        raise KeyboardInterrupt
    why = "" if norm else ", the norm that it was trained for"
    name = str(card.get("defense", written))
    return Certified(name, dataset.name, threat, records, len(y), why)


def _loaded(
    written: str, data: str | None, norm: Norm | None, eps: str, root: Path | None
) -> tuple[nn.Module, dict[str, Any], Dataset, ThreatModel]:
    """A model, its card, which is empty for one made elsewhere, its data and the threat. Raises
    UserError where they do not fit."""
    is_elsewhere = written.partition("/")[0] == _ELSEWHERE and not Path(written).is_dir()
    card = {} if is_elsewhere else _read_card(written)
    data = data or card.get("data", {}).get("name")
    if data is None:
        raise UserError(f"{written} has no card that names its data set: give --data")
    norm = norm or (card.get("threat") or {}).get("norm")
    if norm is None:
        raise UserError(f"{written} was trained for no norm: give --norm linf or --norm l2")
    threat, dataset = make_threat(norm, eps), load_dataset(data, root)
    if card and (list(dataset.shape) != card["shape"] or dataset.classes != card["classes"]):
        raise UserError(f"{written} is no model of {dataset.name}: name the data it was made for")
    if dataset.frozen is not None:
        raise UserError(f"{dataset.name} has frozen features, and the ball moves all")
    name = written if is_elsewhere else SAVED + written.removeprefix(SAVED)
    return named_model(name, dataset, "certify"), card, dataset, threat


def _read_card(folder: str) -> dict[str, Any]:
    """The card in the folder of a model, which may be written as saved:FOLDER."""
    home = Path(folder.removeprefix(SAVED))
    card = read_card(home)
    try:
        str(card["data"]["name"]), card["defense"], card["shape"], card["classes"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{home / CARD} is not a card of this program") from error
    return card


def _dtype_of(model: nn.Module) -> torch.dtype:
    """The precision of a model."""
    tensors = (tensor for tensor in model.parameters() if tensor.is_floating_point())
    return next((tensor.dtype for tensor in tensors), torch.float32)


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
    return pd.DataFrame(rows, columns=list(_COLUMNS))
