"""How many passes through two usual networks this machine makes in a second, and whether their
outputs are right."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from benchmark.direct.inspection import told
from benchmark.direct.pass_cost import cost_of_model
from benchmark.judge.surroundings import undisturbed
from benchmark.machine.checkup import Line, Section
from defenses import build_architecture
from defenses.training.bfloat16 import in_bfloat16, is_fast

# What is timed: how a network is called, its architecture, and the shape of its images.
_TIMED = (
    ("CNN-2 on MNIST", "cnn2", (1, 28, 28)),
    ("Myrtle on CIFAR", "myrtle", (3, 32, 32)),
)

# How many images are passed at once at most, and for how long each network is timed, in seconds,
# roughly.
_BLOCK, _SECONDS = 256, 0.6

# How far logits in float32 may be from those in float64, as a part of the largest. Rounding makes a
# millionth of it.
_OFF = 1e-3

# The example by which speeds are told: images, and steps of PGD, each of which is a pass forward
# and backward for each image.
_IMAGES, _STEPS = 1000, 100


def speed(device: torch.device) -> Section:
    """What passes forward and backward take on a device, and what that makes of an attack."""
    lines = []
    for name, architecture, shape in _TIMED:
        with undisturbed():
            torch.manual_seed(0)
            network = build_architecture(architecture, shape, 10).eval().requires_grad_(False)
            x = torch.rand(_BLOCK, *shape)
            lines += _lines(name, network.to(device), x.to(device))
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if device.type == "cpu" else ""
    return Section(f"Speed on {device}{threads}: forward and backward passes of an image", lines)


def _lines(name: str, network: nn.Module, x: Tensor) -> list[Line]:
    off = _off(network, x[:16])
    if not off < _OFF:
        text = f"float32 and float64 differ by {off:.1g} of the largest logit"
        remedy = "This torch computes wrongly here: install another build of it, and test memory."
        return [Line(name, text, remedy, is_wrong=True)]
    in_float32 = _rate(network, x, nullcontext())
    rates = f"{in_float32:,.0f} a second in float32"
    if is_fast(x.device):
        rates += f", {_rate(network, x, in_bfloat16(network)):,.0f} in bfloat16"
    seconds = _IMAGES * _STEPS / in_float32
    taken = f"{_STEPS} steps of PGD on {_IMAGES} images: about {told(seconds)}"
    return [Line(name, rates), Line("", taken)]


def _rate(network: nn.Module, x: Tensor, precision: AbstractContextManager[None]) -> float:
    """Passes forward and backward of an image, in a second."""
    with precision:
        cost = cost_of_model(network, x, _SECONDS)
    assert cost.backward is not None
    return 1 / (cost.forward + cost.backward)


def _off(network: nn.Module, x: Tensor) -> float:
    """How far logits in float32 are from those in float64, as a part of the largest of these."""
    exact = copy.deepcopy(network).double()(x.double())
    return float(((network(x) - exact).abs().max() / exact.abs().max()).nan_to_num(torch.inf))
