"""The global generators of random numbers, which libraries and randomised models draw from."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from attacks import noise

_SEEDS = 1 << 23  # as many as a draw of float32 tells apart


@contextmanager
def kept() -> Iterator[None]:
    """The generators of torch, numpy and Python, put back after the context as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


@contextmanager
def seeded(seed: int, index: Tensor, stream: int) -> Iterator[int]:
    """The generators seeded by a seed, the first of some samples' numbers (n,) and a stream of
    noise, and put back after the context as they were. Yields what they are seeded with."""
    drawn = int(noise.uniform(seed, index[:1], stream, ()).item() * _SEEDS)
    with kept():
        torch.manual_seed(drawn)
        np.random.seed(drawn)
        random.seed(drawn)
        yield drawn
