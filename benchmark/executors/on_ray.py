"""Workers on Ray: processes on this machine, or on the hosts of a cluster.

A unit of work is a task of Ray, which is done again elsewhere where its worker is killed or its
host is lost. Nothing but the process that asked for the work writes into a folder.
"""

import asyncio
import socket
import warnings
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, TypeVar

import torch

from attacks.messages import described, one_line
from benchmark.environment import Device, check_device, resolve_device
from benchmark.errors import UserError
from benchmark.executors.executor import (
    AHEAD,
    FIRST,
    Held,
    Tell,
    WorkerLostError,
    shared_threads,
    silent,
)
from benchmark.executors.hosts import differing, versions
from benchmark.executors.parcels import Parcel, Stored, packed, unpacked
from benchmark.executors.ray_with_token import (
    NodeAffinitySchedulingStrategy,
    RayError,
    RayMemoryError,
    RayTaskError,
    ray,
)
from benchmark.executors.slots import Slots
from benchmark.executors.worker import Began, Done, Raised, Setup, Warned, carry_out, versions_here

T = TypeVar("T")

# Some functions of it have no types.
_ray: Any = ray

# How often a unit is done again whose worker or host was lost; and how many workers it may lose in
# all, of which some were lost before they had begun.
_AGAIN, _LOST = 3, 20

# Of Ray on this machine. By default workers give way to all other processes, as far as starving.
_LOCAL = {"worker_niceness": 0}

# How long to wait before a unit is done again, at most, and for a first answer, in seconds.
_PAUSE, _ANSWER = 2.0, 60.0

# A process sees all GPUs of its host, and computes on that which Ray gives to a unit: which ones it
# sees cannot change once it has used one.
_ALL_GPUS = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}


class OnRay:
    """Carries out units on the workers of a Ray cluster.

    threads  of each worker.

    Raises UserError where no host has so many cores, or where a host has other versions.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._setup = Setup(versions(), threads)
        self._carry_out: Any = ray.remote(max_retries=0, num_returns="streaming")(carry_out)
        self._slots: Slots
        # What is held, by the number of the object, as long as that is there.
        self._held: dict[int, tuple[weakref.ref[Any], Stored[Any]]] = {}
        # The hosts of the units that are under way, by a number of each.
        self._working: dict[int, str] = {}
        self._units = count()

    @property
    def workers(self) -> int:
        """How many units can be carried out at once."""
        return sum(cores // self.threads for cores in _cores())

    @property
    def width(self) -> int:
        return AHEAD * self.workers

    @property
    def beside(self) -> int:
        return max(_cores()) // self.threads

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
        """Raises UserError where a host of the cluster has other versions, or none has as many
        cores as a worker has threads."""
        if not self.workers:
            raise UserError(
                f"no host has {self.threads} cores for the threads of a worker: give fewer threads"
            )
        look: Any = ray.remote(num_cpus=0)(versions_here)
        for node in _ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                host = node["NodeManagerAddress"]
                try:
                    theirs = ray.get(look.options(scheduling_strategy=there).remote())
                except RayError as error:
                    raise UserError(
                        f"host {host} cannot work: is the same bestattack installed there? "
                        f"({one_line(error)})"
                    ) from error
                if wrong := differing(theirs, self._setup.versions):
                    raise UserError(f"host {host} has {wrong}: install the same there")

    def check_answer(self, address: str) -> None:
        """Raises UserError where no worker of the cluster at an address answers."""
        try:
            self.run(asyncio.wait_for(self.do(_nothing), _ANSWER))
        except TimeoutError as error:
            raise UserError(
                f"no worker at {address} answers: say by RAY_AUTH_MODE here what was said where "
                "the cluster was started"
            ) from error

    def at_work(self) -> str:
        hosts = {host.partition(" ")[0] for host in self._working.values()}
        tasks = f"{len(self._working)} {'task' if len(self._working) == 1 else 'tasks'}"
        return f"{tasks} on {len(hosts)} {'host' if len(hosts) == 1 else 'hosts'}"

    def hold(self, value: T) -> Held[T]:
        number = id(value)
        if number in self._held and self._held[number][0]() is value:
            return self._held[number][1]
        stored = Stored[T](ray.put(packed(value)))
        with suppress(TypeError):  # of what has no weak references
            reference = weakref.ref(value, lambda _: self._held.pop(number, None))
            self._held[number] = reference, stored
        return stored

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
        return Stored(ray.put(await self._done(unit, given, silent, FIRST, share)))

    async def _done(
        self,
        unit: Callable[..., Any],
        given: tuple[Any, ...],
        tell: Tell,
        weight: float,
        share: float,
    ) -> Parcel:
        """What a unit returns, as a parcel; done again where its worker is lost."""
        async with self._slots.place(weight):
            number, begun, lost = next(self._units), 0, 0
            host = reason = ""
            while begun <= _AGAIN and lost <= _LOST:
                is_over = False
                streamed = self._asked(packed((unit, given)), tell is not silent, share)
                try:
                    async for ref in streamed:
                        item = await ref
                        is_over = isinstance(item, Done | Raised)
                        if isinstance(item, Began):
                            host = self._working[number] = item.host
                            begun += 1
                        elif isinstance(item, Raised):
                            raise item.error
                        elif isinstance(item, Warned):
                            warnings.warn(item.line, stacklevel=2)
                        elif isinstance(item, Done):
                            return item.parcel
                        else:
                            tell(item)
                except RayTaskError as error:
                    is_over = True
                    raise error.cause from None
                except RayMemoryError as error:
                    is_over = True
                    raise MemoryError(one_line(error)) from error
                except RayError as error:
                    is_over, reason = True, described(error)
                finally:
                    self._working.pop(number, None)
                    if not is_over:  # nobody waits for it any more
                        ray.cancel(streamed, force=True)
                lost += 1
                if begun:
                    warnings.warn(
                        f"a worker on {host} was lost: its task is done again", stacklevel=2
                    )
                await asyncio.sleep(min(lost, _PAUSE))
            where = f", the last on {host}" if begun else " before they began"
            raise WorkerLostError(
                f"{begun or lost} workers were lost{where}: {reason}: the same command tries again"
            )

    def _asked(self, parcel: Parcel, is_heard: bool, share: float) -> Any:
        """What a worker yields that carries out a unit."""
        how: dict[str, Any] = {"num_cpus": self.threads}
        if share:
            how |= {"num_gpus": share, "runtime_env": {"env_vars": _ALL_GPUS}}
        return self._carry_out.options(**how).remote(self._setup, parcel, is_heard)

    def begin(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        return asyncio.ensure_future(work)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        self._slots = Slots(self.width)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(work)
        return _run_beside(work)


def _nothing(tell: Tell) -> None:
    """Answers."""


def _check_listening(address: str) -> None:
    """Raises UserError where nothing listens at HOST:PORT. Other addresses are Ray's to check."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no workers at {address}: nothing listens there ({error})") from error


