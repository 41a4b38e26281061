"""How pages are laid out in a width, with colours where there is a terminal that has them.

Rich is imported when something is printed: the command line has to start without it.
"""

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from attacks.messages import one_line
from benchmark.terminal.page import Grid, Page, Tone, Words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# How wide lines are at most; on a narrower terminal, they are as wide as that.
WIDTH = 80

# The least width of a column of words, and the space between columns.
_LEAST, _GAP = 10, 2

_STYLES: dict[Tone, str] = {"": "", "warning": "yellow", "wrong": "bold red", "title": "bold"}

# Where words are broken: at spaces, and behind what separates options and names.
_PIECE = re.compile(r"[^\s/,]*(?:[/,]+|\s+|$)")


def printed(page: Page) -> str:
    """A page as this process prints it on stdout: as wide as the terminal, though not wider than
    WIDTH, and in colour if that is a terminal, unless NO_COLOR is set."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    console.width = min(console.width, WIDTH)
    return _laid_out(page, console)


def text(page: Page, width: int = WIDTH) -> str:
    """A page as plain text."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(), width=width, color_system=None, force_terminal=False,
        force_jupyter=False, highlight=False, markup=False, emoji=False,
    )  # fmt: skip
    return _laid_out(page, console)


def _laid_out(page: Page, console: "Console") -> str:
    """The sections of a page as a console prints them, without spaces at the ends of lines."""
    sections = []
    for section in page:
        with console.capture() as capture:
            if isinstance(section, Grid):
                _print_grid(section, console)
            else:
                for words in section:
                    console.print(_wrapped(words, console))
        sections.append(re.sub(r" +$", "", capture.get(), flags=re.M))
    return "\n".join(sections)


def plain(text: str) -> str:
    """A text in one line, in which nothing commands the terminal."""
    return "".join(mark if mark.isprintable() else "?" for mark in one_line(text))


def _wrapped(words: Words, console: "Console") -> "Text":
    """Sentences within the width; the marks of a list stand out."""
    from rich.text import Text

    line = Text()
    if words.lead:
        line.append(plain(words.lead), _STYLES[words.tone]).append(": " if words.text else "")
    line.append(plain(words.text))
    if not words.list:
        return line
    lines = line.wrap(console, console.width - 2)
    first, *others = (Text("  ").append_text(part) for part in lines)
    return Text("\n").join([Text("- ").append_text(lines[0]), *others]) if first else line


def _print_grid(grid: Grid, console: "Console") -> None:
    """Print a table whose numbers stay whole, and whose words are wrapped to what these leave. A
    terminal that is too narrow for that has to break its lines itself."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    width, widths = console.width, _widths(grid, console.width)
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=bool(grid.headings),
        padding=(0, 1, 0, 0), header_style="",
    )  # fmt: skip
    for place, is_left in enumerate(grid.left):
        table.add_column(
            plain(grid.headings[place]) if grid.headings else "",
            justify="left" if is_left else "right", overflow="fold", width=widths[place],
        )  # fmt: skip
    for row in grid.rows:
        table.add_row(
            *(
                _cell(plain(cell), tone, size if is_left else 0)
                for (cell, tone), size, is_left in zip(row, widths, grid.left, strict=True)
            )
        )
    console.width = max(width, sum(widths) + _GAP * len(widths))
    console.print(table)
    console.width = width


def _cell(cell: str, tone: Tone, width: int) -> "Text":
    """A cell, folded to a width, unless that is 0."""
    from rich.text import Text

    return Text("\n".join(folded(cell, width)) if width else cell, _STYLES[tone])


def _widths(grid: Grid, width: int) -> list[int]:
    """How wide each column is: numbers as wide as they are, and words share what is left, the
    narrow ones first."""
    from rich.cells import cell_len

    columns = zip(*([plain(cell) for cell, _ in row] for row in grid.rows), strict=True)
    widths = [max(map(cell_len, column)) for column in columns]
    if grid.headings:
        whole = [max(n, cell_len(plain(h))) for n, h in zip(widths, grid.headings, strict=True)]
        if sum(whole) + _GAP * (len(whole) - 1) <= width:
            return whole
        # Headings are broken between their words.
        words = [max(map(cell_len, plain(h).split())) for h in grid.headings]
        widths = [max(pair) for pair in zip(widths, words, strict=True)]
    left = width - _GAP * (len(widths) - 1)
    left -= sum(size for size, is_left in zip(widths, grid.left, strict=True) if not is_left)
    places = sorted((p for p, is_left in enumerate(grid.left) if is_left), key=widths.__getitem__)
    for before, place in enumerate(places):
        widths[place] = min(widths[place], max(_LEAST, left // (len(places) - before)))
        left -= widths[place]
    return widths


def folded(text: str, width: int) -> list[str]:
    """A text in lines of at most so many cells, the further ones indented. They end at spaces and
    behind slashes and commas where they can; no other character is lost.

    >>> folded("pgd-at/epochs=20/arch=resnet", 18)
    ['pgd-at/epochs=20/', '  arch=resnet']
    """
    from rich.cells import cell_len

    lines = [""]
    for piece in _pieces(text, width - 2):
        if lines[-1].strip() and cell_len(lines[-1] + piece.rstrip()) > width:
            lines.append("  ")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _pieces(text: str, width: int) -> Iterator[str]:
    """The parts of a text that a line may end behind, none wider than so many cells."""
    from rich.cells import cell_len

    for piece in _PIECE.findall(text):
        part = ""
        for mark in piece:
            if cell_len(part + mark) > width:
                yield part
                part = ""
            part += mark
        if part:
            yield part
