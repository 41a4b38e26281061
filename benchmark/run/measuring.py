"""Measurements, block by block, whose records go into cells."""

from collections.abc import Awaitable, Callable
from functools import partial

import numpy as np

from attacks import Attack, ThreatModel
from benchmark.executors import IN_PROCESS, Executor, as_completed
from benchmark.executors.executor import FIRST, Tell, silent
from benchmark.executors.out_of_memory import is_out_of_memory
from benchmark.judge.evaluator import Batch, Samples, attack_block, certify_block, judge_block
from benchmark.judge.records import Block, Cell, IntArray, blocks_of
from benchmark.judge.subject import Subject


async def measured(
    unit: Callable[[Batch, Tell], Block],
    samples: Samples,
    index: IntArray,
    cell: Cell,
    size: int,
    executor: Executor,
    advance: Callable[[int, int], None] = lambda samples, broken: None,
    tell: Tell = silent,
    divisible: bool = True,
    weight: float = FIRST,
    share: float = 0.0,
) -> None:
    """Measure samples, `size` of them at a time, and add the records to a cell.

    unit     makes the records of a batch, as `attack_block` does once it has all else.
    index    (k,), the places of the samples. Those that a block of the cell holds already are left
             out.
    advance  is called with the numbers of samples and of broken samples of each block, also of the
             blocks that the cell holds already.
    divisible  whether records are the same however the samples are divided into batches. Where
               memory runs out, half as many are then tried at once, and workers share them out.
    weight, share  of each batch: see `Executor.do`.

    Errors that the unit raises pass through; the blocks that were done before are kept.
    """
    remaining = _remaining(cell, index, advance)
    if divisible and executor.width > 1 and len(remaining):
        # Batches of one size, so that no worker waits for another.
        size = -(-len(remaining) // -(-len(remaining) // size))
    carry = partial(executor.do, unit, tell=tell, weight=weight, share=share)
    starts = range(0, len(remaining), size)
    works = (
        _recorded(carry, samples.at(remaining[start : start + size]), divisible) for start in starts
    )
    async for blocks in as_completed(executor, works):
        for block in blocks:
            cell.add(block)
            advance(len(block.index), int(block.broken.sum()))


async def _recorded(
    carry: Callable[[Batch], Awaitable[Block]], batch: Batch, divisible: bool
) -> list[Block]:
    """The records of a batch, in one block or, where memory runs out, in several."""
    try:
        return [await carry(batch)]
    except Exception as error:
        if not (divisible and len(batch.places) > 1 and is_out_of_memory(error)):
            raise
    halves = [await _recorded(carry, half, True) for half in batch.halves()]
    return [block for blocks in halves for block in blocks]


def measure_natural(subject: Subject, samples: Samples, cell: Cell, block: int) -> None:
    """Judge the clean images, `block` at a time, in this process: see `measured`."""
    unit = partial(judge_block, IN_PROCESS.hold(subject))
    everything = np.arange(len(samples))
    IN_PROCESS.run(measured(unit, samples, everything, cell, block, IN_PROCESS))


def measure_radii(
    subject: Subject, samples: Samples, threat: ThreatModel, cell: Cell, block: int
) -> None:
    """Certify the clean images, `block` at a time, in this process: see `measured`."""
    unit = partial(certify_block, IN_PROCESS.hold(subject), threat)
    everything = np.arange(len(samples))
    IN_PROCESS.run(measured(unit, samples, everything, cell, block, IN_PROCESS))


def measure_attack(
    subject: Subject,
    samples: Samples,
    index: IntArray,
    threat: ThreatModel,
    attack: Attack,
    seed: int,
    cell: Cell,
    block: int,
    advance: Callable[[int, int], None] = lambda samples, broken: None,
) -> None:
    """Attack samples, `block` at a time, in this process: see `measured`."""
    unit = partial(attack_block, IN_PROCESS.hold(subject), threat, attack, seed, {})
    IN_PROCESS.run(measured(unit, samples, index, cell, block, IN_PROCESS, advance))


def _remaining(
    cell: Cell, index: IntArray, advance: Callable[[int, int], None] = lambda samples, broken: None
) -> IntArray:
    """The places among `index` of the samples that no block of a cell holds yet.

    `advance` is called for each block that the cell holds, as in `measure_attack`.
    """
    held = [np.empty(0, np.int64)]
    for block in blocks_of(cell, index, images=False):
        held.append(block.index)
        advance(len(block.index), int(block.broken.sum()))
    return np.setdiff1d(index, np.concatenate(held))
