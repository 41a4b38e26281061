"""Workers on Ray: processes on this machine, or on the hosts of a cluster.

A unit of work is a task of Ray, which is done again elsewhere where its worker is killed or its
host is lost. Nothing but the process that asked for the work writes into a folder.
"""

import asyncio
import os
import socket
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from attacks.messages import described, one_line
from benchmark.environment import Device, check_device, resolve_device
from benchmark.errors import UserError
from benchmark.executors.executor import AHEAD, FIRST, Held, Tell, WorkerLostError, silent
from benchmark.executors.hosts import differing, versions
from benchmark.executors.parcels import packed, unpacked
from benchmark.executors.ray_with_token import (
    NodeAffinitySchedulingStrategy,
    RayError,
    RayMemoryError,
    RayTaskError,
    ray,
)
from benchmark.executors.slots import Slots

T = TypeVar("T")

# Some functions of it have no types.
_ray: Any = ray

# How often a unit is done again whose worker or host was lost; and how many workers it may lose in
# all, of which some were lost before they had begun.
_AGAIN, _LOST = 3, 20

# Of Ray on this machine. By default workers give way to all other processes, as far as starving.
_LOCAL = {"worker_niceness": 0}

# How many values a worker keeps loaded, and how often it tells of numbers, in seconds.
_LOADED, _TELL_SECONDS = 16, 0.5


@dataclass(frozen=True)
class _Setup:
    """What workers must have: the versions of the process that asks, and so many threads."""

    versions: dict[str, str]
    threads: int

    def check(self) -> None:
        """Raises UserError on a host that has other versions."""
        if wrong := differing(versions(), self.versions):
            raise UserError(f"host {socket.gethostname()} has {wrong}: install the same")


@dataclass(frozen=True)
class _Began:
    host: str


@dataclass(frozen=True)
class _Done:
    value: Any


@dataclass(frozen=True)
class _Raised:
    error: Exception


@dataclass(frozen=True)
class _Warned:
    line: str


@dataclass(frozen=True)
class _Sent(Generic[T]):
    """A value in Ray's store, as bytes."""

    ref: "ray.ObjectRef[bytes]"

    def get(self) -> T:
        value: T = _loaded(self.ref)
        return value


@lru_cache(maxsize=_LOADED)
def _loaded(ref: "ray.ObjectRef[bytes]") -> Any:
    """The value that a reference stands for, which a worker loads once."""
    return unpacked(ray.get(ref))


# Units run in a thread of their own, so that what they tell leaves the worker meanwhile. It is
# always the same one: each has threads of torch.
_thread = ThreadPoolExecutor(1)


def _carry(setup: _Setup, body: bytes) -> Iterator[Any]:
    """Carry out a unit, in a worker: yields _Began, what the unit tells, and _Done or _Raised."""
    setup.check()
    yield _Began(f"{socket.gethostname()} (process {os.getpid()})")
    said = SimpleQueue[Any]()
    _thread.submit(_carried, setup, body, said)
    while True:
        item = said.get()
        yield item
        if isinstance(item, _Done | _Raised):
            return


def _versions() -> dict[str, str]:
    return versions()


def _carried(setup: _Setup, body: bytes, said: "SimpleQueue[Any]") -> None:
    """Carry out a unit, and put what it tells and how it ends into a queue."""
    told = 0.0

    def tell(what: Any) -> None:
        nonlocal told
        if not isinstance(what, int) or time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            said.put(what)

    try:
        torch.set_num_threads(setup.threads)
        unit, given = unpacked(body)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("once", UserWarning)
            value = unit(*given, tell)
        for line in {str(warning.message) for warning in warned if _is_told(warning)}:
            said.put(_Warned(line))
        said.put(_Done(packed(value)))
    except Exception as error:
        said.put(_Raised(_portable(error)))


def _is_told(warning: warnings.WarningMessage) -> bool:
    """Whether a warning is for users, as those are that come without a kind of their own."""
    return warning.category is UserWarning


def _portable(error: Exception) -> Exception:
    """An error that can leave the worker, with the same line."""
    try:
        unpacked(packed(error))
    except Exception:
        named: Exception = type(type(error).__name__, (RuntimeError,), {})(one_line(error))
        return named
    return error.with_traceback(None)


