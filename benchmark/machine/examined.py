"""All that is found out about a machine, in an order in which nothing disturbs what is timed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmark.environment import resolve_device
from benchmark.machine.checkup import Section
from benchmark.machine.devices import devices
from benchmark.machine.processors import allowed_cores, found, load, processors
from benchmark.machine.software import PACKAGES, packages, software
from benchmark.machine.speed import speed
from benchmark.machine.storage import data_sets, storage
from benchmark.machine.trials import try_imports

# How long the packages may take to import together, in seconds. An idle machine needs about five;
# a busy one has as many times more as processes wait for a core, up to that many.
_SECONDS, _TIMES = 9.0, 5.0


def sections(root: Path | None) -> Iterator[Section]:
    """What is found out, section by section, each as soon as it is there.

    root  where the files of data sets are sought first.
    """
    installed = [package.module for package in PACKAGES if package.version]
    with ThreadPoolExecutor(1) as beside:
        times = min(_TIMES, max(1.0, (load() or 0.0) / allowed_cores()))
        trials = beside.submit(try_imports, installed, times * _SECONDS)
        yield software()
        yield devices()
        yield data_sets(root)
        yield storage(root)
        yield packages(trials.result())
    # Timed when the imports are done.
    yield processors(found())
    yield speed(resolve_device("auto"))
