"""What is under way: a bar for each work on a terminal, and elsewhere a line a minute.

Each says how far the work is, how long it will take, and what is known so far.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from tqdm import tqdm

# Seconds between two redraws within a block, and between two lines where there is no terminal.
_REDRAW, _LINE = 0.2, 60.0


class Underway:
    """A work that is shown.

    title  stands before it.
    total  how much there is to do, of which `done` is; `note` says what is known so far.
    kept   how much was done before it began, which says nothing of how long the rest takes.
    """

    def __init__(self, title: str, total: float, bar: "tqdm[Any]") -> None:
        self.title, self.total = title, total
        self.done, self.note, self.kept = 0.0, "", 0.0
        self._bar, self._began, self._drawn = bar, time.monotonic(), 0.0

    def update(self, done: float, note: str) -> None:
        """Show how far it is."""
        self.done, self.note, self._drawn = done, note, time.monotonic()
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.n, self._bar.initial = done, self.kept
        self._bar.refresh()
        board.changed()

    @property
    def is_due(self) -> bool:
        """Whether it is worth being shown again within a block."""
        return time.monotonic() - self._drawn > _REDRAW

    def __str__(self) -> str:
        share = self.done / self.total if self.total else 0.0
        known = [self.note] if self.note else []
        if self.done > self.kept:
            elapsed = time.monotonic() - self._began
            left = elapsed * (self.total - self.done) / (self.done - self.kept)
            known.insert(0, f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
        about = f" ({', '.join(known)})" if known else ""
        return f"{self.title} {share:.0%}{about}"


class _Board:
    """All that is under way and shown in this process, and who works on it."""

    def __init__(self) -> None:
        self.running: list[Underway] = []
        self._at_work: Callable[[], str] = str
        self._status: tqdm[Any] | None = None
        self._ended = Event()

    def add(self, work: Underway, at_work: Callable[[], str]) -> None:
        self.running.append(work)
        if len(self.running) > 1:
            return
        self._at_work = at_work
        if not sys.stderr.isatty():
            self._ended = Event()
            Thread(target=self._tell, args=(self._ended,), daemon=True).start()
        elif at_work():
            self._status = tqdm(bar_format="{desc}", leave=False)

    def remove(self, work: Underway) -> None:
        self.running.remove(work)
        if not self.running:
            self._ended.set()
            if self._status is not None:
                self._status.close()
                self._status = None

    def changed(self) -> None:
        """Say on a terminal who works."""
        if self._status is not None:
            self._status.set_description_str(self._at_work())

    def line(self) -> str:
        """All that is under way."""
        at_work = self._at_work()
        works = "; ".join(str(work) for work in list(self.running))
        return works + (f"; {at_work}" if at_work else "")

    def _tell(self, ended: Event) -> None:
        """Write a line a minute until it ends."""
        while not ended.wait(_LINE):
            tqdm.write(self.line(), file=sys.stderr)


board = _Board()


@contextmanager
def underway(
    title: str,
    total: float,
    show: bool,
    at_work: Callable[[], str] = str,
    unit: str = "img",
    bar_format: str | None = None,
) -> Iterator[Underway]:
    """Show a work while the context lasts, if `show`.

    at_work     says how many work on it and on what else, where not this process alone.
    bar_format  as tqdm has it.
    """
    # disable=None: tqdm draws only on a terminal.
    with tqdm(
        total=total, desc=title, unit=unit, disable=None if show else True, leave=False,
        bar_format=bar_format,
    ) as bar:  # fmt: skip
        work = Underway(title, total, bar)
        if show:
            board.add(work, at_work)
        try:
            yield work
        finally:
            if show:
                board.remove(work)


class AttackBar:
    """The progress of one attack, which works on `samples` of `total` samples.

    None of the `samples` was broken before the attack. A block takes at most `passes` calls of the
    model, or an unknown number if that is 0.
    """

    def __init__(self, work: Underway, samples: int, passes: int, block: int, total: int) -> None:
        self._work = work
        self._samples = samples
        self._passes = passes
        self._block = block
        self._robust = samples
        self._total = total
        self._done = 0
        self._note = ""

    def advance(self, samples: int, broken: int, kept: bool = False) -> None:
        """Note that an attack is done with a block of samples, of which it broke some; `kept` says
        that this was so before."""
        if kept:
            self._work.kept += samples
        self._robust -= broken
        self._note = f"robust <= {self._robust / self._total:.1%}"
        self.count(samples)

    def count(self, samples: int) -> None:
        """Note that so many more samples are done, without saying whether they are broken."""
        self._done += samples
        self._work.update(self._done, self._note)

    def tick(self, calls: int) -> None:
        """Note that the model was called for the `calls`-th time within a block."""
        if self._passes and self._work.is_due:
            done_in_block = min(calls / self._passes, 1.0) * self._block
            self._work.update(min(self._done + int(done_in_block), self._samples), self._note)