def _cores() -> list[int]:
    """The cores of each host of the cluster."""
    return [int(node["Resources"].get("CPU", 0)) for node in _ray.nodes() if node["Alive"]] or [0]


def _run_beside(work: Coroutine[Any, Any, T]) -> T:
    """The result of a work, where there is an event loop in this thread already, as in a
    notebook. An interruption cancels it."""
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = Future()

    async def noted() -> T:
        begun.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        return await work

    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(asyncio.run, noted())
        try:
            return result.result()
        except KeyboardInterrupt:
            loop, task = begun.result()
            if task is not None:
                loop.call_soon_threadsafe(task.cancel)
            raise


@contextmanager
def on_ray(workers: int | None, address: str | None, threads: int | None) -> Iterator[OnRay]:
    """Workers while the context lasts: so many on this machine, or those of a cluster.

    threads  of each. By default `workers` share the cores of this machine, and those of a cluster
             have one.

    Raises UserError where the cluster cannot be joined.
    """
    was_there = ray.is_initialized()
    if address is not None:
        _check_listening(address)
    wanted = threads or shared_threads(workers)
    quiet: dict[str, Any] = {"logging_level": "CRITICAL", "log_to_driver": False}
    if not was_there:
        try:
            if address is not None:
                ray.init(address=address, **quiet)
            else:
                ray.init(
                    "local", num_cpus=(workers or 1) * wanted, include_dashboard=False,
                    _node_ip_address="127.0.0.1", _system_config=_LOCAL, **quiet,
                )  # fmt: skip
        except Exception as error:
            where = "on this machine" if address is None else f"at {address}"
            hint = "" if address is None else ": is the cluster's token the one of this machine?"
            raise UserError(f"no workers {where}: {one_line(error)}{hint}") from error
    try:
        # On a cluster that is there already, hosts may have fewer cores than this machine.
        executor = OnRay(threads or max(1, min(wanted, *_cores())))
        executor.check_hosts()
        if address is not None:
            executor.check_answer(address)
        yield executor
    finally:
        if not was_there:
            ray.shutdown()
