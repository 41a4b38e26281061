"""Whether the images that a model is confident of are those on which it is robust.

Source: "L2-nonexpansive neural networks" (Qian and Wegman 2019), sections 3.1 (Jacobian) and 3.2
(figure 2).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmark.columns import NONE, percent
from benchmark.environment import Device, resolve_device
from benchmark.errors import UserError
from benchmark.models.trained import load_saved
from benchmark.report.captions import images, on_settings, threat_name
from benchmark.report.report import Report
from benchmark.run.run_folder import read_run
from benchmark.run.run_samples import data_again
from benchmark.spec.components import BEST, NATURAL
from benchmark.studies.outputs import FIRST, gaps, mean_jacobian_norm
from benchmark.studies.study import Study, pairs

_OF_BINS = {"natural": f"{NATURAL} %", "best_attack": f"{BEST} %", "gap": "gap"}
_OF_ALL = {"jacobian_norm": "Jacobian norm", "area": "area under ROC"}


def confidence(folder: Path, bins: int, device: Device | None, root: Path | None) -> Study:
    """Accuracy, natural and best-attack, of each row of a run on its images sorted by the model's
    confidence gap into bins (figure 2), how well the gap predicts robustness, and the mean norm of
    the Jacobian. The device is by default that of the run.

    Raises UserError or SavedModelError where the folder, its data, or the number of bins will not
    do.
    """
    spec, manifest, reports = read_run(folder)
    _, samples = data_again(folder, spec, manifest, root)
    if bins > len(samples):
        raise UserError(f"{len(samples)} images do not fill {bins} bins: lower bins")
    where = resolve_device(device or spec.device)
    x, frames = samples.x.to(spec.dtype), []
    for report, row in zip(reports, manifest["rows"], strict=True):
        model = load_saved(folder / row["model"]).model
        gap = gaps(model, x, where).double().numpy()
        of_all = {"jacobian_norm": mean_jacobian_norm(model, x, where), "area": _area(report, gap)}
        frames.append(_binned(report, gap, bins).assign(**of_all))
    records = pd.concat(frames, ignore_index=True)
    first = reports[0]
    attacks = ", ".join(dict.fromkeys(a for report in reports for a in report.measured))
    caption = on_settings(spec, first) + (
        f"Over {images(first, spec)}, sorted for each defense by its "
        "confidence gap (largest logit less the second largest) at the clean image and divided "
        f"into bins; bin 1 has the largest gaps. {NATURAL}: % classified correctly. {BEST}: % "
        f"classified correctly and broken by no attack ({attacks or 'none yet'}; "
        f"{threat_name(first.threat)}). gap: its mean. Jacobian norm: mean "
        "spectral norm of the Jacobian of the logits over the first "
        f"{min(FIRST, first.total)} images. area under ROC: of the gap as a predictor of what "
        f"counts in {BEST}, 1 if all these have larger gaps than all others and 0.5 if chance "
        "tells as much. Gaps of two defenses compare only where both bound how fast logits change."
    )
    return Study("confidence", records, _table(records), caption, _draw(records))


def _area(report: Report, gap: NDArray[np.float64]) -> float:
    """The area under the ROC curve of gaps (n,) as predictors of robustness; NaN where there is
    nothing to tell apart."""
    from sklearn.metrics import roc_auc_score

    robust = report.robust_to(BEST)
    if robust is None or robust.all() or not robust.any():
        return np.nan
    return float(roc_auc_score(robust, gap))


def _binned(report: Report, gap: NDArray[np.float64], bins: int) -> pd.DataFrame:
    """A row per bin, from the largest gaps (n,) to the smallest."""
    robust = report.robust_to(BEST)
    columns = {
        "gap": gap,
        "natural": ~report.frames[NATURAL]["broken"].to_numpy(),
        "best_attack": np.full(len(gap), np.nan) if robust is None else robust,
    }
    frame, order = pd.DataFrame(columns), np.argsort(-gap, kind="stable")
    rows = [
        {"defense": report.name, "bin": number, "images": len(of_bin)}
        | dict(frame.iloc[of_bin].mean())
        for number, of_bin in enumerate(np.array_split(order, bins), 1)
    ]
    return pd.DataFrame(rows)


def _table(records: pd.DataFrame) -> pd.DataFrame:
    groups = records.groupby("defense", sort=False)
    return pd.DataFrame([line for _, of_defense in groups for line in _lines(of_defense)])


def _lines(records: pd.DataFrame) -> Iterator[dict[str, str]]:
    """The lines of the table on one defense: each measure, over all images and in each bin."""
    for column, name in (_OF_BINS | _OF_ALL).items():
        values = records[column]
        show = percent if name.endswith("%") else _number
        of_all = show(float(np.average(values, weights=records["images"])))
        of_bins = values.map(show) if column in _OF_BINS else [""] * len(records)
        numbers = dict(zip(records["bin"].map(str), of_bins, strict=True))
        yield {"defense": records["defense"].iloc[0], "measure": name, "all": of_all} | numbers


def _number(value: float) -> str:
    return NONE if np.isnan(value) else f"{value:.3g}"


def _draw(records: pd.DataFrame) -> Any:
    figure, plot = pairs(records, "bin", "best_attack", "natural")
    plot.set(
        xlabel="bin, from the largest confidence gaps to the smallest",
        ylabel=f"{BEST} and (dashed) {NATURAL} accuracy (%)",
        ylim=(-3, 103),
    )
    return figure
