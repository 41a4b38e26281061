"""Measurements, block by block, whose records go into cells."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np

from attacks import ThreatModel
from benchmark.executors import IN_PROCESS, Executor, Held, Later, as_completed
from benchmark.executors.executor import FIRST, Tell, silent
from benchmark.executors.resources import is_out_of_memory
from benchmark.judge.evaluator import Batch, Samples, certify_block, judge_block
from benchmark.judge.records import Block, Cell, IntArray, blocks_of
from benchmark.judge.subject import Subject


class Advance(Protocol):
    """Is told how many samples are done, of which some are broken, and whether that was so
    before."""

    def __call__(self, samples: int, broken: int, kept: bool = ..., /) -> None: ...


async def measured(
    unit: Callable[[Held[Batch], Tell], Block],
    samples: Samples,
    index: IntArray,
    cell: Cell,
    size: int,
    executor: Executor,
    advance: Advance = lambda samples, broken, kept=False: None,
    tell: Tell = silent,
    divisible: bool = True,
    weight: float = FIRST,
    share: float = 0.0,
) -> None:
    """Measure samples, `size` of them at a time, and add the records to a cell.

    unit     makes the records of a batch, as `attack_block` does once it has all else.
    index    (k,), the places of the samples. Those that a block of the cell holds already are left
             out.
    advance  is called with the numbers of samples and of broken samples of each block, and of those
             that the cell holds already, with True.
    divisible  whether records are the same however the samples are divided into batches. Where
               memory runs out, half as many are then tried at once.
    weight, share  of each batch: see `Executor.do`.

    Errors that the unit raises pass through; the blocks that were done before are kept.
    """
    remaining = _remaining(cell, index, advance)
    starts = range(size, len(remaining), size)
    parts = np.split(remaining, starts)
    if divisible and len(index):
        # Parts of one size, so that no worker waits for another, which an interruption does not
        # change.
        count = -(-len(index) // size)
        left = np.isin(index, remaining)
        both = zip(np.array_split(index, count), np.array_split(left, count), strict=True)
        parts = [part[is_left] for part, is_left in both]
    # The most samples at once for which memory did not run out, as far as is known.
    most = size

    async def record(places: IntArray) -> None:
        nonlocal most
        if len(places) <= most:
            batch = Later(partial(samples.at, places))
            try:
                block = await executor.do(unit, batch, tell=tell, weight=weight, share=share)
            except Exception as error:
                if not (divisible and len(places) > 1 and is_out_of_memory(error)):
                    raise
                most = min(most, len(places) // 2)
            else:
                cell.add(block)
                advance(len(block.index), int(block.broken.sum()))
                return
        for half in np.array_split(places, 2):
            await record(half)

    works = (record(part) for part in parts if len(part))
    async for _ in as_completed(executor, works):
        pass


def measure_natural(subject: Subject, samples: Samples, cell: Cell, block: int) -> None:
    """Judge the clean images, `block` at a time, in this process: see `measured`."""
    unit = partial(judge_block, IN_PROCESS.hold(subject))
    everything = np.arange(len(samples))
    IN_PROCESS.run(measured(unit, samples, everything, cell, block, IN_PROCESS))


def measure_radii(
    subject: Subject, samples: Samples, threat: ThreatModel, cell: Cell, block: int
) -> None:
    """What the model certifies of the clean images, `block` at a time, in this process: see
    `measured`."""
    unit = partial(certify_block, IN_PROCESS.hold(subject), threat)
    everything = np.arange(len(samples))
    IN_PROCESS.run(measured(unit, samples, everything, cell, block, IN_PROCESS))


def _remaining(
    cell: Cell, index: IntArray, advance: Advance = lambda samples, broken, kept=False: None
) -> IntArray:
    """The places among `index` of the samples that no block of a cell holds yet.

    `advance` is called for each block that the cell holds, as in `measured`.
    """
    held = [np.empty(0, np.int64)]
    for block in blocks_of(cell, index, images=False):
        held.append(block.index)
        advance(len(block.index), int(block.broken.sum()), True)
    return np.setdiff1d(index, np.concatenate(held))
