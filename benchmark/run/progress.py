"""Progress bars for attacks, with the time left and the robust accuracy so far.

Nothing is shown where the output is not a terminal.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

# Seconds between two redraws within a block.
_REDRAW = 0.2


class AttackBar:
    """The progress of one attack, which works on `samples` of `total` samples.

    None of the `samples` was broken before the attack. A block takes at most `passes` calls of the
    model, or an unknown number if that is 0.
    """

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
        """Note that an attack is done with a block of samples, of which it broke some."""
        self._robust -= broken
        self._bar.set_postfix_str(f"robust <= {self._robust / self._total:.1%}", refresh=False)
        self.count(samples)

    def count(self, samples: int) -> None:
        """Note that so many more samples are done, without saying whether they are broken."""
        self._done += samples
        self._draw(self._done)

    def tick(self, calls: int) -> None:
        """Note that the model was called for the `calls`-th time within a block."""
        if time.monotonic() - self._drawn > _REDRAW and self._passes:
            done_in_block = min(calls / self._passes, 1.0) * self._block
            self._draw(min(self._done + int(done_in_block), self._samples))

    def _draw(self, samples: int) -> None:
        self._drawn = time.monotonic()
        self._bar.n = samples
        self._bar.refresh()


@contextmanager
def attack_bar(
    label: str, samples: int, passes: int, block: int, total: int, show: bool
) -> Iterator[AttackBar]:
    """Show a progress bar for one attack while the context lasts; see `AttackBar`.

    It is shown only if `show`. The label stands before it.
    """
    # disable=None: tqdm draws only on a terminal.
    with tqdm(
        total=samples, desc=label, unit="img", disable=None if show else True, leave=False
    ) as bar:
        yield AttackBar(bar, samples, passes, block, total)
