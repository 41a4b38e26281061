"""Who carries out the units of work that a run is cut into: this process, or workers on Ray."""

from benchmark.executors.choice_of_executor import executor_for
from benchmark.executors.executor import (
    IN_PROCESS,
    Executor,
    Held,
    InProcess,
    Later,
    WorkerLostError,
    abandoned,
    as_completed,
    in_order,
)

__all__ = [
    "IN_PROCESS",
    "Executor",
    "Held",
    "InProcess",
    "Later",
    "WorkerLostError",
    "abandoned",
    "as_completed",
    "executor_for",
    "in_order",
]
