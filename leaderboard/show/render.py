"""The board as Markdown and as a static page."""

from collections.abc import Sequence
from pathlib import Path

from benchmark.columns import NONE, Markup, escaped, markdown
from leaderboard.show.board_columns import BoardColumn
from leaderboard.show.table import Line, Table

README, SITE = "README.md", "site/index.html"


def render_readme(tables: Sequence[Table]) -> str:
    """The board's README.md."""
    text = _rendered(
        "README.md.j2", tables=tables, markdown=_markdown, anchor=_anchor, escaped=escaped
    )
    return text.rstrip() + "\n"


def render_site(tables: Sequence[Table]) -> str:
    """The board's page, which needs no other files but its pictures."""
    return _rendered("index.html.j2", tables=tables)


def _rendered(name: str, **values: object) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        autoescape=".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(**values)


def _markdown(table: Table) -> str:
    """A table as Markdown, with links to the files of its rows."""
    if not table.lines:
        return "No rows yet."
    return markdown(
        [column.name for column in table.columns],
        [[_cell(column, line) for column in table.columns] for line in table.lines],
        [column.left for column in table.columns],
    )


def _cell(column: BoardColumn, line: Line) -> str:
    text = line.cells[column.name]
    if column.links:
        links = line.links[column.name].items()
        return Markup(", ".join(f"[{escaped(name)}]({line.folder}/{file})" for name, file in links))
    return Markup(f"*{escaped(text)}*") if column.quoted and text != NONE else text


def _anchor(title: str) -> str:
    """The fragment that GitHub gives a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
