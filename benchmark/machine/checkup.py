"""What was found out about a machine, line by line, and how it is printed."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

# How wide a terminal is, at least, and the first column of a section.
WIDTH, _NAMES = 80, 16


@dataclass(frozen=True)
class Line:
    """One thing that was found out.

    name      what it is about.
    text      what was found.
    remedy    what to do about it: whole sentences; empty where nothing is to mend.
    is_wrong  whether runs fail or go wrong because of it, and are not only slower or larger.
    """

    name: str
    text: str
    remedy: str = ""
    is_wrong: bool = False

    def __str__(self) -> str:
        mark = "!" if self.remedy else " "
        # Paths are not broken, also where they are longer than a line.
        return textwrap.fill(
            self.text, WIDTH, initial_indent=f"{mark} {self.name:<{_NAMES}}",
            subsequent_indent=" " * (2 + _NAMES), break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip


@dataclass(frozen=True)
class Section:
    """What was found out about one part of a machine."""

    title: str
    lines: Sequence[Line]

    def __str__(self) -> str:
        return "\n".join([self.title, *map(str, self.lines)])


def closing(sections: Sequence[Section]) -> str:
    """What is to mend after all sections, with what to do about each thing.

    >>> print(closing([Section("Data", [Line("cache", "full", "Delete something.")])]))
    1 thing to mend:
    1. cache: Delete something.
    >>> closing([Section("Data", [Line("cache", "empty")])])
    'All is well.'
    """
    mended = [line for section in sections for line in section.lines if line.remedy]
    if not mended:
        return "All is well."
    head = f"{len(mended)} {'thing' if len(mended) == 1 else 'things'} to mend:"
    items = (
        textwrap.fill(
            f"{number}. {line.name}: {line.remedy}", WIDTH, subsequent_indent="   ",
            break_on_hyphens=False, break_long_words=False,
        )
        for number, line in enumerate(mended, 1)
    )  # fmt: skip
    return "\n".join([head, *items])
