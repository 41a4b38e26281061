"""Workers that compute nothing: they show in what order, and for how long, real ones would work."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import torch

from benchmark.environment import Device
from benchmark.executors.executor import AHEAD, FIRST, Held, Tell, silent
from benchmark.executors.slots import Slots

T = TypeVar("T")


class Simulated:
    """Carries out units that are numbers of seconds, `workers` at once, in a time of its own.

    It keeps the order of `OnRay`, but for the units that are at hand there before a worker is free,
    since the same code begins works and waits for them.
    """

    threads = beside = 1

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.seconds = 0.0
        self._slots: Slots

    @property
    def width(self) -> int:
        return AHEAD * self.workers

    def at_work(self) -> str:
        return ""

    def device(self, name: Device) -> torch.device:
        raise NotImplementedError("nothing is computed")

    def hold(self, value: T) -> Held[T]:
        raise NotImplementedError("nothing is computed")

    async def do(
        self,
        unit: Callable[..., T],
        *given: Any,
        tell: Tell = silent,
        weight: float = FIRST,
        share: float = 0.0,
    ) -> T:
        """Waits for the number of seconds that is given, and returns None."""
        del unit, tell, share
        async with self._slots.place(weight):
            await asyncio.sleep(given[0])
        nothing: Any = None
        result: T = nothing
        return result

    async def keep(self, unit: Callable[..., T], *given: Any, share: float = 0.0) -> Held[T]:
        raise NotImplementedError("nothing is computed")

    def begin(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        return asyncio.ensure_future(work)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a work; `seconds` is then how long it would have taken."""
        self._slots = Slots(self.workers)
        with asyncio.Runner(loop_factory=_Skipping) as runner:
            result = runner.run(work)
            self.seconds = runner.get_loop().time()
            return result


class _Skipping(asyncio.SelectorEventLoop):
    """An event loop whose time is that of what it waits for, which it does not wait for."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Impatient(self._skip))

    def time(self) -> float:
        return self._now

    def _skip(self, seconds: float) -> None:
        self._now += seconds


class _Impatient(selectors.SelectSelector):
    def __init__(self, skip: Callable[[float], None]) -> None:
        super().__init__()
        self._skip = skip

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            self._skip(timeout)
        return super().select(0)
