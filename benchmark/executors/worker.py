"""What a worker does with a unit that it is sent."""

import gc
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch

from attacks.messages import one_line
from benchmark.errors import UserError
from benchmark.executors.executor import Tell, silent
from benchmark.executors.hosts import differing, versions
from benchmark.executors.parcels import Parcel, loaded, packed, unpacked
from benchmark.executors.ray_with_token import ray


@dataclass(frozen=True)
class Setup:
    """What workers must have: the versions of the process that asks, and so many threads."""

    versions: dict[str, str]
    threads: int

    def check(self) -> None:
        """Raises UserError on a host that has other versions."""
        if wrong := differing(versions(), self.versions):
            raise UserError(f"host {socket.gethostname()} has {wrong}: install the same")


@dataclass(frozen=True)
class Began:
    host: str


@dataclass(frozen=True)
class Done:
    parcel: Parcel


@dataclass(frozen=True)
class Raised:
    error: Exception


@dataclass(frozen=True)
class Warned:
    line: str


# Units run in a thread of their own, so that what they tell leaves the worker meanwhile. It is
# always the same one: each has threads of torch.
_thread = ThreadPoolExecutor(1)


def carry_out(setup: Setup, parcel: Parcel, is_heard: bool) -> Iterator[Any]:
    """Carry out a unit, in a worker: yields Began, what the unit tells if somebody hears it, and
    Done or Raised."""
    setup.check()
    yield Began(f"{socket.gethostname()} (process {os.getpid()})")
    said = SimpleQueue[Any]()
    tell = said.put if is_heard else silent
    _thread.submit(_unit, setup, parcel, tell, ray.get_gpu_ids(), said)
    while True:
        item = said.get()
        yield item
        if isinstance(item, Done | Raised):
            return


def versions_here() -> dict[str, str]:
    """The versions that this worker has: Ray takes plain functions alone."""
    return versions()


def _unit(
    setup: Setup,
    parcel: Parcel,
    tell: Tell,
    gpus: Sequence[int | str],
    said: "SimpleQueue[Any]",
) -> None:
    """Carry out a unit, and put what it tells and how it ends into a queue."""
    try:
        torch.set_num_threads(setup.threads)
        with _on_gpu(gpus), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("once", UserWarning)
            unit, given = unpacked(parcel)
            done = Done(packed(unit(*given, tell)))
        for line in {str(warning.message) for warning in warned if _is_told(warning)}:
            said.put(Warned(line))
        said.put(done)
    except BaseException as error:  # or nothing would ever come
        said.put(Raised(_portable(error)))


@contextmanager
def _on_gpu(gpus: Sequence[int | str]) -> Iterator[None]:
    """Compute on the GPU that Ray gave to a unit, which the next one in this process may not get,
    and leave no memory of it taken."""
    if not gpus or not torch.cuda.is_available():
        yield
        return
    torch.cuda.set_device(_place(str(gpus[0]), os.environ.get("CUDA_VISIBLE_DEVICES")))
    try:
        yield
    finally:
        loaded.cache_clear()
        gc.collect()
        torch.cuda.empty_cache()


def _place(gpu: str, visible: str | None) -> int:
    """The number that torch gives to a GPU which Ray names, of those that a process may see.

    >>> _place("1", None), _place("7", "6,7")
    (1, 1)
    """
    return visible.split(",").index(gpu) if visible else int(gpu)


def _is_told(warning: warnings.WarningMessage) -> bool:
    """Whether a warning is for users, as those are that come without a kind of their own."""
    return warning.category is UserWarning


def _portable(error: BaseException) -> Exception:
    """An error that can leave the worker, with the same line."""
    line = "an error that cannot be told"
    with suppress(Exception):
        line = one_line(error)
        if isinstance(error, Exception) and one_line(unpacked(packed(error))) == line:
            return error.with_traceback(None)
    named: Exception = type(type(error).__name__, (RuntimeError,), {})(line)
    return named
