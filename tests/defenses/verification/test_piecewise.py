"""Networks read as matrices compute what they did, and their units stay within their bounds."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defenses.verification.piecewise import PiecewiseLinear, read_network
from defenses.verification.relaxation import bound_units
from tests.defenses.verification.piecewise_networks import NETWORKS, SHAPE


def _forward(network: PiecewiseLinear, x: Tensor) -> Tensor:
    value = x.double().flatten(1).numpy().T
    for layer in network.layers:
        z = layer.weight @ value + layer.bias[:, None]
        value = np.maximum(z, layer.slope[:, None] * z)
    return torch.from_numpy((network.weight @ value + network.bias[:, None]).T)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_matrices_compute_what_the_module_does(name: str) -> None:
    shape, build = NETWORKS[name]
    model, x = build().eval(), torch.randn(20, *shape)
    assert torch.allclose(_forward(read_network(model, shape), x), model.double()(x.double()))


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_hold_in_the_whole_box_and_at_its_corners(name: str) -> None:
    shape, build = NETWORKS[name]
    network = read_network(build(), shape)
    low = np.random.default_rng(0).random(int(np.prod(shape)))
    high = low + 0.3
    parts = np.random.default_rng(1).random((2000, len(low)))
    parts[::2] = parts[::2].round()
    value = (low + parts * (high - low)).T
    for layer, line in zip(network.layers, bound_units(network, low, high), strict=True):
        z = layer.weight @ value + layer.bias[:, None]
        value = np.maximum(z, layer.slope[:, None] * z)
        tiny = 1e-12
        assert (line.low - tiny <= z.min(1)).all()
        assert (z.max(1) <= line.high + tiny).all()
        assert (line.lower[:, None] * z <= value + tiny).all()
        assert (value <= line.upper[:, None] * z + line.offset[:, None] + tiny).all()


@pytest.mark.parametrize("module", [nn.MaxPool2d(2, padding=1), nn.MaxPool2d(2, ceil_mode=True)])
def test_max_pooling_over_the_edge_is_refused(module: nn.Module) -> None:
    model = nn.Sequential(module, nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match="without padding and ceil_mode only"):
        read_network(model, SHAPE)
