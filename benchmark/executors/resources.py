"""The memory that is there for blocks of images, and the share of a GPU that one takes."""

import math
from contextlib import suppress
from pathlib import Path

import psutil
import torch

# How much of the memory that is free may be taken: what a block takes is known roughly.
_TAKEN = 0.7

# Bytes that each process takes of a GPU before it computes anything.
_CONTEXT = 600_000_000

# On how many units at most a GPU works at once.
_SHARED = 8

# Where Linux says how much memory a container may take, what it takes, and how that comes about, of
# which what it read from files and does not use now is free to be taken.
_LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
_LIMITED = Path("/sys/fs/cgroup")


def usable_memory(device: torch.device, beside: int) -> float:
    """The bytes that one of so many workers of a host may take on a device; infinite where that is
    not known. Workers share a host's memory, and each has as much of a GPU as it asks for."""
    if device.type == "cuda":
        return _TAKEN * (torch.cuda.mem_get_info(device)[0] - _CONTEXT)
    if device.type != "cpu":
        return math.inf
    return _TAKEN * free_memory() / beside


def free_memory() -> float:
    """The bytes of this machine's memory that are free, as far as a container may take them."""
    free = float(psutil.virtual_memory().available)
    for limit, taken, unused in _LIMITS:
        try:
            most, now = (float((_LIMITED / name).read_text()) for name in (limit, taken))
            lines = (_LIMITED / limit).with_name("memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # there is no limit
            continue
        spare = (float(line.split()[1]) for line in lines if line.split()[:1] == [unused])
        free = min(free, most - now + sum(spare))
    return max(free, 0.0)


def memory_limit() -> float:
    """The bytes of memory that this machine has, or fewer where a container may take fewer."""
    most = float(psutil.virtual_memory().total)
    for limit, _, _ in _LIMITS:
        with suppress(OSError, ValueError):  # there is no limit
            most = min(most, float((_LIMITED / limit).read_text()))
    return most


def whole_gpu(device: torch.device) -> float:
    """The share of a GPU for a unit of which nothing is known; 0 on other devices."""
    return 1.0 if device.type == "cuda" else 0.0


def share_of_gpu(taken: float, device: torch.device) -> float:
    """The share of a GPU for a unit that takes so many bytes; 0 on other devices."""
    if device.type != "cuda":
        return 0.0
    total = torch.cuda.get_device_properties(device).total_memory
    return part_of(taken / _TAKEN + _CONTEXT, total)


def part_of(taken: float, total: float) -> float:
    """One of as many equal parts of a total as hold what is taken each.

    >>> [part_of(taken, 80) for taken in (1, 25, 60, 100)]
    [0.125, 0.3333333333333333, 1.0, 1.0]
    """
    return 1 / max(1, min(_SHARED, int(total / taken)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no more memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch has no class of its own for it on the CPU.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error)
