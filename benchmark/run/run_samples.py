"""The samples that a run attacks, with the labels that count."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.data.dataset import Dataset
from benchmark.data.sets import load_dataset
from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples
from benchmark.judge.subject import (
    Subject,
    check_model,
    examine,
    undisturbed,
    until_steady,
)
from benchmark.keys import identify_data
from benchmark.run.environment import resolve_device
from benchmark.spec.registry import load_plugins
from benchmark.spec.run_spec import RunSpec


def samples_of(dataset: Dataset, spec: RunSpec) -> Samples:
    """The images and labels that a spec asks for, the first of their split.

    Raises DataError where the split has fewer.
    """
    split = dataset.first(spec.split, spec.samples)
    return Samples(split.x, split.y, np.arange(len(split.y)))


def samples_again(
    folder: Path, spec: RunSpec, manifest: dict[str, Any], root: Path | None
) -> Samples:
    """Load the plugins of the run in a folder, and the samples that it was measured on.

    Raises UserError where the data set holds other images or labels now.
    """
    load_plugins(spec.plugins)
    dataset = load_dataset(spec.data, root)
    samples = samples_of(dataset, spec)
    if identify_data(dataset, spec.split, spec.labels) != manifest["data"]:
        raise UserError(f"{spec.data} is not the data that {folder} was measured on")
    return samples


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
