"""Progress bars: time left, and the robust accuracy so far. Silent where output is no terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

# Seconds between two redraws within a block.
_REDRAW = 0.2


class AttackBar:
    """One attack on `samples` of `total`, none of which was broken before it."""

    def __init__(self, bar: "tqdm[Any]", samples: int, passes: int, block: int, total: int) -> None:
        self._bar = bar
        self._samples = samples
        self._passes = passes
        self._block = block
        self._robust = samples
        self._total = total
        self._done = 0
        self._drawn = 0.0

    def advance(self, samples: int, broken: int) -> None:
        """A block of samples is done."""
        self._robust -= broken
        self._bar.set_postfix_str(f"robust <= {self._robust / self._total:.1%}", refresh=False)
        self.count(samples)

    def count(self, samples: int) -> None:
        """A block of samples is done, which breaks none."""
        self._done += samples
        self._draw(self._done)

    def tick(self, calls: int) -> None:
        """The model was called for the `calls`-th time within a block."""
        if time.monotonic() - self._drawn > _REDRAW and self._passes:
            part = min(calls / self._passes, 1.0) * self._block
            self._draw(min(self._done + int(part), self._samples))

    def _draw(self, samples: int) -> None:
        self._drawn = time.monotonic()
        self._bar.n = samples
        self._bar.refresh()


@contextmanager
def attack_bar(
    label: str, samples: int, passes: int, block: int, total: int, show: bool
) -> Iterator[AttackBar]:
    """A bar over the samples of one attack; `passes` is the most model calls that a block takes,
    0 where that is not known."""
    # disable=None: tqdm draws only on a terminal.
    with tqdm(
        total=samples, desc=label, unit="img", disable=None if show else True, leave=False
    ) as bar:
        yield AttackBar(bar, samples, passes, block, total)
