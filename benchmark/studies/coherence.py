"""How far the classifiers that an aggregated model is made of share adversarial directions.

Source: RoBin, section 6, equation 1 and figure 6.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks import HasArms
from attacks.messages import described, one_line
from attacks.objectives import cross_entropy
from attacks.problem import differentiate
from benchmark.columns import NONE
from benchmark.data.sets import load_dataset
from benchmark.environment import Device, resolve_device
from benchmark.errors import UserError
from benchmark.judge.replica import freeze
from benchmark.judge.surroundings import full_precision
from benchmark.models.trained import load_saved
from benchmark.run.run_folder import models_of, read_run
from benchmark.run.run_samples import samples_of
from benchmark.spec.registry import load_plugins
from benchmark.spec.run_spec import Part
from benchmark.studies.study import Study, axes

_BINS = np.linspace(-1, 1, 51)

# What models raise that are not what they say they are.
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)


class HasMembers(Protocol):
    """An ensemble of multiclass models."""

    def members(self, x: Tensor) -> Tensor:
        """Logits (members, n, classes) of images (n, *shape)."""
        ...


@full_precision()
def coherence(
    folder: Path, split: Part, samples: int | None, device: Device | None, root: Path | None
) -> Study:
    """The coherence of images (equation 1, figure 6) for each row of a run that has arms or
    members; one that cannot give it is left out. Samples and device are by default those of the
    run.

    Raises UserError or SavedModelError where the folder, all its rows, or the number of samples
    will not do.
    """
    spec, manifest, _ = read_run(folder)
    load_plugins(spec.plugins)
    where, dtype = resolve_device(device or spec.device), spec.dtype
    rows = {label: load_saved(home).model for label, home in models_of(folder, manifest).items()}
    rows = {label: model for label, model in rows.items() if _kind(model)}
    if not rows:
        raise UserError(f"no row of {folder} has arms or members: name a run of robin or ensemble")
    dataset = load_dataset(spec.data, root)
    asked = {"split": split, "samples": samples or spec.samples}
    images = samples_of(dataset, spec.model_copy(update=asked))
    count, frames, left_out = len(images), [], []
    for label, model in rows.items():
        frozen = freeze(model, where, dtype)
        blocks = zip(images.x.split(spec.block), images.y.split(spec.block), strict=True)
        try:
            values = [_measured(frozen, x.to(where, dtype), y.to(where)).cpu() for x, y in blocks]
        except _FAILURES as error:
            why = one_line(error) if isinstance(error, ValueError) else described(error)
            left_out.append(f"{label}: {why}")
            continue
        columns = {"defense": label, "kind": _kind(model), "index": range(count)}
        frames.append(pd.DataFrame(columns | {"coherence": torch.cat(values).numpy()}))
    if not frames:
        raise UserError(f"no row of {folder} has a coherence: {'; '.join(left_out)}")
    records = pd.concat(frames, ignore_index=True)
    caption = (
        f"Coherence of {count} {dataset.name} {split} images, classified correctly or not: per "
        "image the largest cosine similarity between the gradient of the loss of the label's arm "
        "and that of another arm (arms), or between the gradients of the losses of two members "
        "(members)."
    )
    for label, coherences in _values(records):
        if undefined := int(coherences.isna().sum()):
            caption += f" {label}: left out {undefined} images, where a gradient is 0."
    if left_out:
        caption += f" Left out whole: {'; '.join(left_out)}."
    return Study("coherence", records, _table(records), caption, _draw(records))


def of_arms(arms: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The coherence (n,), float64, of images x (n, *shape) with labels y (n,), from scores
    (n, classes) of binary classifiers; NaN where one of its cosines is undefined.

    Scores stand for losses, whose slopes do not change a cosine: the loss of the label's arm rises
    as its score falls, that of another as its own rises. Raises ValueError where the scores are not
    of that shape, or have no gradients.
    """
    points = x.detach().requires_grad_()
    scores = arms(points)
    if scores.dim() != 2 or len(scores) != len(x) or scores.shape[1] < max(2, int(y.max()) + 1):
        raise ValueError(f"arms give {tuple(scores.shape)}, not scores (n, classes)")
    gradients, place = _gradients(scores.T, points), torch.arange(len(y), device=y.device)
    cosines = -_cosine(gradients[y, place], gradients)
    cosines[y, place] = -torch.inf
    return cosines.amax(0)


def of_members(members: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The coherence (n,), float64, of images x (n, *shape) with labels y (n,), from logits
    (members, n, classes) of multiclass models under cross-entropy; NaN where one of its cosines is
    undefined.

    Raises ValueError where the logits are not of that shape, of one member, or have no gradients.
    """
    points = x.detach().requires_grad_()
    logits = members(points)
    if logits.dim() != 3 or logits.shape[1] != len(x):
        raise ValueError(f"members give {tuple(logits.shape)}, not logits (members, n, classes)")
    if len(logits) < 2:
        raise ValueError("one member has no pair")
    losses = torch.stack([cross_entropy(of_member, y) for of_member in logits])
    pairs = combinations(_gradients(losses, points), 2)
    return torch.stack([_cosine(first, second) for first, second in pairs]).amax(0)


def _kind(model: nn.Module) -> str:
    """What the model is made of: arms or members, or "" where it has neither."""
    if isinstance(model, HasArms):
        return "arms"
    # Not every attribute of that name is the method.
    return "members" if callable(getattr(model, "members", None)) else ""


def _measured(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The coherence (n,) of some images. Raises one of _FAILURES where the model has none."""
    if isinstance(model, HasArms):
        return of_arms(model.arms, x, y)
    return of_members(cast(HasMembers, model).members, x, y)


def _gradients(values: Tensor, points: Tensor) -> Tensor:
    """Gradients (k, n, pixels), float64, of values (k, n) by the points (n, *shape) that they were
    computed at."""
    gradients = [differentiate(value, points, retain=True) for value in values]
    return torch.stack(gradients).flatten(2).double()


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarity along the last dimension; NaN where either vector is 0."""
    lengths = first.norm(dim=-1) * second.norm(dim=-1)
    cosine: Tensor = (first * second).sum(-1) / lengths
    return cosine.clamp(-1, 1)


def _values(records: pd.DataFrame) -> "Iterator[tuple[str, pd.Series[float]]]":
    """Each defense with the coherences of its images."""
    for label, rows in records.groupby("defense", sort=False):
        yield str(label), rows["coherence"]


def _table(records: pd.DataFrame) -> pd.DataFrame:
    kinds = records.groupby("defense")["kind"].first()
    rows = []
    for label, coherences in _values(records):
        quartiles = coherences.quantile([0.25, 0.5, 0.75]).tolist()
        numbers = (coherences.mean(), coherences.std(ddof=0), *quartiles)
        texts = [NONE if np.isnan(number) else f"{number:.3f}" for number in numbers]
        columns = ("mean", "standard deviation", "25%", "median", "75%")
        row = {"defense": label, "kind": kinds[label], "images": str(coherences.count())}
        rows.append(row | dict(zip(columns, texts, strict=True)))
    return pd.DataFrame(rows)


def _draw(records: pd.DataFrame) -> Any:
    figure, plot = axes(4.5)
    for label, coherences in _values(records):
        known = coherences.dropna().to_numpy()
        share = np.full(len(known), 100 / max(1, len(known)))
        plot.hist(known, bins=_BINS, weights=share, alpha=0.5, label=label)
    plot.set(xlabel="coherence", ylabel="images (%)", xlim=(-1, 1))
    plot.legend(loc="upper right")
    return figure
