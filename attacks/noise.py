"""Noise that a sample draws from (seed, sample index, stream) alone.

A counter-based generator: element k of a sample's stream is the k-th output of SplitMix64
(Steele, Lea and Flood 2014) from a state hashed out of seed, index and stream. So batch size,
order, sharding and resuming cannot change what a sample draws, and the whole batch is drawn by a
few tensor operations on its own device.
"""

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
# Uniform draws are (k + 1/2) / 2^23, the finest grid on which float32 holds them all exactly.
_TWO_23 = float(1 << 23)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's output function: a bijection of 64 bits that scrambles them."""
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _bits(seed: int, index: Tensor, stream: int, count: int) -> Tensor:
    """64 random bits each, shape (n, count)."""
    state = index.new_full((), seed)
    for word in (index, index.new_full((), stream)):
        state = _mix(state + _GOLDEN) ^ (word * _MIX_1)
    state = _mix(state)
    counter = torch.arange(1, count + 1, device=index.device, dtype=torch.int64)
    return _mix(state[:, None] + counter * _GOLDEN)


def _unit(bits: Tensor) -> Tensor:
    return (_shift_right(bits, 41).float() + 0.5) / _TWO_23


def uniform(seed: int, index: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """Uniform draws in (0, 1), float32 of shape (n, *shape), for int64 sample indices (n,)."""
    bits = _bits(seed, index, 2 * stream, math.prod(shape))
    return _unit(bits).view(len(index), *shape)


def normal(seed: int, index: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal draws (Box-Muller), float32 of shape (n, *shape), for sample indices (n,)."""
    count = math.prod(shape)
    bits = _bits(seed, index, 2 * stream + 1, (count + 1) // 2)
    radius = _unit(bits).log_().mul_(-2).sqrt_()
    angle = (bits & ((1 << 23) - 1)).float() * (2 * math.pi / _TWO_23)
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pairs[:, :count].reshape(len(index), *shape)
