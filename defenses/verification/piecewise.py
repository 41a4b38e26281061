"""Small piecewise-linear networks as matrices, which are read from a module."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from defenses.foreign.adapting.normalisation import Normalised

Array = NDArray[np.float64]
Matrix = Any  # a scipy.sparse.csr_array: scipy is loaded only where one is made

# Layers that are affine in eval mode. Their matrices are their outputs for unit vectors.
_AFFINE = (
    nn.Linear,
    nn.Conv2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
)

# How many unit vectors are forwarded at once.
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of units: z = weight @ input + bias, and then max(z, slope * z), which is ReLU for
    slope 0, and z itself for slope 1.

    weight (units, inputs), sparse; bias and slope (units,), the latter in [0, 1].
    """

    weight: Matrix
    bias: Array
    slope: Array


@dataclass(frozen=True, eq=False)
class PiecewiseLinear:
    """A network from flattened images through `layers` to logits weight @ output + bias, in
    float64."""

    layers: tuple[Layer, ...]
    weight: Matrix
    bias: Array


def read_network(model: nn.Module, shape: tuple[int, ...]) -> PiecewiseLinear:
    """Read what `model` computes in eval mode from images of `shape`.

    It may consist, in Sequential and in Normalised, of: Linear, Conv2d, BatchNorm1d and 2d,
    AvgPool2d, AdaptiveAvgPool2d, MaxPool2d, ReLU, LeakyReLU, Flatten, Dropout, Dropout2d, Identity.
    Raises ValueError, in one line, for any other layer.
    """
    layers: list[Layer] = []
    weight = identity(int(np.prod(shape)))
    bias = np.zeros(weight.shape[0])
    for module in _leaves(copy.deepcopy(model).cpu().double().eval()):
        if isinstance(module, nn.ReLU | nn.LeakyReLU):
            leak = module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0
            layers.append(Layer(weight, bias, np.full(len(bias), leak)))
            weight, bias = identity(len(bias)), np.zeros(len(bias))
        elif isinstance(module, nn.MaxPool2d):
            windows, shape = _windows(module, shape)
            while windows.shape[1] > 1:
                compare, slope, add, windows = _round(windows, len(bias))
                layers.append(Layer(compare @ weight, compare @ bias, slope))
                weight, bias = add, np.zeros(add.shape[0])
            weight, bias = weight[windows[:, 0]], bias[windows[:, 0]]
        else:
            matrix, offset, shape = _affine(module, shape)
            weight, bias = matrix @ weight, matrix @ bias + offset
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(f"exact: the network gives {shape} for an image, not two or more logits")
    for matrix, offset in [*((layer.weight, layer.bias) for layer in layers), (weight, bias)]:
        if not (np.isfinite(matrix.data).all() and np.isfinite(offset).all()):
            raise ValueError("exact: the network has weights that are not finite")
    return PiecewiseLinear(tuple(layers), weight, bias)


def identity(size: int) -> Matrix:
    """The sparse unit matrix."""
    from scipy.sparse import csr_array, eye

    return csr_array(eye(size))


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that compute something, in their order. Raises ValueError for one that is not
    supported."""
    kind = type(module)
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(f"exact: the layer {kind.__name__} has hooks, which are not supported")
    # A subclass may compute anything, and then has a forward of its own.
    if isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward:
        for child in module:
            yield from _leaves(child)
    elif isinstance(module, Normalised) and kind is Normalised:
        mean, std = module.mean.flatten().tolist(), module.std.flatten().tolist()
        yield Normalised(nn.Identity(), mean, std).double()
        yield from _leaves(module.model)
    elif kind in (*_AFFINE, nn.ReLU, nn.LeakyReLU, nn.MaxPool2d):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is None:
            raise ValueError(f"exact: {module} keeps no running statistics")
        if isinstance(module, nn.LeakyReLU) and not 0 <= module.negative_slope <= 1:
            raise ValueError(f"exact: the slope of {module} must lie in [0, 1]")
        yield module
    else:
        raise ValueError(f"exact: the layer {kind.__name__} is not supported")


@torch.no_grad()
def _affine(module: nn.Module, shape: tuple[int, ...]) -> tuple[Matrix, Array, tuple[int, ...]]:
    """The matrix (outputs, inputs), offset (outputs,) and output shape of an affine module."""
    from scipy.sparse import csr_array, vstack

    inputs = int(np.prod(shape))
    zero = module(torch.zeros(1, *shape, dtype=torch.float64))
    columns = []
    for places in torch.arange(inputs).split(_BLOCK):
        units = nn.functional.one_hot(places, inputs).double().view(-1, *shape)
        columns.append(csr_array((module(units) - zero).flatten(1).numpy()))
    return vstack(columns).T.tocsr(), zero.flatten().numpy(), tuple(zero.shape[1:])


def _windows(
    module: nn.MaxPool2d, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """The numbers of the inputs (outputs, size) that each output is the largest of, and the output
    shape."""
    if module.padding not in (0, (0, 0)) or module.ceil_mode or module.return_indices:
        raise ValueError(f"exact: {module} is supported without padding and ceil_mode only")
    places = torch.arange(int(np.prod(shape)), dtype=torch.float64).view(shape)
    windows = nn.functional.unfold(
        places[:, None], module.kernel_size, module.dilation, stride=module.stride
    )
    after = tuple(module(places).shape)
    return windows.transpose(1, 2).reshape(-1, windows.shape[1]).long().numpy(), after


def _round(
    windows: NDArray[np.int64], inputs: int
) -> tuple[Matrix, Array, Matrix, NDArray[np.int64]]:
    """One round of a knockout among each window's inputs, by max(a, b) = a + ReLU(b - a).

    Returns the matrix (units, inputs) that compares inputs, the slopes (units,), the matrix
    (winners, units) that adds units up to the winners, and the windows over the winners.
    """
    from scipy.sparse import csr_array, vstack

    half = windows.shape[1] // 2
    first, second = windows[:, :half].ravel(), windows[:, half : 2 * half].ravel()
    passed = np.concatenate([first, windows[:, 2 * half :].ravel()])
    winners, pairs = len(passed), len(first)
    entry, unit = identity(inputs), identity(winners + pairs)
    compare = vstack([entry[passed], entry[second] - entry[first]]).tocsr()
    slope = np.repeat([1.0, 0.0], [winners, pairs])
    add = unit[:winners] + vstack([unit[winners:], csr_array((winners - pairs, winners + pairs))])
    places = np.split(np.arange(winners), [pairs])
    after = np.concatenate([part.reshape(len(windows), -1) for part in places], axis=1)
    return compare, slope, add.tocsr(), after
