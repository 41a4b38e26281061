"""The evaluator judges on the simulated accelerator as on the CPU, models of every kind."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, Attack, Smoothed, ThreatModel
from attacks.searches import CarliniWagner, Square
from benchmark.executors import IN_PROCESS
from benchmark.executors.executor import silent
from benchmark.judge.evaluator import Samples
from benchmark.judge.examination import examine
from benchmark.judge.probes import probe
from benchmark.judge.records import MemoryCell
from benchmark.judge.subject import Subject, Terms, until_steady
from benchmark.run.measuring import measure_natural, measure_radii
from benchmark.studies.outputs import gaps, jacobian_norms
from tests.accelerator.simulated import DEVICE, HOST, accelerator
from tests.benchmark.small import measure_attack
from tests.guarded import CLASSES, SHAPE, _Certified, _Network, _recorded, _Rounded, _wave

COUNT = 12


class _Noisy(_Network):
    """Its logits are drawn."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + 0.3 * torch.randn_like(logits)


class _Counting(_Network):
    """Each call changes it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().forward(x) * (1 + 0.01 * self.calls)


class _InCompany(_Network):
    """Its logits depend on the other images of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 0.1 * x.mean(0, keepdim=True))


class _Held(_Network):
    """It holds a tensor that is no buffer, and stays on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.linspace(1, 1.2, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale.to(x)


FROZEN = torch.arange(16).view(SHAPE) < 3
MODELS: dict[str, tuple[Callable[[], nn.Module], Terms]] = {
    "in double precision": (_Network, Terms()),
    "with a twin": (lambda: _Network().float(), Terms()),
    "lost in rounding": (_Rounded, Terms("float32")),
    "in bfloat16": (lambda: _Network().float(), Terms("bfloat16")),
    "certified": (_Certified, Terms()),
    "certified with a twin": (lambda: _Certified().float(), Terms()),
    "random": (_Noisy, Terms(draws=6, expectation=2)),
    "stateful": (_Counting, Terms()),
    "depends on the batch": (_InCompany, Terms()),
    "holds a tensor": (_Held, Terms()),
    "with frozen pixels": (_Network, Terms(scale=torch.ones(SHAPE).double(), frozen=FROZEN)),
    "may reject": (_Network, Terms(reject=2, may_reject=True)),
}
ZEROS, ONES = torch.zeros(SHAPE).double(), torch.ones(SHAPE).double()
ATTACKS: dict[str, tuple[ThreatModel, Attack]] = {
    "pgd": (ThreatModel("l2", 0.25), PGD(steps=6)),
    "cw": (ThreatModel("linf", 0.08), CarliniWagner(steps=8, searches=2)),
    "smoothed within bounds": (ThreatModel("l2", 0.25, ZEROS, ONES), Smoothed(PGD(steps=4))),
    "square": (ThreatModel("l1", 0.5), Square(steps=10)),
}


def _records(measure: Callable[[Subject, MemoryCell], None], subject: Subject) -> dict[str, Any]:
    def measured(subject: Subject) -> dict[str, Any]:
        cell = MemoryCell()
        measure(subject, cell)
        return _recorded(cell)

    return until_steady(subject, measured)


def _judged(name: str, threat: ThreatModel, attack: Attack, device: torch.device) -> dict[str, Any]:
    """All that is found out about a model: its nature, its records, and the flags of probes."""
    build, terms = MODELS[name]
    model, everything = build(), np.arange(COUNT)
    dtype = next(model.parameters()).dtype
    x = ((_wave(COUNT, *SHAPE, phase=0.4) + 1) / 2).to(dtype)
    plain = _Network().to(dtype)
    labels = torch.ones(COUNT).long() if isinstance(model, _Rounded) else plain(x).argmax(1)
    samples = Samples(x, labels, everything)
    subject = examine(model, x, device, terms)
    assert all(value.device == device for value in subject.model.parameters())
    judged: dict[str, Any] = {
        "nature": (subject.flags, subject.has_twin, subject.is_random, subject.is_stateful),
        "natural": _records(lambda s, cell: measure_natural(s, samples, cell, 5), subject),
        "attacked": _records(
            lambda s, cell: measure_attack(s, samples, everything, threat, attack, 0, cell, 5),
            subject,
        ),
        "probed": probe(IN_PROCESS.hold(subject), threat, 0, 5, samples.at(everything), silent),
    }
    if isinstance(model, _Certified):
        judged["radii"] = _records(
            lambda s, cell: measure_radii(s, samples, threat, cell, 5), subject
        )
    return judged


@pytest.mark.parametrize(
    "attack",
    [name if name == "pgd" else pytest.param(name, marks=pytest.mark.slow) for name in ATTACKS],
)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_judged_on_the_device_as_on_the_cpu(name: str, attack: str) -> None:
    on_host = _judged(name, *ATTACKS[attack], HOST)
    with accelerator() as device:
        on_device = _judged(name, *ATTACKS[attack], DEVICE)
    assert on_device == on_host
    assert device.waited > 0  # else nothing ran there


@pytest.mark.slow
def test_the_models_are_of_the_kinds_that_they_are_here_for() -> None:
    found = {}
    for name in MODELS:
        with accelerator():
            flags, has_twin, is_random, is_stateful = _judged(name, *ATTACKS["pgd"], DEVICE)[
                "nature"
            ]
        found[name] = {
            "twin": has_twin, "random": is_random, "stateful": is_stateful,
            "batch": "batch-dependent" in flags,
        }  # fmt: skip
    assert found["with a twin"]["twin"]
    assert found["certified with a twin"]["twin"]
    assert found["random"]["random"]
    assert found["stateful"]["stateful"]
    assert found["depends on the batch"]["batch"]
    assert not any(found["in double precision"].values())


@pytest.mark.parametrize("measure", [gaps, jacobian_norms])
def test_outputs_are_measured_on_the_device(measure: Callable[..., Tensor]) -> None:
    x = (_wave(COUNT, *SHAPE, phase=0.4) + 1) / 2
    expected = measure(_Network(), x, HOST)
    with accelerator():
        found = measure(_Network(), x, DEVICE)
    assert found.device == HOST
    torch.testing.assert_close(found, expected)
