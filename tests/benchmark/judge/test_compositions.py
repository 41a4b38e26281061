"""Whatever is done around a network that leaves it the same function, the figures are its own."""

import copy
import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmark import evaluate
from tests.benchmark.judge.compositions import ANSWERS, CORES, LABELS, LAYOUTS, WRAPPERS
from tests.benchmark.judge.plain import EPS, SHAPES, Around, N, Plain, samples


@dataclass(frozen=True)
class Case:
    """One composition, how it is handed its samples, and how it is evaluated."""

    core: str
    wrappers: tuple[str, ...]
    answer: str
    shape: tuple[int, ...]
    layout: str
    labels: str
    norm: str
    block: int
    training: bool


def _is_possible(case: Case) -> bool:
    """Whether torch can run and differentiate the composition at all."""
    compiled = [place for place, name in enumerate(case.wrappers) if name == "compiled"]
    is_script = case.core in ("scripted", "traced")
    # It compiles nothing twice, and no script.
    if any(case.wrappers[place - 1] == "compiled" for place in compiled if place):
        return False
    if is_script and case.wrappers[0] == "compiled":
        return False
    # Tiny logits would be lost in what is added to them.
    if case.wrappers.count("scaled down") > 1:
        return False
    for place, name in enumerate(case.wrappers):
        if name in ("checkpoint", "reentrant"):
            # What is changed in place is no longer there for the second pass of a checkpoint, and
            # the second pass of a script cannot be cut short.
            if {"in place", "destroys"} & set(case.wrappers[:place]):
                return False
            if is_script and name == "checkpoint":
                return False
    return True


SIMPLE = Case("plain", (), "logits", (3, 4, 4), "contiguous", "int64", "linf", 4, False)
CASES = st.builds(
    Case,
    core=st.sampled_from(sorted(CORES)),
    wrappers=st.lists(st.sampled_from(sorted(WRAPPERS)), min_size=2, max_size=3).map(tuple),
    answer=st.sampled_from(sorted(ANSWERS)),
    shape=st.sampled_from(SHAPES),
    layout=st.sampled_from(sorted(LAYOUTS)),
    labels=st.sampled_from(sorted(LABELS)),
    norm=st.sampled_from(["l2", "linf"]),
    block=st.integers(1, 9),
    training=st.booleans(),
).filter(_is_possible)


def _model(case: Case, net: Plain, x: Tensor) -> nn.Module:
    model = CORES[case.core](net, x)
    for wrapper in case.wrappers:
        model = WRAPPERS[wrapper](model, x[0].numel())
    answer = ANSWERS[case.answer][0]
    return Around(model, after=answer) if case.answer != "logits" else model


def _state(model: nn.Module) -> list[Any]:
    """All that a model holds, to be compared."""
    state: list[Any] = []
    for name, module in model.named_modules():
        modes = [
            name,
            id(module),
            module.training,
            len(module._forward_hooks),
            sorted(vars(module)),
        ]
        numbers = [value for value in vars(module).values() if isinstance(value, int | float)]
        state.append((modes, numbers))
    for tensor in (*model.parameters(), *model.buffers()):
        state.append((id(tensor), tensor.dtype, tensor.requires_grad, tensor.grad, tensor.tolist()))
    return state


def _of_samples(values: Any) -> Any:
    """A copy of images or labels, to be compared."""
    if isinstance(values, Tensor):
        gradient = values.grad if values.is_leaf else None
        return values.tolist(), values.stride(), values.requires_grad, gradient
    if isinstance(values, np.ndarray):
        return values.tolist(), values.strides, values.flags.writeable
    return copy.deepcopy(values)


def _of_generators() -> Any:
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), (name, keys.tolist(), *rest), random.getstate()


def _check(case: Case) -> None:
    torch.manual_seed(0)
    net = Plain(case.shape).eval()
    flat, y, robust = samples(net, case.norm)
    x = flat.view(N, *case.shape)
    model = _model(case, net, x.clone()).train(case.training)
    if case.layout == "expanded":
        y, robust = y[3:4].expand(N), robust[3:4].expand(N)
    images, labels = LAYOUTS[case.layout](x), LABELS[case.labels](y)
    before = _state(model), _of_samples(images), _of_samples(labels), _of_generators()
    report = evaluate(
        model, images, labels, norm=case.norm, eps=EPS, block=case.block,
        attacks=["pgd/steps=10", "square/steps=200"], **ANSWERS[case.answer][1],
    )  # fmt: skip
    after = _state(model), _of_samples(images), _of_samples(labels), _of_generators()
    assert report.errors == {}
    assert report.flags == {}
    assert any("training mode" in note for note in report.notes) == case.training
    assert report.natural == 1.0
    for label in report.measured:
        assert report.robust_to(label).tolist() == robust.tolist(), label
    assert before == after


@pytest.mark.parametrize("layout", ["Fortran", "channels last"])
def test_a_model_that_views_its_images_takes_them_in_any_layout(layout: str) -> None:
    _check(replace(SIMPLE, wrappers=("view",), layout=layout))


def test_a_model_may_keep_what_a_checkpoint_gives() -> None:
    _check(replace(SIMPLE, wrappers=("reentrant", "caches")))


def _examples(number: int) -> settings:
    return settings(
        max_examples=number, derandomize=True, deadline=None, database=None,
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip


@_examples(8)
@given(CASES)
def test_a_composition_has_the_figures_of_its_plain_twin(case: Case) -> None:
    _check(case)


@pytest.mark.slow
@_examples(300)
@given(CASES)
def test_many_compositions_have_the_figures_of_their_plain_twins(case: Case) -> None:
    _check(case)
