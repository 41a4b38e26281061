"""One folder is one run at a time: the lock on a folder that a command writes into."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from benchmark.errors import UserError
from benchmark.judge.records import write_json
from defenses.weights import half_written

# The lock, and beside it the note on who holds it.
LOCK, HOLDER = ".lock", ".lock.json"

# How many seconds to wait for another process that is about to end. In this time, one that has just
# begun writes its note.
_PATIENCE = 0.5
# The folders of a run in which files are written, besides its own.
_INNER = ("cells/*/", "defenses/*/", "threats/*/", "seeds/*/")


class InUseError(UserError):
    """Another process works in a folder."""


@contextmanager
def alone_in(folder: Path, make: bool = False) -> Iterator[None]:
    """Be the only process that works in a folder while the context lasts.

    The lock is one of the operating system, which ends with the process, however that ends. A
    folder that is not there is made if `make`, and else needs no lock. Half-written files that a
    killed process left are deleted.

    Raises InUseError, in a line that says which process it is, where another one has the folder,
    and UserError where the folder cannot be written.
    """
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        yield
        return
    lock, note = FileLock(folder / LOCK, timeout=_PATIENCE), folder / HOLDER
    try:
        lock.acquire()
    except Timeout:
        raise InUseError(
            f"{folder} is in use by {_holder(note)}: wait until that ends, or name another folder"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        write_json(note, {"process": os.getpid(), "host": socket.gethostname(), "since": since})
        for place in (folder, *(inner for pattern in _INNER for inner in folder.glob(pattern))):
            for path in half_written(place):
                path.unlink(missing_ok=True)
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    """Who holds a lock, by the note beside it."""
    try:
        holder = json.loads(note.read_text())
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
