"""Where the logits are in what a model returns, and what is said where they are not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.benchmark.small import N, Wrapped, evaluate_small, refusal


def _both(z: Tensor) -> Any:
    return {"loss": z.sum(), "logits": z, "few": z[:2], "size": 1.5, "parts": (z, z)}


@pytest.mark.parametrize(
    ("output", "what"),
    [
        ("loss", "a tensor of shape ()"),
        ("few", "a tensor of shape (2, 2)"),
        ("size", "a float"),
        ("parts", "a tuple"),
    ],
)
def test_an_output_that_is_no_batch_is_named(output: str, what: str) -> None:
    line = (
        f"output {output!r} of the model is {what}, which is no batch of logits (n, classes) for "
        f"{N} images: name another output"
    )
    assert refusal(Wrapped(_both).eval(), output=output) == line
    assert evaluate_small(Wrapped(_both).eval(), output="logits").natural == 1.0


def test_a_place_in_a_tuple_that_is_no_batch_is_named() -> None:
    model = Wrapped(lambda z: (z, z.sum())).eval()
    assert refusal(model, output=1).startswith("output 1 of the model is a tensor of shape (), ")
    assert evaluate_small(model, output=0).natural == 1.0


@pytest.mark.parametrize("output", [0, 99, -1, "logits", "shape", "T"])
@pytest.mark.parametrize("n", [2, N])  # with 2 images, a row is as long as the batch
def test_a_model_that_gives_a_tensor_needs_no_output(output: int | str, n: int) -> None:
    model = Wrapped(lambda z: z).eval()
    if (output, n) == ("T", 2):
        return  # which has the shape of logits
    options = {"x": torch.full((n, 4), 0.5), "y": torch.zeros(n, dtype=torch.int64)}
    line = (
        f"the model gives a tensor of shape ({n}, 2) already: leave out output={output!r}, which "
        "says where the logits are in a tuple, a dictionary or an object"
    )
    assert refusal(model, output=output, **options) == line


def test_an_output_may_be_a_row_of_a_tensor() -> None:
    model = Wrapped(lambda z: torch.stack([z, -z])).eval()
    assert evaluate_small(model, output=0).natural == 1.0
    assert evaluate_small(model, output=1).natural == 0.0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda z: z.sum(), "the model must give logits (n, classes), not a tensor of shape ()"),
        (
            lambda z: (z.sum(), z),
            "the model must give logits (n, classes), not a tuple: say where they are, such as "
            "output=1",
        ),
    ],
)
def test_what_is_no_batch_of_logits_is_told(change: Callable[[Tensor], Any], line: str) -> None:
    assert refusal(Wrapped(change).eval()) == line
