"""Randomness that a training names by its seed, and arithmetic that gives the same bits again."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def seed_for(*words: object) -> int:
    """A seed of its own for each purpose that the words name."""
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:8], "big") >> 1


def shuffled(samples: int, seed: int, epoch: int) -> Tensor:
    """The numbers (samples,), int64, of the training samples in an epoch's own random order."""
    generator = torch.Generator().manual_seed(seed_for(seed, "order", epoch))
    return torch.randperm(samples, generator=generator)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Global randomness, of the CPU and the device, is seeded inside and restored after."""
    # Not torch.manual_seed: it also seeds all other accelerators, which nobody would restore.
    cuda = device.type == "cuda"
    numbers = [torch.empty(0, device=device).device.index] if cuda else []
    with torch.random.fork_rng(numbers):
        torch.default_generator.manual_seed(seed)
        for number in numbers:
            torch.cuda.default_generators[number].manual_seed(seed)
        yield


@contextmanager
def repeatable() -> Iterator[None]:
    """Convolutions on an accelerator use algorithms that give the same bits each time."""
    backend = torch.backends.cudnn
    before = backend.deterministic, backend.benchmark
    backend.deterministic, backend.benchmark = True, False
    try:
        yield
    finally:
        backend.deterministic, backend.benchmark = before
