"""Whether packages can be imported, tried in another process, which they may end or delay."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# What that process runs: a file, since a module would load all of this package first.
_SCRIPT = Path(__file__).with_name("trial_script.py")


@dataclass(frozen=True)
class Trial:
    """What came of importing a package.

    error        why it does not import, in a line; empty where it does.
    is_replaced  whether bestattack can use it all the same, as `import_torchvision` does.
    is_late      whether the time ended before it was tried.
    """

    error: str = ""
    is_replaced: bool = False
    is_late: bool = False


def try_imports(modules: Sequence[str], seconds: float) -> dict[str, Trial]:
    """Import modules in turn, in a process of their own, for at most so many seconds.

    A module whose import ends the process has that as its error, and those after it are tried in
    another one.
    """
    end, trials = time.monotonic() + seconds, dict[str, Trial]()
    while waiting := [module for module in modules if module not in trials]:
        status, told = _run(waiting, end - time.monotonic())
        trials |= {module: Trial(error, is_replaced) for module, error, is_replaced in told}
        left = [module for module in waiting if module not in trials]
        if status is None:
            return trials | {module: Trial(is_late=True) for module in left}
        if left:
            trials[left[0]] = Trial(f"it ends Python ({_ending(status)})")
    return trials


def _run(modules: Sequence[str], seconds: float) -> tuple[int | None, list[tuple[str, str, bool]]]:
    """How the process ended, None where the time did before it, and what it told."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-P", str(_SCRIPT), *modules],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            text, _ = process.communicate(timeout=max(seconds, 0.0))
            status: int | None = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            status = None
    # A line that is cut short is of a module that was not done with.
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return status, [tuple(json.loads(line)) for line in lines]


def _ending(status: int) -> str:
    """How a process ended, in words."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"exit status {status}"
