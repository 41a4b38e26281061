"""Samples, settings and models that are not right get one clear line or a flag."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import Problem
from benchmark import UserError, evaluate
from benchmark.data.sets import load_dataset
from tests.benchmark.small import (
    Dropping,
    Linear,
    N,
    Wrapped,
    X,
    Y,
    attacked,
    evaluate_small,
    refusal,
)


def test_what_is_right_has_no_flags() -> None:
    report = evaluate_small()
    assert (report.natural, report.per_attack, report.flags) == (1.0, {"PGD": 0.0}, {})
    assert evaluate_small(eps=0.09).best_attack == 1.0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"attacks": ["pdg"]}, "unknown attack 'pdg': did you mean 'pgd'?"),
        ({"attacks": ["pgd/step=1"]}, "attack 'pgd' has no option 'step': did you mean 'steps'?"),
        (
            {"attacks": [{"steps": 3}]},
            "an attack is not valid: name: Input should be a valid string",
        ),
        ({"suite": "quik"}, "unknown suite 'quik': did you mean 'quick'?"),
        ({"norm": "l0"}, "unknown norm 'l0': use one of l2, linf, l1"),
        ({"norm": "linf", "attacks": ["boundary"]}, "attack 'boundary' runs under l2 only"),
        ({"mode": "both"}, "unknown mode 'both': use one of table, cascade"),
        ({"device": "tpu"}, "unknown device 'tpu': use auto, cpu, cuda or cuda:1"),
        (
            {"precision": "float8"},
            "unknown precision 'float8': use one of model, float32, float64, bfloat16, float16",
        ),
        ({"draw": 3}, "unknown option 'draw': did you mean 'draws'?"),
        ({"expectation": 1}, "expectation must be an integer of at least 2, not 1"),
        ({"eps": 0}, "eps must be above 0 and finite, not 0.0"),
        ({"eps": -1}, "eps must be above 0 and finite, not -1.0"),
        ({"eps": math.nan}, "eps must be above 0 and finite, not nan"),
        ({"eps": math.inf}, "eps must be above 0 and finite, not inf"),
        ({"eps": 1e38}, "eps must be at most 1e+30, not 1e+38"),
        ({"block": 0}, "block must be an integer of at least 1, not 0"),
        (
            {"x": X * 3},
            "images must lie in [0, 1], not [1.5, 1.5]: scale them, and put any normalisation "
            "inside the model, or pass bounds=(lower, upper)",
        ),
        (
            {"x": X - 0.75},
            "images must lie in [0, 1], not [-0.25, -0.25]: scale them, and put any normalisation "
            "inside the model, or pass bounds=(lower, upper)",
        ),
        (
            {"x": X * math.nan},
            "x holds NaN in 6 of 6 samples: replace it, or leave them out",
        ),
        (
            {"x": X.to(torch.uint8)},
            "x must hold floats in [0, 1], not torch.uint8: pass scale=255 for images that go "
            "up to 255",
        ),
        (
            {"x": np.ones((N, 4), dtype=np.uint8)},
            "x must hold floats in [0, 1], not torch.uint8: pass scale=255 for images that go "
            "up to 255",
        ),
        ({"y": Y[:-1]}, "y must hold one label per image: x (6, 4), y (5,)"),
        (
            {"y": torch.ones(6, 3)},
            "y must hold one label per image, or one-hot rows, not (6, 3) numbers",
        ),
        ({"y": None}, "y is missing: pass labels, or a Dataset or DataLoader that holds them"),
        (
            {"x": [["a"]] * 6},
            "x must hold numbers, not str",
        ),
        ({"x": X[:, 0]}, "x must hold one row or image per sample, not (6,)"),
        ({"scale": 0}, "scale must be a number above 0, not 0"),
        ({"x": X[:0], "y": Y[:0]}, "x holds no images: its shape is (0, 4)"),
        ({"y": Y.float()}, "y must hold integer labels, not torch.float32: pass y.long()"),
        ({"y": Y - 1}, "labels must be at least 0, not -1"),
        ({"y": Y + 2}, "labels go up to 2 but the model gives 2 logits"),
        ({"index": [0, 1]}, "index must hold one number per image, not shape (2,)"),
        ({"model": "model"}, "model must be a torch.nn.Module, not str"),
    ],
)
def test_what_cannot_be_evaluated_gets_one_line(options: dict[str, Any], line: str) -> None:
    assert refusal(**options) == line


def test_a_label_out_of_range_is_found_wherever_it_is() -> None:
    y = torch.cat([Y[:-1], torch.tensor([2])])
    assert refusal(y=y, block=2) == "labels go up to 2 but the model gives 2 logits"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda z: z[:, :1],
            "the model must give logits (n, classes) for 6 images, not (6, 1): pass binary=True if "
            "the sign of one logit decides between two classes",
        ),
        (lambda z: z[0], "the model must give logits (n, classes) for 6 images, not (2,)"),
        (lambda z: z[:3], "the model must give logits (n, classes) for 6 images, not (3, 2)"),
        (
            lambda z: (z, z),
            "the model must give logits (n, classes), not a tuple: say where they are, such as "
            "output=0",
        ),
        (
            lambda z: {"logits": z},
            "the model must give logits (n, classes), not a dict with 'logits': say where they "
            "are, such as output='logits'",
        ),
        (
            lambda z: z @ z,
            "the model does not run on images of shape (6, 4): RuntimeError: "
            "mat1 and mat2 shapes cannot be multiplied (6x2 and 6x2)",
        ),
    ],
)
def test_a_model_that_gives_no_logits_gets_one_line(
    change: Callable[[Tensor], Any], line: str
) -> None:
    model = Wrapped(change).eval()
    assert refusal(model) == line
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nan_logits_at_attacked_points_are_flagged_and_count_as_broken() -> None:
    def change(logits: Tensor) -> Tensor:
        return torch.where(logits[:, :1] < 0.05, math.nan, logits)  # beyond 0.55

    model = Wrapped(change).eval()
    report = attacked(lambda p: p.x + torch.tensor([0.07, 0, 0, 0]), model=model)
    assert report.best_attack == 0.0
    assert list(report.flags) == ["nan"]
    assert attacked(lambda p: p.x, model=model).flags == {}


def test_nan_logits_at_a_clean_image_of_a_later_block_are_flagged() -> None:
    x = X.clone()
    x[-1] = 0.58
    model = Wrapped(lambda z: torch.where(z[:, :1] < 0.05, math.nan, z)).eval()
    report = attacked(lambda p: p.x, model=model, x=x, block=2)
    assert report.natural == (N - 1) / N
    assert list(report.flags) == ["nan"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("half", "float16"),
        ("single", "float32"),
        ("double", "float64"),
        (torch.float16, "float16"),
        (torch.bfloat16, "bfloat16"),
        (torch.float32, "float32"),
        (torch.double, "float64"),
    ],
)
def test_a_precision_may_go_by_another_name(given: Any, name: str) -> None:
    assert evaluate_small(precision=given).precision == name


def test_a_dtype_that_is_no_precision_is_refused() -> None:
    known = "use one of model, float32, float64, bfloat16, float16"
    assert refusal(precision=torch.int8) == f"unknown precision 'int8': {known}"


def test_probabilities_are_flagged() -> None:
    report = evaluate_small(Wrapped(lambda z: z.softmax(1)).eval())
    assert list(report.flags) == ["probabilities"]
    assert evaluate_small(Wrapped(lambda z: z.log_softmax(1)).eval()).flags == {}


def test_a_model_that_answers_otherwise_each_time_is_flagged() -> None:
    model = Wrapped(lambda z: z + 1e-3 * torch.rand_like(z)).eval()
    assert list(evaluate_small(model).flags) == ["non-deterministic"]


def test_a_model_as_it_was_made_is_evaluated_in_eval_mode_which_a_note_says() -> None:
    model = Dropping()
    report = evaluate_small(model)
    assert report.flags == {}
    assert report.notes == [
        "Dropping: it was handed over in training mode, and measured in eval mode"
    ]
    assert report.natural == 1.0
    assert (model.training, model.drop.training, model.norm.training) == (True, True, True)
    assert evaluate_small(model.eval()).notes == []


def test_a_part_that_is_in_training_mode_on_purpose_is_flagged() -> None:
    model = Dropping().eval()
    model.drop.train()
    report = evaluate_small(model)
    assert list(report.flags) == ["train-mode"]
    assert (report.natural, report.notes) == (1.0, [])
    assert (model.training, model.drop.training) == (False, True)


@pytest.mark.parametrize("fault", [None, UserError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_model_comes_back_as_it_was(precision: str, fault: BaseException | None) -> None:
    def points(problem: Problem) -> Tensor:
        if fault:
            raise fault
        return problem.x

    model = Dropping().double().train()
    with torch.no_grad():
        model.weight += 1e-12  # not a float32
        model.norm.running_mean += 1e-12
    model.bias.requires_grad_(False)
    model.drop.eval()
    model.weight.grad = torch.ones_like(model.weight)
    state = {name: value.clone() for name, value in model.state_dict(keep_vars=True).items()}
    tensors = list(model.state_dict(keep_vars=True).values())

    if fault is None:
        attacked(points, model=model, precision=precision)
    else:
        with pytest.raises(type(fault)):
            attacked(points, model=model, precision=precision)
    assert (model.training, model.drop.training, model.norm.training) == (True, False, True)
    assert (model.weight.requires_grad, model.bias.requires_grad) == (True, False)
    for name, value in model.state_dict(keep_vars=True).items():
        assert value.dtype == state[name].dtype
        assert torch.equal(value, state[name])
    assert all(
        a is b for a, b in zip(model.state_dict(keep_vars=True).values(), tensors, strict=True)
    )
    assert torch.equal(model.weight.grad, torch.ones_like(model.weight))
    assert model.weight.grad.dtype == torch.float64


def test_a_model_of_several_precisions_comes_back_as_it_was() -> None:
    model = Dropping().eval()
    model.norm.double()
    evaluate_small(model, precision="float64")
    assert (model.weight.dtype, model.norm.running_mean.dtype) == (torch.float32, torch.float64)


@pytest.mark.filterwarnings("ignore")  # torch would rather have torch.export
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda model: torch.jit.trace(model, X)])
def test_a_compiled_model_is_evaluated(compiled: Callable[[nn.Module], nn.Module]) -> None:
    report = evaluate_small(compiled(Linear().eval()))
    assert (report.natural, report.best_attack, report.flags) == (1.0, 0.0, {})


class _Rounding(nn.Module):
    """A linear model behind a quantiser, whose gradient is zero everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Linear()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner((4 * x).round() / 4)
        return logits


def test_a_model_that_hides_its_gradients_is_flagged() -> None:
    assert "zero-gradient" in evaluate_small(_Rounding().eval()).flags
    assert "zero-gradient" not in evaluate_small().flags


def test_a_model_under_no_grad_is_flagged() -> None:
    class Closed(Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = super().forward(x)
            return logits

    report = evaluate_small(Closed().eval())
    assert "zero-gradient" in report.flags
    assert "attack-error" in report.flags


def test_labels_off_by_one_are_flagged() -> None:
    data = load_dataset("digits").test
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    right = model(data.x).argmax(1)
    assert "chance" not in evaluate(model, data.x, right, eps=0.01, attacks=["pgd/steps=1"]).flags
    wrong = evaluate(model, data.x, (right + 1) % 10, eps=0.01, attacks=["pgd/steps=1"])
    assert wrong.natural == 0
    assert "chance" in wrong.flags


def test_eps_in_pixels_is_flagged() -> None:
    assert "whole-range" in evaluate_small(norm="linf", eps=8).flags
    assert "whole-range" not in evaluate_small(norm="linf", eps="8/255").flags
