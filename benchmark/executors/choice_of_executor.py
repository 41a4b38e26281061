"""Which executor carries out a work, as a user asked for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from benchmark.errors import UserError
from benchmark.executors.executor import IN_PROCESS, Executor, shared_threads


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
    if address == "":
        raise UserError("the address of the cluster is empty: give HOST:PORT")
    if find_spec("ray") is None:
        raise UserError("workers need ray: pip install 'bestattack[ray]'")
    from benchmark.executors.on_ray import on_ray

    with on_ray(workers, address, threads) as executor:
        yield executor


@contextmanager
def with_threads(threads: int | None, workers: int | None) -> Iterator[None]:
    """As many threads of torch, while the context lasts, as each of so many workers has; or this
    process, where there are none."""
    if threads is None and workers is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads or shared_threads(workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
