"""How long a run takes on so many workers, from how long its parts take."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from benchmark.executors import Executor, abandoned, as_completed
from benchmark.executors.simulated import Simulated


@dataclass(frozen=True)
class Part:
    """An attack on a row, or what else is done with all of its samples.

    tasks    how many blocks that are.
    seconds  that one of them takes.
    passes   forward and backward passes of an image, on average.
    after    the labels of the parts that must be done before it.
    most     whether it takes so long at most, and not about so long.
    """

    label: str
    tasks: int
    seconds: float
    passes: float = 0.0
    after: Sequence[str] = ()
    most: bool = False


@dataclass(frozen=True)
class RowOfWork:
    """A defense of a run: it is trained, in so many seconds, and then each part is done.

    made_of  the names of the rows that must be trained before it.
    """

    name: str
    training: float
    parts: Sequence[Part]
    made_of: Sequence[str] = ()

    @property
    def work(self) -> float:
        """The seconds that one worker takes for it."""
        return self.training + sum(part.tasks * part.seconds for part in self.parts)


def makespan(rows: Sequence[RowOfWork], workers: int) -> float:
    """The seconds that a run takes on so many workers, in the order in which a run asks for its
    units: trainings and blocks, each as soon as what it needs is there.

    >>> rows = [RowOfWork("a", 2.0, [Part("pgd", 4, 1.0)]), RowOfWork("b", 4.0, [])]
    >>> [makespan(rows, workers) for workers in (1, 2, 8)]
    [10.0, 5.0, 4.0]
    """
    simulated = Simulated(workers)
    simulated.run(_worked(rows, simulated))
    return simulated.seconds


def least(rows: Sequence[RowOfWork], workers: int) -> float:
    """The seconds that no order of the units can be below: those of equal shares of all work, and
    those of the longest chain of units that wait for each other."""
    trained: dict[str, float] = {}
    chain = 0.0
    for row in rows:
        trained[row.name] = row.training + max((trained[name] for name in row.made_of), default=0.0)
        ends = {"": trained[row.name]}
        for part in row.parts:
            ends[part.label] = part.seconds + max(ends[label] for label in ("", *part.after))
        chain = max(chain, *ends.values())
    return max(sum(row.work for row in rows) / workers, chain)


async def _worked(rows: Sequence[RowOfWork], executor: Executor) -> None:
    """Everything that there is to do, as a run asks for it."""
    trained = {row.name: asyncio.Event() for row in rows}

    async def train(row: RowOfWork) -> None:
        for name in row.made_of:
            await trained[name].wait()
        await executor.do(_nothing, row.training)
        trained[row.name].set()

    async def do(part: Part, done: dict[str, asyncio.Event]) -> None:
        for label in part.after:
            await done[label].wait()
        blocks = (
            executor.do(_nothing, part.seconds, weight=part.seconds) for _ in range(part.tasks)
        )
        async for _ in as_completed(executor, blocks):
            pass
        done[part.label].set()

    async def measure(row: RowOfWork) -> None:
        await trained[row.name].wait()
        done = {part.label: asyncio.Event() for part in row.parts}
        parts = [executor.begin(do(part, done)) for part in row.parts]
        with abandoned(parts):
            for part in parts:
                await part

    begun = [executor.begin(stage(row)) for stage in (train, measure) for row in rows]
    with abandoned(begun):
        for work in begun:
            await work


def _nothing() -> None:
    """A unit of which only the seconds count."""
