"""The cores that this process may use, the threads that torch takes, and whether those wait for
each other or for other processes."""

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import conv2d

from benchmark.direct.inspection import short
from benchmark.machine.checkup import Line, Section

# Where Linux says for how much of a period a container may compute: both in one file, or in two.
_QUOTAS = ("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
_LIMITED = Path("/sys/fs/cgroup")

# Threads beyond the cores that are free, as a share of all cores, that are no reason to warn; and
# how much slower than one thread several may be, since times vary.
_BESIDE, _SLOWER = 0.25, 1.1

# For how long the convolution is measured on each number of threads, in seconds, and how often.
_SECONDS, _ROUNDS = 0.05, 5


@dataclass(frozen=True)
class Processors:
    """What a process can compute with.

    present   the cores of the machine.
    allowed   those that this process may use; a fraction where a container has a share of time.
    threads   how many torch takes.
    load      how many processes have wanted a core in the last minute, on average; None where the
              system does not tell.
    seconds   what a small convolution takes on one thread and on all; empty where that is the same.
    """

    present: int
    allowed: float
    threads: int
    load: float | None
    seconds: Sequence[float] = ()

    @property
    def remedy(self) -> str:
        """What to do about the threads; empty where they do no harm."""
        if self.threads == 1:
            return ""
        single = "Set OMP_NUM_THREADS=1, or give --threads 1, "
        if self.seconds and self.seconds[1] > _SLOWER * self.seconds[0]:
            return f"{single}since {self.threads} threads are slower than one here."
        others, spare = self.load or 0.0, _BESIDE * self.allowed
        if others > spare and others + self.threads > self.allowed + spare:
            return (
                f"{single}while other processes take the cores: threads wait for each other, and "
                "two processes can slow each other down ten times."
            )
        if self.threads > self.allowed + spare:
            return f"Set OMP_NUM_THREADS={max(1, int(self.allowed))}: more threads wait for cores."
        return ""


def found() -> Processors:
    """What this process can compute with, measured now."""
    threads = torch.get_num_threads()
    seconds = convolution_seconds([1, threads]) if threads > 1 else ()
    return Processors(os.cpu_count() or 1, allowed_cores(), threads, load(), seconds)


def load() -> float | None:
    """How many processes have wanted a core in the last minute, on average; None where the system
    does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def allowed_cores() -> float:
    """The cores that this process may use, by its affinity and by the share of its container."""
    # macOS and Windows do not tell which of all cores those are.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = float(allowed or 1)
    for files in _QUOTAS:
        try:
            words = " ".join((_LIMITED / file).read_text() for file in files).split()
            quota, period = (float(word) for word in words)
        except (OSError, ValueError):  # there is no limit
            continue
        if quota > 0:  # -1 says that there is none
            cores = min(cores, quota / period)
    return cores


def convolution_seconds(threads: Sequence[int]) -> list[float]:
    """What a small convolution takes on each of some numbers of threads, in seconds: the median of
    several rounds, in which the numbers take turns."""
    x, weight = torch.rand(16, 16, 14, 14), torch.rand(32, 16, 3, 3)
    times: dict[int, list[float]] = {number: [] for number in threads}
    before = torch.get_num_threads()
    try:
        for _ in range(_ROUNDS):
            for number in threads:
                torch.set_num_threads(number)
                conv2d(x, weight)  # wakes the threads
                began, count = time.perf_counter(), 0
                while time.perf_counter() < began + _SECONDS:
                    conv2d(x, weight)
                    count += 1
                times[number].append((time.perf_counter() - began) / count)
    finally:
        torch.set_num_threads(before)
    return [statistics.median(times[number]) for number in threads]


def processors(seen: Processors) -> Section:
    """The cores, the threads and the load, with what to do where threads wait."""
    given = os.environ.get("OMP_NUM_THREADS")
    taken = f"{seen.threads}, {'as OMP_NUM_THREADS says' if given else 'by default'}"
    lines = [
        Line("cores", f"{seen.allowed:g} may be used, of {seen.present}"),
        Line("threads", taken, seen.remedy),
        _waiting(os.environ.get("OMP_WAIT_POLICY", "").lower()),
    ]
    if seen.load is not None:
        busy = ", more than the cores: all takes longer" * (seen.load > seen.allowed)
        lines.append(Line("load", f"{seen.load:.1f} in the last minute{busy}"))
    if seen.seconds:
        one, many = map(short, seen.seconds)
        lines.append(Line("convolution", f"{one} on 1 thread, {many} on {seen.threads}"))
    return Section("Processors", lines)


def _waiting(policy: str) -> Line:
    """What threads do while they wait, which bestattack sets unless someone else did."""
    if policy == "passive":
        return Line("waiting threads", "sleep")
    remedy = "Unset OMP_WAIT_POLICY: threads that spin slow other processes down, and theirs these."
    return Line("waiting threads", f"spin, since OMP_WAIT_POLICY is {policy}", remedy)
