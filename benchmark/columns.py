"""Columns of tables: what one is called, holds, prints and says, for every table that shows it; and
how texts of users are written so that Markdown and spreadsheets show them as they are."""

import html
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from attacks.messages import one_line

if TYPE_CHECKING:
    import pandas as pd

# What tables print where a row has no value.
NONE = "-"

# The largest denominators of fractions that count as simpler than one of 255, and as simple.
_SIMPLE = (9, 1000)

# What spreadsheets take for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

# The tables that show columns: the run's table with a row per defense, that of these which a
# terminal has room for, that of its page, that over several seeds, and that in LaTeX; the details,
# a row per attack; the numbers of those details, as DataFrame, table.csv and the details of
# table.json; the accuracies among them, in a model card; the rows of table.json; the leaderboard's
# tables, in its README and on its page: the narrow one, that of all attacks, and that of what
# papers report; and those of an attribution, with a row per attack, per stage of an attack, and per
# order of attacks.
Table = Literal[
    "run", "terminal", "page", "seeds", "latex", "details", "numbers", "card", "json",
    "board", "attacks", "papers",
    "attribution", "stages", "orders",
]  # fmt: skip

Row = TypeVar("Row", contravariant=True)


@dataclass(frozen=True)
class Shown:
    """How a column stands in one table.

    heading   what the column is called there.
    caption   what the caption of that table says of it: whole sentences.
    optional  whether some tables of the kind lack the column; captions speak of it last.
    warns     whether what it holds is a warning.
    """

    heading: str
    caption: str = ""
    optional: bool = False
    warns: bool = False


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of one or several tables, whose rows are all of one type.

    shown  the tables that show it, and how it stands there.
    value  what the column holds for a row: None where there is nothing to tell, and a word, such as
           "error", where there is a reason for that.
    text   how a value prints that is neither None nor a word.
    data   how a value is written to JSON.
    left   whether it is aligned left, as words are; numbers are aligned right.
    style  the classes that its cells have on the leaderboard's page.
    """

    shown: Mapping[Table, Shown]
    value: Callable[[Row], Any]
    text: Callable[[Any], str] = str
    data: Callable[[Any], Any] = lambda value: value
    left: bool = False
    style: str = ""

    def heading(self, table: Table) -> str:
        """What the column is called in a table that shows it."""
        return self.shown[table].heading

    def cell(self, row: Row) -> str:
        """What tables print for a row."""
        value = self.value(row)
        if value is None:
            return NONE
        return value if isinstance(value, str) else self.text(value)

    def only(self, *tables: Table) -> Self:
        """The same column for some of its tables, so that others can have it elsewhere."""
        return replace(self, shown={table: self.shown[table] for table in tables})


def shown_in(table: Table, columns: Iterable[Column[Row]]) -> list[Column[Row]]:
    """Those of the columns that a table shows, in order."""
    return [column for column in columns if table in column.shown]


def captions(table: Table, columns: Iterable[Column[Any]]) -> list[str]:
    """What the caption of a table says of its columns, those that not every such table has last."""
    entries = [column.shown[table] for column in columns if table in column.shown]
    entries.sort(key=lambda shown: shown.optional)
    return [shown.caption for shown in entries if shown.caption]


def percent(share: float | None) -> str:
    """A share as tables print it, in %; NONE where it is None or NaN."""
    return NONE if share is None or math.isnan(share) else f"{100 * share:.1f}"


def decimals(digits: int) -> Callable[[float], str]:
    """How numbers print with so many digits after the point; NaN prints as unknown."""
    return lambda value: NONE if math.isnan(value) else f"{value:.{digits}f}"


def eps_text(eps: float) -> str:
    """How texts write a radius: as users write it, and never another number than it is.

    That is a short decimal number, a fraction of 255, as of pixels in bytes, or another simple
    fraction, whichever is this very number; and where none is, all its digits.

    >>> [eps_text(eps) for eps in (0.3, 8 / 255, 1 / 255, 2.5 / 255, 1 / 3, 0.1 + 0.2)]
    ['0.3', '8/255', '1/255', '2.5/255', '1/3', '0.30000000000000004']
    """
    nearest = [str(Fraction(eps).limit_denominator(most)) for most in _SIMPLE]
    of_bytes = f"{round(510 * eps) / 2:g}/255"
    for text in (f"{eps:g}", nearest[0], of_bytes, nearest[1]):
        top, _, bottom = text.partition("/")
        if float(top) / float(bottom or 1) == eps:
            return text
    return repr(float(eps))


class Markup(str):
    """A text that is Markdown already, which is not escaped again."""

    __slots__ = ()


# What Markdown does not show as it is, and how to write that.
_MARKS = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": r"\|", "`": r"\`", "\\": r"\\"}
)


def escaped(text: str) -> Markup:
    r"""A text in one line that Markdown shows as it is, in a table or elsewhere.

    >>> print(escaped("a|b <i>\n`c`"))
    a\|b &lt;i&gt; \`c\`
    """
    return text if isinstance(text, Markup) else Markup(one_line(text).translate(_MARKS))


class AsMarkdown(ABC):
    """What shows itself as Markdown, in a shell and in a notebook."""

    @abstractmethod
    def to_markdown(self) -> str: ...

    def __str__(self) -> str:
        return self.to_markdown().rstrip()

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[bool]) -> str:
    """A table as GitHub's Markdown, with its texts escaped; `left` says which of its columns are
    aligned left."""
    from tabulate import tabulate

    align = ["left" if words else "right" for words in left]
    cells, heads = [[escaped(cell) for cell in row] for row in rows], [*map(escaped, headings)]
    return tabulate(cells, heads, tablefmt="github", disable_numparse=True, colalign=align)


def rows_markdown(table: Table, columns: Sequence[Column[Row]], rows: Sequence[Row]) -> str:
    """Rows with the columns that a table shows, as Markdown."""
    return markdown(
        [column.heading(table) for column in columns],
        [[column.cell(row) for column in columns] for row in rows],
        [column.left for column in columns],
    )


def rows_html(table: Table, columns: Sequence[Column[Row]], rows: Sequence[Row]) -> str:
    """Rows with the columns that a table shows, as HTML, for notebooks."""
    align = ["left" if column.left else "right" for column in columns]

    def line(tag: str, texts: Iterable[str]) -> str:
        cells = zip(align, texts, strict=True)
        return "".join(
            f'<{tag} style="text-align: {side}">{html.escape(text)}</{tag}>' for side, text in cells
        )

    body = [line("td", [column.cell(row) for column in columns]) for row in rows]
    parts = [line("th", [column.heading(table) for column in columns]), *body]
    return "<table>" + "".join(f"<tr>{part}</tr>" for part in parts) + "</table>"


def frame_markdown(frame: "pd.DataFrame") -> str:
    """A DataFrame as a table in Markdown, without its index, with its texts escaped."""

    def cell(value: Any) -> Any:
        return escaped(value) if isinstance(value, str) else value

    shown = frame.rename(columns=lambda name: cell(str(name))).map(cell)
    return str(shown.to_markdown(index=False, disable_numparse=True))


def frame_csv(frame: "pd.DataFrame") -> str:
    """A DataFrame as CSV, without its index.

    An apostrophe comes before a text that a spreadsheet would run as a formula. Numbers, also those
    that are written as text, stay as they are.
    """
    return str(frame.rename(columns=_harmless).map(_harmless).to_csv(index=False))


def _harmless(value: Any) -> Any:
    """The value; a text that begins like a formula, with an apostrophe before it."""
    if not isinstance(value, str) or value == NONE or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
