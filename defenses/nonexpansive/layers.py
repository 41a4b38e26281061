"""Layers that never expand an L2 distance, of k networks at once (Qian and Wegman 2019, "L2-
nonexpansive neural networks", L2NNN below).

Between layers a tensor is (k, n, *features). A first dimension of 1 says that all k networks share
the tensor, as they share the images. The first dimension of every parameter is k, so that a slice
of each parameter is a network. A single network is a stack of 1.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, linear, pad, unfold

from defenses.nonexpansive.scalings import SCALINGS, penalty

Pair = int | tuple[int, int]


class Weighted(nn.Module):
    """A layer with a matrix (outputs, inputs) of spectral norm at most `gain`, and a bias, for each
    of k networks.

    weight    (k, outputs, inputs), the raw parameter, of which the matrix is made; bias (k,
              outputs).
    scaling   how the matrix is made of the weight, a name in SCALINGS.
    strict    False to take the raw weight times the gain, for early training with `penalty` in the
              loss (L2NNN, appendix A.1).

    Raises ValueError for an unknown scaling.
    """

    # What `effective` keeps in eval mode: the weight, its version, and the matrices made of it.
    _kept: tuple[Tensor, int, Tensor] | None

    def __init__(
        self, stack: int, inputs: int, outputs: int, scaling: str, gain: float = 1.0
    ) -> None:
        super().__init__()
        if scaling not in SCALINGS:
            choices = ", ".join(SCALINGS)
            raise ValueError(f"unknown scaling {scaling!r}: use one of {choices}")
        self.scaling, self.gain = scaling, gain
        self._strict, self._kept = True, None
        self.weight = nn.Parameter(torch.empty(stack, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(stack, outputs))
        nn.init.uniform_(self.weight, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))

    @property
    def stack(self) -> int:
        """How many networks' layers these are."""
        return len(self.weight)

    @property
    def strict(self) -> bool:
        """Whether the matrices are of spectral norm at most `gain`."""
        return self._strict

    @strict.setter
    def strict(self, value: bool) -> None:
        self._strict, self._kept = value, None

    def effective(self) -> Tensor:
        """The matrices (k, outputs, inputs) that are applied.

        In train mode they are made anew, with gradients to the weight. In eval mode they are made
        once, in float64, without gradients, and kept until the weight changes; a change through
        `weight.data` goes unnoticed until train() or eval().
        """
        if self.training:
            return self._scaled(self.weight)
        version = self.weight._version
        kept = self._kept
        if kept is None or kept[0] is not self.weight or kept[1] != version:
            # What inference mode makes could never take part in a gradient.
            with torch.inference_mode(False), torch.no_grad():
                scaled = self._scaled(self.weight.double())
                matrices = scaled.to(self.weight.dtype).contiguous()
            self._kept = kept = (self.weight, version, matrices)
        return kept[2]

    def penalty(self) -> Tensor:
        """Equation (7) of L2NNN, summed over the stack: a scalar."""
        return penalty(self.weight).sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, self.effective(), self.bias)

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each network's effective matrix (1, outputs, inputs) and bias (1, outputs), in turn."""
        matrices = self.weight if self.training else self.effective()
        for matrix, bias in zip(matrices.split(1), self.bias.split(1), strict=True):
            yield (self._scaled(matrix) if self.training else matrix), bias

    def run(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The layer's output for x, with the matrices and biases of any of its networks."""
        raise NotImplementedError

    def _scaled(self, weight: Tensor) -> Tensor:
        matrices = SCALINGS[self.scaling](weight) if self._strict else weight
        return matrices if self.gain == 1 else self.gain * matrices

    def train(self, mode: bool = True) -> "Weighted":
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Weighted":
        self._kept = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        # A copy counts its weight's versions from 0, so that kept matrices might pass for its own.
        return self.__dict__ | {"_kept": None}


class Linear(Weighted):
    """Fully connected: (1 or k, n, inputs) to (k, n, outputs) (L2NNN, section 2.1)."""

    def __init__(self, stack: int, inputs: int, outputs: int, scaling: str = "cayley") -> None:
        super().__init__(stack, inputs, outputs, scaling)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _product(x, weight, bias)


class Conv(Weighted):
    """Convolution: (1 or k, n, channels, h, w) to (k, n, filters, h', w'), with zeros around.

    Its matrix (filters, channels * kernel height * kernel width) is multiplied with each patch, and
    divided by the square root of how many patches a pixel may be in (L2NNN, section 2.1). Distance
    is kept best by a kernel as large as its stride, because a pixel is then in one patch, and by no
    fewer filters than a patch has entries.
    """

    def __init__(
        self,
        stack: int,
        channels: int,
        filters: int,
        kernel: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        scaling: str = "cayley",
    ) -> None:
        sides, steps = _pair(kernel), _pair(stride)
        gain = 1 / math.sqrt(_copies(sides, steps))
        super().__init__(stack, channels * math.prod(sides), filters, scaling, gain)
        self.kernel, self.stride, self.padding = sides, steps, _pair(padding)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        n, channels, *sides = x.shape[1:]
        stack, filters = weight.shape[:2]
        if len(x) == 1:
            kernels = weight.reshape(stack * filters, channels, *self.kernel)
            shared: Tensor = conv2d(x[0], kernels, bias.reshape(-1), self.stride, self.padding)
            return shared.view(n, stack, filters, *shared.shape[2:]).transpose(0, 1)
        # Faster than a convolution in groups, which vmap would make too.
        patches = unfold(x.flatten(0, 1), self.kernel, padding=self.padding, stride=self.stride)
        outputs: Tensor = weight[:, None] @ patches.unflatten(0, (stack, n))
        outputs = outputs + bias[:, None, :, None]
        size = [
            (side + 2 * around - window) // step + 1
            for side, around, window, step in zip(
                sides, self.padding, self.kernel, self.stride, strict=True
            )
        ]
        return outputs.reshape(stack, n, filters, *size)


class TwoSided(nn.Module):
    """[f(x), f(x) - x] along the features: (k, n, c, ...) to (k, n, 2c, ...) (L2NNN, section 2.2).

    f is a nonexpansive, increasing scalar function; with ReLU it is [relu(x), relu(-x)].
    """

    def __init__(self, f: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        above = self.f(x)
        return torch.cat([above, above - x], dim=2)


class NormPool(nn.Module):
    """The L2 norm of each window: (k, n, c, h, w) to (k, n, c, h', w') (L2NNN, section 2.3).

    Where windows overlap it divides by the square root of the most windows that an entry is in. The
    last windows may reach over the edge, where they find zeros, so that no entry is left out.
    """

    def __init__(self, size: Pair, stride: Pair | None = None) -> None:
        super().__init__()
        self.size = _pair(size)
        self.stride = self.size if stride is None else _pair(stride)

    def forward(self, x: Tensor) -> Tensor:
        squares = x.flatten(0, 1).square()
        over = [max(0, a - b) for a, b in zip(self.size, x.shape[-2:], strict=True)]
        if any(over):
            squares = pad(squares, (0, over[1], 0, over[0]))
        sums = avg_pool2d(squares, self.size, self.stride, ceil_mode=True, divisor_override=1)
        copies = _copies(self.size, self.stride)
        # The norm of the window and one more entry, that is constant: its gradient is finite at 0.
        norms = ((sums if copies == 1 else sums / copies) + _TINY).sqrt()
        return norms.reshape(*x.shape[:2], *norms.shape[1:])


class Flatten(nn.Flatten):
    """(k, n, ...) to (k, n, features)."""

    def __init__(self) -> None:
        super().__init__(start_dim=2)


def penalties(module: nn.Module) -> Tensor:
    """Equation (7) of L2NNN, summed over all layers and the stack: a scalar."""
    return torch.stack([layer.penalty() for layer in weighted(module)]).sum()


def set_strict(module: nn.Module, strict: bool) -> None:
    """Say whether the layers inside are nonexpansive, or have raw weights: see `Weighted`."""
    for layer in weighted(module):
        layer.strict = strict


def weighted(module: nn.Module) -> list[Weighted]:
    """The layers inside with a scaled weight."""
    return [layer for layer in module.modules() if isinstance(layer, Weighted)]


# Is added to squares; its root is far below any rounding.
_TINY = 1e-30


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _copies(window: tuple[int, int], stride: tuple[int, int]) -> int:
    """The most windows that an entry can be in."""
    return math.prod(math.ceil(side / step) for side, step in zip(window, stride, strict=True))


def _product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x Wᵀ + b: (1 or k, n, inputs) to (k, n, outputs)."""
    stack, outputs, inputs = weight.shape
    if len(x) == 1 and stack > 1:
        flat = linear(x[0], weight.reshape(-1, inputs), bias.reshape(-1))
        return flat.view(-1, stack, outputs).transpose(0, 1)
    return torch.baddbmm(bias[:, None], x, weight.mT)
