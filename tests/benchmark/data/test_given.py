"""Images and labels that cannot be evaluated get one line: what they are, and what to do."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmark import evaluate
from tests.benchmark.small import N, X, Y, refusal

NAMES = np.array(["cat", "dog"])[np.arange(N) % 2]
NUMBERED = (
    ": number the classes from 0 to k-1 in the order of the model's logits; "
    "numpy.unique(y, return_inverse=True)[1] does so for classes that are sorted"
)


@pytest.mark.parametrize(
    "x",
    [DataLoader(TensorDataset(X, Y)), TensorDataset(X, Y), iter([(X, Y)])],
    ids=lambda x: type(x).__name__,
)
def test_what_holds_labels_is_given_without_y(x: Any) -> None:
    line = (
        f"x is a {type(x).__name__}, whose batches hold the labels: leave y out, as in "
        "evaluate(model, x, eps=...)"
    )
    assert refusal(x=x) == line


@pytest.mark.parametrize("x", [X[:0], [], np.empty((N, 0)), torch.empty(0, 3, 4, 4)])
@pytest.mark.parametrize("y", [Y[:0], Y, []])
def test_without_images_there_is_nothing_to_evaluate(x: Any, y: Any) -> None:
    assert refusal(x=x, y=y) == f"x holds no images: its shape is {tuple(np.shape(x))}"


@pytest.mark.parametrize(
    "y",
    [
        NAMES,
        NAMES.tolist(),
        NAMES.astype(object),
        pd.Series(pd.Categorical(NAMES)),
        pd.Categorical(NAMES),
        pd.Series(NAMES, dtype="string"),
        pd.DataFrame({"class": NAMES}),
        NAMES[:, None],
    ],
)
def test_names_of_classes_are_no_labels(y: Any) -> None:
    assert refusal(y=y) == f"y holds str values such as 'cat'{NUMBERED}"


BOOLS = np.arange(N) % 2 == 0


@pytest.mark.parametrize(
    "y", [BOOLS, BOOLS.tolist(), torch.tensor(BOOLS), pd.Series(BOOLS), BOOLS[:, None]]
)
def test_bools_are_no_labels(y: Any) -> None:
    assert refusal(y=y) == f"y holds bool values such as True{NUMBERED}"


@pytest.mark.parametrize("y", [NAMES, pd.Categorical(NAMES), BOOLS, torch.tensor(BOOLS)])
def test_the_way_to_number_classes_works(y: Any) -> None:
    x, labels = torch.rand(N, 4), np.unique(y, return_inverse=True)[1]
    assert sorted(set(labels.tolist())) == [0, 1]
    assert evaluate(nn.Linear(4, 2).eval(), x, labels, eps=0.1, suite="none").total == N


class _Named(Dataset[Any]):
    """Images with the names of their classes."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, place: int) -> Any:
        return X[place], str(NAMES[place])


@pytest.mark.parametrize("x", [_Named(), DataLoader(_Named(), 2), [(X, NAMES)]])
def test_names_of_classes_in_batches_are_no_labels(x: Any) -> None:
    assert refusal(x=x, y=None) == f"y holds str values such as 'cat'{NUMBERED}"


def test_labels_of_another_dtype_are_told_what_their_kind_can_do() -> None:
    line = "y must hold integer labels, not torch.float64: pass "
    assert refusal(y=Y.double()) == f"{line}y.long()"
    for y in (Y.double().numpy(), Y.double().tolist(), pd.Series(Y.double().numpy())):
        assert refusal(y=y) == f"{line}numpy.asarray(y).astype(int)"


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_label_that_is_missing_is_told(missing: float | None) -> None:
    assert refusal(y=[*Y.tolist()[1:], missing]) == f"y holds no label for 1 of {N} images"


def test_images_that_were_divided_already_are_told() -> None:
    x = torch.rand_like(X).clamp_min(0.1)
    line = f"x: the largest value is {float(x.max()):g}, of 255: is scale what white is in these"
    assert refusal(x=x, scale=255).startswith(line)


@pytest.mark.parametrize("scale", [None, 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nan_in_images_is_told(dtype: torch.dtype, scale: float | None) -> None:
    x = X.to(dtype, copy=True)
    x[1, 2] = x[3] = math.nan
    line = f"x holds NaN in 2 of {N} samples: replace it, or leave them out"
    assert refusal(x=x, scale=scale) == line
    assert refusal(x=x, bounds=(-math.inf, 3), scale=scale) == line
