"""What a data set allows: how far apart its classes are, and how much room a threat leaves.

Sources: "Robustness via fractal divide and fractal aggregation" (Qian 2021), section 2; "On the
Sensitivity of Adversarial Robustness to Input Data Distributions" (Ding et al. 2019), sections 5.1
and 5.2, appendix D, table 6.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from attacks.threat import ThreatModel
from benchmark.columns import eps_text, percent
from benchmark.data.separation import inter_class_distance, log_volumes, oracle_radii
from benchmark.data.sets import load_dataset
from benchmark.environment import Device, resolve_device
from benchmark.errors import UserError
from benchmark.run.runner import Say
from benchmark.spec.run_spec import Part, make_threat
from benchmark.studies.study import Study, axes

# From so many images on, the user is told what is measured, as it takes a while.
_MANY = 20000

_ABOVE, _LEAST, _MEDIAN = "oracle radius above", "smallest oracle radius", "median oracle radius"
_BETWEEN, _VOLUME = "inter-class distance", "log volume"
_CORNER, _INSIDE = "log volume in a corner", "log volume inside"


def data(
    names: Sequence[str],
    split: Part,
    radii: str,
    eps: str | None,
    samples: int | None,
    device: Device,
    root: Path | None,
    say: Say,
) -> Study:
    """For each data set of `names`: the share of images whose oracle radius is above each of
    `radii`, "2,2.5,3", the smallest and the median one, the inter-class distance and, where eps is
    given, the mean log volume of what L-infinity eps leaves, with its least and largest value.

    Records have one row for each number: data, split, images, measure, at (radius or eps), value.
    Raises UserError for radii or eps that are none, or data that cannot be had.
    """
    levels, where = _read(radii), resolve_device(device)
    threat = None if eps is None else make_threat("linf", eps)
    # Every data set is tried before work starts, and measured once, however often it was named.
    given: dict[str, str] = {}
    for written in names:
        dataset = load_dataset(written, root)
        dataset.first(split, samples)
        before = given.setdefault(dataset.name, written)
        # Files of one name may lie in several folders.
        of_before = dataset if before == written else load_dataset(before, root)
        if of_before.fingerprint(split) != dataset.fingerprint(split):
            raise UserError(f"{before} and {written} are both {dataset.name}: rename a file")
    rows: list[dict[str, object]] = []
    curves: dict[str, NDArray[np.float64]] = {}
    for name, written in given.items():
        images = load_dataset(written, root).first(split, samples)
        count = len(images.y)
        if count > _MANY:
            say(f"{name}: measuring {count} {split} images, which takes minutes")
        x, y = images.x.to(where), images.y.to(where)
        curves[name] = oracle_radii(x, y).cpu().numpy()
        numbers = list(_of_radii(curves[name], levels))
        numbers.append((_BETWEEN, math.nan, inter_class_distance(x, y)))
        if threat:
            numbers += _of_volumes(log_volumes(x, threat).mean().item(), x[0].numel(), threat)
        columns = {"data": name, "split": split, "images": count}
        rows += [
            columns | {"measure": measure, "at": at, "value": value}
            for measure, at, value in numbers
        ]
    records = pd.DataFrame(rows)
    return Study("data", records, _table(records), _caption(split, threat), _draw(curves))


def _read(text: str) -> list[float]:
    """The radii that a user wrote, in ascending order. Raises UserError where they are none."""
    try:
        radii = sorted({float(radius) for radius in text.split(",")})
    except ValueError:
        radii = [math.nan]
    if not all(0 <= radius < math.inf for radius in radii):
        raise UserError(f"radii are numbers from 0 on, as in 2,2.5,3, not {text!r}")
    return radii


# Measures, each with the radius or eps that it is at, NaN if at none, and its value.
Numbers = Iterator[tuple[str, float, float]]


def _of_radii(radii: NDArray[np.float64], levels: Sequence[float]) -> Numbers:
    """What is shown of oracle radii (n,): the shares above some levels, least and median."""
    for level in levels:
        yield _ABOVE, level, float((radii > level).mean())
    yield _LEAST, math.nan, float(radii.min())
    yield _MEDIAN, math.nan, float(np.median(radii))


def _of_volumes(mean: float, pixels: int, threat: ThreatModel) -> Numbers:
    """The mean log volume of some images, and between which values it can lie."""
    yield _VOLUME, threat.eps, mean
    # A grey and a black image: all pixels as far from 0 and 1, and as near, as they can be.
    low, high = threat.hull
    for measure, value in ((_CORNER, low), (_INSIDE, (low + high) / 2)):
        image = torch.full((1, pixels), value, dtype=torch.float64)
        yield measure, threat.eps, float(log_volumes(image, threat))


def _caption(split: Part, threat: ThreatModel | None) -> str:
    text = (
        f"Of {split} images. Oracle radius: half the L2 distance of an image from the nearest of "
        "these images with another label; > r: % of images where it is above r. Inter-class "
        "distance: an image is as far from the other classes as the mean of its L2 distances from "
        "the nearest 10% of their images, a class as the mean of the least 10% of this over its "
        "images; the mean over classes."
    )
    if threat:
        text += (
            f" Log volume: of what Linf eps {eps_text(threat.eps)} lets an image in [0, 1] become, "
            "in bits, the mean over images; range: from all pixels at 0 or 1 to all pixels grey."
        )
    return text


def _table(records: pd.DataFrame) -> pd.DataFrame:
    groups = records.groupby("data", sort=False)
    return pd.DataFrame([_line(str(name), rows) for name, rows in groups])


def _line(name: str, rows: pd.DataFrame) -> dict[str, str]:
    """The line of the table on one data set."""
    values = rows.set_index("measure")["value"]
    above = rows[rows["measure"] == _ABOVE]
    row = {"data": name, "images": str(rows["images"].iloc[0])}
    row |= {f"> {r:g}": percent(v) for r, v in zip(above["at"], above["value"], strict=True)}
    row |= {
        "smallest": f"{values[_LEAST]:.3f}",
        "median": f"{values[_MEDIAN]:.3f}",
        _BETWEEN: f"{values[_BETWEEN]:.3f}",
    }
    if _VOLUME in values:
        row[_VOLUME] = f"{values[_VOLUME]:.1f}"
        row["range"] = f"{values[_CORNER]:.1f} to {values[_INSIDE]:.1f}"
    return row


def _draw(curves: Mapping[str, NDArray[np.float64]]) -> Any:
    """For each data set, the share of images whose oracle radius is above a radius."""
    figure, plot = axes(4.5)
    for name, radii in curves.items():
        known = np.sort(radii[np.isfinite(radii)])
        left = len(radii) - np.arange(len(known) + 1)
        plot.step([0, *known], 100 * left / len(radii), where="post", label=name)
    plot.set(xlabel="L2 radius", ylabel="images whose oracle radius is above (%)", ylim=(0, 103))
    plot.set_xlim(left=0)
    plot.legend(loc="upper right")
    return figure
