"""Pages: what is to be shown of results, before it is known how wide the terminal is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from benchmark.columns import Column

Row = TypeVar("Row")

# What a colour says; most texts have none.
Tone = Literal["", "warning", "wrong", "title"]


@dataclass(frozen=True)
class Words:
    """Some sentences, which are wrapped.

    lead  what stands before them, such as the name of a flag.
    tone  of the lead.
    list  whether it is one of a list, with a mark before it.
    """

    text: str
    lead: str = ""
    tone: Tone = ""
    list: bool = False

    def __str__(self) -> str:
        return ": ".join(part for part in (self.lead, self.text) if part)


@dataclass(frozen=True)
class Grid:
    """A table.

    headings  of its columns; without them, it shows none.
    rows      its cells, each with what its colour says.
    left      which columns hold words, which are aligned left and wrapped; numbers never are.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[tuple[str, Tone]]]
    left: Sequence[bool] = field(default=())


# Sections, with an empty line between any two: tables, or sentences that stand together.
Page = Sequence[Grid | Sequence[Words]]


def grid_of(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> Grid:
    """Rows with the columns that a terminal shows."""
    return Grid(
        [column.heading("terminal") for column in columns],
        [[(column.cell(row), _tone(column, row)) for column in columns] for row in rows],
        [column.left for column in columns],
    )


def _tone(column: Column[Row], row: Row) -> Tone:
    """What the colour of a cell says: a word in a column of numbers is there for a failure."""
    value = column.value(row)
    if value is not None and column.shown["terminal"].warns:
        return "warning"
    return "wrong" if isinstance(value, str) and not column.left else ""
