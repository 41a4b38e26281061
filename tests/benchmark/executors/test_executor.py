"""Works that are begun beside each other, and units that run out of memory."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attacks import PGD, ThreatModel
from benchmark.executors import IN_PROCESS, InProcess, Later, as_completed, in_order
from benchmark.judge.evaluator import Samples, judge_block
from benchmark.judge.examination import examine
from benchmark.judge.records import MemoryCell
from benchmark.run.measuring import measured


class _Shrinking(InProcess):
    """Loses a worker each time it is asked how many there are."""

    def __init__(self) -> None:
        self._width = 6

    @property
    def width(self) -> int:  # type: ignore[override]
        self._width = max(2, self._width - 1)
        return self._width

    def begin(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.ensure_future(work)


async def _after(turns: int, result: Any) -> Any:
    for _ in range(turns):
        await asyncio.sleep(0)
    if isinstance(result, Exception):
        raise result
    return result


def test_works_end_though_workers_are_lost() -> None:
    async def all_of_them() -> list[int]:
        works = (_after(number % 4, number) for number in range(40))
        return [result async for result in as_completed(_Shrinking(), works)]

    assert sorted(asyncio.run(all_of_them())) == list(range(40))


def test_what_is_done_is_kept_where_another_fails() -> None:
    kept = []

    async def some() -> None:
        works = iter([_after(1, ValueError("one")), _after(1, 1), _after(1, 2)])
        async for result in as_completed(_Shrinking(), works):
            kept.append(result)

    with pytest.raises(ValueError, match="one"):
        asyncio.run(some())
    assert sorted(kept) == [1, 2]


def test_results_come_in_order_and_failures_at_once() -> None:
    async def ordered(*works: Coroutine[Any, Any, Any]) -> list[Any]:
        return [result async for result in in_order(list(map(asyncio.ensure_future, works)))]

    assert asyncio.run(ordered(_after(9, 1), _after(1, 2), _after(3, 3))) == [1, 2, 3]
    endless = _after(10**9, 1)
    with pytest.raises(ValueError, match="two"):
        asyncio.run(ordered(endless, _after(2, ValueError("two"))))

    async def here() -> list[Any]:
        return [result async for result in in_order([_after(0, 1), _after(0, 2)])]

    assert IN_PROCESS.run(here()) == [1, 2]


def test_a_later_value_is_made_when_it_is_asked_for() -> None:
    made = []
    later = Later(lambda: made.append(1) or len(made))
    assert made == []
    assert (later.get(), later.get()) == (1, 2)


@pytest.mark.parametrize("most", [1, 2, 5, 11])
def test_where_memory_runs_out_fewer_are_tried_at_once(most: int) -> None:
    x = torch.rand(23, 3)
    model = nn.Linear(3, 2)
    samples = Samples(x, model(x).argmax(1), np.arange(100, 123))
    subject = IN_PROCESS.hold(examine(model, x, torch.device("cpu")))
    sizes: list[int] = []

    def unit(batch: Any, tell: Any) -> Any:
        sizes.append(len(batch.get().places))
        if sizes[-1] > most:
            raise MemoryError
        return judge_block(subject, batch, tell)

    cell = MemoryCell()
    IN_PROCESS.run(measured(unit, samples, np.arange(23), cell, 12, IN_PROCESS))
    index = np.concatenate([block.index for block in cell.blocks()])
    assert np.array_equal(np.sort(index), np.arange(23))
    # What was too much once is not tried again.
    failed = [size for size in sizes if size > most]
    assert len(failed) == len(set(failed))


def test_blocks_that_were_done_are_kept_where_memory_runs_out_for_good() -> None:
    x = torch.rand(8, 3)
    model = nn.Linear(3, 2)
    samples = Samples(x, model(x).argmax(1), np.arange(8))
    subject = IN_PROCESS.hold(examine(model, x, torch.device("cpu")))

    def unit(batch: Any, tell: Any) -> Any:
        if 7 in batch.get().places:
            raise MemoryError
        return judge_block(subject, batch, tell)

    cell = MemoryCell()
    with pytest.raises(MemoryError):
        IN_PROCESS.run(measured(unit, samples, np.arange(8), cell, 8, IN_PROCESS))
    assert sorted(np.concatenate([block.index for block in cell.blocks()])) == list(range(7))


def test_an_attack_remembers_nothing_of_other_blocks() -> None:
    from tests.benchmark.small import measure_attack

    class Counting(PGD):
        def __call__(self, problem: Any) -> Any:
            count = vars(self).setdefault("count", [0])
            count[0] += 1
            return problem.x + 0.1 * count[0]

    x = torch.rand(9, 3)
    samples = Samples(x, torch.zeros(9, dtype=torch.int64), np.arange(9))
    subject = examine(nn.Linear(3, 2), x, torch.device("cpu"))
    found = []
    for block in (9, 2):
        cell = MemoryCell()
        threat = ThreatModel("linf", 0.5)
        measure_attack(subject, samples, np.arange(9), threat, Counting(), 0, cell, block)
        found.append(np.concatenate([part.predicted for part in cell.blocks()]))
    assert np.array_equal(*found)
