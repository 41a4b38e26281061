"""What carries out units of work, and the one that does so in this process.

A unit is a function of what it is given and of `tell`, which it may call with what should be known
before it ends. It may run in another process: it takes large values as `Held`, and changes nothing
but what it returns.
"""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import torch

from benchmark.environment import Device, resolve_device
from benchmark.errors import UserError

T = TypeVar("T")

# How many units workers are asked for at once, for each that can be carried out: the next one is at
# hand when one is done.
AHEAD = 2

# The weight of units that others wait for.
FIRST = math.inf

Tell = Callable[[Any], None]


class WorkerLostError(UserError):
    """A unit was given up, because the workers that it was given to were lost."""


class Held(Protocol[T]):  # type: ignore[misc]
    """A value that units share. It goes to each host once."""

    def get(self) -> T:
        """The value, where a unit runs."""
        ...


class Later(Generic[T]):
    """A value that is made when a unit is carried out: it waits for that as what makes it, which
    may be much smaller, and is as of then."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make

    def get(self) -> T:
        return self._make()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Here, (self._make(),)


class Executor(Protocol):
    """Carries out units of work.

    width    how many it is worth asking for at once.
    threads  that each computes with.
    """

    @property
    def width(self) -> int: ...

    @property
    def threads(self) -> int: ...

    @property
    def beside(self) -> int:
        """How many units one host carries out at once, at most."""
        ...

    def at_work(self) -> str:
        """How many units are under way, and where; empty where that is known."""
        ...

    def device(self, name: Device) -> torch.device:
        """The device that units compute on, of the name that a user gave. Raises UserError where
        there is none."""
        ...

    def hold(self, value: T) -> Held[T]:
        """A value that many units are given, and that does not change any more."""
        ...

    async def do(
        self,
        unit: Callable[..., T],
        *given: Any,
        tell: Tell = ...,
        weight: float = ...,
        share: float = ...,
    ) -> T:
        """What a unit returns. What it raises is raised here. Of those that wait, the unit of the
        largest weight is carried out first. `share` is what it takes of a GPU, or
        none: others may have the rest."""
        ...

    async def keep(self, unit: Callable[..., T], *given: Any, share: float = ...) -> Held[T]:
        """What a unit returns, held for other units."""
        ...

    def begin(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Begin a work of several units beside others, where units run beside each other; its
        result is to be awaited. Otherwise it begins when it is awaited."""
        ...

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a work, for callers that do not wait for others."""
        ...


def shared_threads(workers: int | None) -> int:
    """The threads that each of so many workers on this machine has; one on a cluster."""
    return max(1, (os.cpu_count() or 1) // workers) if workers else 1


def silent(said: Any) -> None:
    """Told anything, does nothing."""
    del said


class _Here(Generic[T]):
    """A value in this process."""

    def __init__(self, value: T) -> None:
        self._value = value

    def get(self) -> T:
        return self._value


class InProcess:
    """Carries out each unit when it is asked for, in this process."""

    width, beside = 1, 1

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def at_work(self) -> str:
        return ""

    def device(self, name: Device) -> torch.device:
        return resolve_device(name)

    def hold(self, value: T) -> Held[T]:
        return _Here(value)

    async def do(
        self,
        unit: Callable[..., T],
        *given: Any,
        tell: Tell = silent,
        weight: float = FIRST,
        share: float = 0.0,
    ) -> T:
        return unit(*given, tell)

    async def keep(self, unit: Callable[..., T], *given: Any, share: float = 0.0) -> Held[T]:
        return _Here(await self.do(unit, *given))

    def begin(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        return work

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        # Nothing in it waits for anything, so that it needs no event loop, of which there may be
        # one already, as in a notebook.
        try:
            work.send(None)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            work.close()
        raise RuntimeError("work in this process waited for something")


IN_PROCESS = InProcess()


@contextmanager
def abandoned(works: Iterable[Awaitable[Any]]) -> Iterator[None]:
    """A context after which works that were begun and are not done are given up."""
    try:
        yield
    finally:
        for work in works:
            if isinstance(work, asyncio.Future):
                if not work.cancel() and not work.cancelled():
                    work.exception()  # has been seen: one failure is told, not each
            elif isinstance(work, Coroutine):
                work.close()


async def in_order(works: Iterable[Awaitable[T]]) -> AsyncIterator[T]:
    """The results of works that were begun, in their order; what any of them raises is raised at
    once, whichever stand before it."""
    left = list(works)
    with abandoned(left):
        for place, work in enumerate(left):
            begun = [other for other in left[place:] if isinstance(other, asyncio.Future)]
            while isinstance(work, asyncio.Future) and not work.done():
                done, _ = await asyncio.wait(
                    [other for other in begun if not other.done()],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for ended in done:
                    ended.result()
            yield await work


async def as_completed(
    executor: Executor, works: Iterable[Coroutine[Any, Any, T]]
) -> AsyncIterator[T]:
    """The results of works, in the order in which they are done. No more of them are begun than the
    executor can do at once."""
    left, width = iter(works), executor.width
    if width == 1:
        for work in left:
            yield await work
        return
    waiting: set[asyncio.Future[T]] = set()
    with abandoned(waiting):
        while True:
            for work in islice(left, width - len(waiting)):
                waiting.add(asyncio.ensure_future(executor.begin(work)))
            if not waiting:
                return
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            failed = [begun for begun in done if begun.exception() is not None]
            waiting -= done - set(failed)
            # What is done is not lost where another failed meanwhile.
            for begun in done - set(failed):
                yield begun.result()
            for begun in failed:
                begun.result()
