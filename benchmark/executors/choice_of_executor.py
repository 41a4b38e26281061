"""Which executor carries out a work, as a user asked for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from benchmark.errors import UserError
from benchmark.executors.executor import IN_PROCESS, Executor


@contextmanager
def executor_for(
    workers: int | None = None, address: str | None = None, threads: int | None = None
) -> Iterator[Executor]:
    """An executor while the context lasts.

    workers  so many processes on this machine; None for this process alone.
    address  of a Ray cluster, in place of workers.
    threads  of each worker, or of this process; by default workers share the cores, and this
             process has as many as torch takes.

    Raises UserError where it cannot be had.
    """
    if workers is None and address is None:
        with with_threads(threads, workers):
            yield IN_PROCESS
        return
    if workers is not None and address is not None:
        raise UserError("workers are of this machine, and ray names a cluster: give one of them")
    if find_spec("ray") is None:
        raise UserError("workers need ray: pip install 'bestattack[ray]'")
    from benchmark.executors.on_ray import on_ray

    with on_ray(workers, address, threads or _shared(workers)) as executor:
        yield executor


@contextmanager
def with_threads(threads: int | None, workers: int | None) -> Iterator[None]:
    """As many threads of torch, while the context lasts, as each of so many workers has; or this
    process, where there are none."""
    if threads is None and workers is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads or _shared(workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _shared(workers: int | None) -> int:
    """The threads that each of so many workers on this machine has; one on a cluster."""
    return max(1, (os.cpu_count() or 1) // workers) if workers else 1