class OnRay:
    """Carries out units on the workers of a Ray cluster.

    threads  of each worker.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._setup = _Setup(versions(), threads)
        self._carry: Any = ray.remote(max_retries=0, num_returns="streaming")(_carry)
        self._slots: Slots
        # The hosts of the units that are under way, by a number of each.
        self._working: dict[int, str] = {}
        self._units = count()

    @property
    def workers(self) -> int:
        """How many units can be carried out at once."""
        return max(1, int(_ray.cluster_resources().get("CPU", 1)) // self.threads)

    @property
    def width(self) -> int:
        return AHEAD * self.workers

    @property
    def beside(self) -> int:
        cores = (node["Resources"].get("CPU", 1) for node in _ray.nodes() if node["Alive"])
        return max(1, int(max(cores)) // self.threads)

    def device(self, name: Device) -> torch.device:
        has_gpus = "GPU" in _ray.cluster_resources()
        if name == "auto":
            return torch.device("cuda" if has_gpus else "cpu")
        device = torch.device(check_device(name))
        if device.type != "cuda":
            return resolve_device(name)
        if device.index is not None:
            raise UserError(
                f"workers take the GPU that is free: give cuda as the device, not {name}"
            )
        if not has_gpus:
            raise UserError("no worker has a GPU: give cpu or auto as the device")
        return device

    def check_hosts(self) -> None:
        """Raises UserError where a host of the cluster has other versions."""
        look: Any = ray.remote(num_cpus=0)(_versions)
        for node in _ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                theirs = ray.get(look.options(scheduling_strategy=there).remote())
                if wrong := differing(theirs, self._setup.versions):
                    raise UserError(
                        f"host {node['NodeManagerAddress']} has {wrong}: install the same there"
                    )

    def at_work(self) -> str:
        hosts = {host.partition(" ")[0] for host in self._working.values()}
        tasks = f"{len(self._working)} {'task' if len(self._working) == 1 else 'tasks'}"
        return f"{tasks} on {len(hosts)} {'host' if len(hosts) == 1 else 'hosts'}"

    def hold(self, value: T) -> Held[T]:
        return _Sent(ray.put(packed(value)))

    async def do(
        self,
        unit: Callable[..., T],
        *given: Any,
        tell: Tell = silent,
        weight: float = FIRST,
        share: float = 0.0,
    ) -> T:
        value: T = unpacked(await self._done(unit, given, tell, weight, share))
        return value

    async def keep(self, unit: Callable[..., T], *given: Any, share: float = 0.0) -> Held[T]:
        # The bytes are kept by the process that asks: hosts may be lost.
        return _Sent(ray.put(await self._done(unit, given, silent, FIRST, share)))

    async def _done(
        self,
        unit: Callable[..., Any],
        given: tuple[Any, ...],
        tell: Tell,
        weight: float,
        share: float,
    ) -> bytes:
        """What a unit returns, as bytes; done again where its worker is lost."""
        async with self._slots.place(weight):
            number, begun, lost = next(self._units), 0, 0
            while begun <= _AGAIN and lost <= _LOST:
                try:
                    async for item in self._carried(packed((unit, given)), share):
                        if isinstance(item, _Began):
                            host = self._working[number] = item.host
                            begun += 1
                        elif isinstance(item, _Raised):
                            raise item.error
                        elif isinstance(item, _Warned):
                            warnings.warn(item.line, stacklevel=2)
                        elif isinstance(item, _Done):
                            body: bytes = item.value
                            return body
                        else:
                            tell(item)
                except RayTaskError as error:
                    raise error.cause from None
                except RayMemoryError as error:
                    raise MemoryError(one_line(error)) from error
                except RayError as error:
                    reason = described(error)
                finally:
                    self._working.pop(number, None)
                lost += 1
            where = f", the last on {host}" if begun else " before they began"
            raise WorkerLostError(f"{lost} workers were lost{where}: {reason}")

    async def _carried(self, body: bytes, share: float) -> AsyncIterator[Any]:
        """What a worker yields that carries out a unit."""
        task = self._carry.options(num_cpus=self.threads, num_gpus=share)
        async for ref in task.remote(self._setup, body):
            yield await ref

    def begin(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        return asyncio.ensure_future(work)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        self._slots = Slots(self.width)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(work)
        # In a notebook there is a loop already, in this thread.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, work).result()


@contextmanager
def on_ray(workers: int | None, address: str | None, threads: int) -> Iterator[OnRay]:
    """Workers while the context lasts: so many on this machine, or those of a cluster.

    Raises UserError where the cluster cannot be joined.
    """
    was_there = ray.is_initialized()
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if not was_there:
        try:
            if address is not None:
                ray.init(address=address, **quiet)
            else:
                ray.init(
                    "local", num_cpus=(workers or 1) * threads, include_dashboard=False,
                    _node_ip_address="127.0.0.1", _system_config=_LOCAL, **quiet,
                )  # fmt: skip
        except Exception as error:
            where = "on this machine" if address is None else f"at {address}"
            raise UserError(f"no workers {where}: {one_line(error)}") from error
    try:
        executor = OnRay(threads)
        executor.check_hosts()
        yield executor
    finally:
        if not was_there:
            ray.shutdown()
