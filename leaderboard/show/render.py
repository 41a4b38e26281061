"""The board as Markdown and as a static page."""

from collections.abc import Sequence
from pathlib import Path

from benchmark.columns import Markup, escaped, markdown
from benchmark.pages.rendering import rendered
from leaderboard.show.board_columns import BoardColumn
from leaderboard.show.table import Line, Table

_TEMPLATES = Path(__file__).parent / "templates"

README, SITE = "README.md", "site/index.html"


def render_readme(tables: Sequence[Table]) -> str:
    """The board's README.md."""
    text = rendered(
        "README.md.j2", [_TEMPLATES], tables=tables, main=_main, anchor=_anchor, escaped=escaped,
        attacks=lambda table: _markdown(*_attacks(table)),
        papers=lambda table: _markdown(*_papers(table)),
    )  # fmt: skip
    return text.rstrip() + "\n"


def render_site(tables: Sequence[Table]) -> str:
    """The board's page, which needs its pictures and the pages of the rows beside it."""
    kinds = sorted({line.kind for table in tables for line in table.lines})
    flags = sorted({flag for table in tables for line in table.lines for flag in line.flags})
    return rendered(
        "index.html.j2", [_TEMPLATES], tables=tables, kinds=kinds, flags=flags, attacks=_attacks,
        papers=_papers,
    )  # fmt: skip


def _main(table: Table) -> str:
    """A table as Markdown, with links to the files of its rows."""
    if not table.lines:
        return "No rows yet."
    return markdown(
        [column.heading("board") for column in table.columns],
        [[_cell(column, line) for column in table.columns] for line in table.lines],
        [column.left for column in table.columns],
    )


def _cell(column: BoardColumn, line: Line) -> str:
    name = column.heading("board")
    if not column.links:
        return line.cells[name]
    links = line.links[name].items()
    return Markup(", ".join(f"[{escaped(text)}]({line.folder}/{file})" for text, file in links))


# The headings of a table, and its rows.
_Rows = tuple[list[str], list[list[str]]]


def _attacks(table: Table) -> _Rows:
    """The table of all attacks."""
    headings = [column.heading("attacks") for column in table.attack_columns]
    return headings, [list(line.attacks.values()) for line in table.lines]


def _papers(table: Table) -> _Rows:
    """The table of what papers report."""
    return list(table.papers[0]), [list(told.values()) for told in table.papers]


def _markdown(headings: list[str], rows: list[list[str]]) -> str:
    """A table as Markdown, of which the first column holds names."""
    return markdown(headings, rows, [not place for place in range(len(headings))])


def _anchor(title: str) -> str:
    """The fragment that GitHub gives a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
