"""The samples that a run attacks, with the labels that count."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.data.choice import Choice, ordered
from benchmark.data.dataset import Dataset
from benchmark.data.sets import load_dataset
from benchmark.environment import resolve_device
from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples
from benchmark.judge.examination import check_model, examine
from benchmark.judge.records import IntArray
from benchmark.judge.subject import Subject, Terms, until_steady
from benchmark.judge.surroundings import undisturbed
from benchmark.keys import Identity, identify_data
from benchmark.spec.registry import DATASETS, load_plugins
from benchmark.spec.run_spec import Choose, RunSpec


def samples_of(dataset: Dataset, spec: RunSpec, strata: Dataset | None = None) -> Samples:
    """The images and labels that a spec asks for, in the order in which they are chosen.

    `strata` is the data set whose classes a stratified choice goes by, if that is another one with
    the same images. Raises DataError where the split has fewer images.
    """
    split, order = dataset.first(spec.split, spec.samples), _order(dataset, spec, strata)
    if order is None:
        return Samples(split.x, split.y, np.arange(len(split.y)))
    number, split = order[: spec.samples], dataset.split(spec.split)
    chosen = split.only(torch.from_numpy(number))
    return Samples(chosen.x, chosen.y, number)


def identify_samples(dataset: Dataset, spec: RunSpec, strata: Dataset | None = None) -> Identity:
    """The identity of the images and labels that a spec asks for: see `identify_data`. How many are
    asked for is not in it, unless that is all of them, among which nothing is chosen."""
    return identify_data(dataset, spec.split, spec.labels, _order(dataset, spec, strata))


def choice_of(dataset: Dataset, spec: RunSpec) -> Choice:
    """What readers must know of how the samples of a spec were chosen."""
    present = set(samples_of(dataset, spec).y.tolist())
    missing = [name for label, name in enumerate(dataset.labels) if label not in present]
    return Choice(choose_of(spec), spec.seed, len(dataset.split(spec.split).y), missing)


def choose_of(spec: RunSpec) -> Choose:
    """How samples are chosen: as the spec says or, where it does not, as is best for its data."""
    built_in = DATASETS.is_built_in(spec.data.partition("/")[0])
    return spec.choose or ("first" if built_in else "stratified")


def _order(dataset: Dataset, spec: RunSpec, strata: Dataset | None) -> IntArray | None:
    """The numbers (n,) of all samples in the order of a choice; None if that is the split's."""
    labels = (strata or dataset).split(spec.split).y.numpy()
    choose = choose_of(spec)
    if choose == "first" or spec.samples is None or spec.samples >= len(labels):
        return None
    return ordered(labels, choose, spec.seed)


def terms_of(
    dataset: Dataset, spec: RunSpec, reject: int | None = None, may_reject: bool = False
) -> Terms:
    """The terms on which a model is judged on a data set: see `Terms`."""
    return dataclasses.replace(
        spec.terms, frozen=dataset.frozen, reject=reject, may_reject=may_reject
    )


def data_again(
    folder: Path, spec: RunSpec, manifest: dict[str, Any], root: Path | None
) -> tuple[Dataset, Samples]:
    """Load the plugins of the run in a folder, the data set and the samples that it was measured
    on.

    Raises UserError where the data set holds other images or labels now, or where the manifest says
    otherwise of how they were chosen.
    """
    load_plugins(spec.plugins)
    dataset = load_dataset(spec.data, root)
    samples = samples_of(dataset, spec)
    if identify_samples(dataset, spec) != manifest["data"]:
        raise UserError(f"{spec.data} is not the data that {folder} was measured on")
    choice = dataclasses.asdict(choice_of(dataset, spec))
    if manifest.get("choice", choice) != choice:
        raise UserError(f"{folder / 'run.json'} was changed: its choice is not its samples'")
    return dataset, samples


@undisturbed()
def relabelled(samples: Samples, model: nn.Module, spec: RunSpec) -> Samples:
    """The samples with the labels that count for a model under a spec.

    They are the labels of the data, or, if the spec says so, the model's own predictions.
    """
    if spec.labels == "data":
        return samples
    device, first_block = resolve_device(spec.device), samples.x[: spec.block]

    def predictions(subject: Subject) -> Tensor:
        check_model(subject, first_block, samples.y, None)
        blocks = zip(samples.x.split(spec.block), samples.y.split(spec.block), strict=True)
        judged = [subject.judge(x.to(device), y.to(device)).predicted for x, y in blocks]
        return torch.cat(judged).cpu().clamp_min(0)

    predicted = until_steady(examine(model, first_block, device, spec.terms), predictions)
    return dataclasses.replace(samples, y=predicted)
