"""The board as Markdown and as a static page."""

from collections.abc import Sequence
from pathlib import Path

from leaderboard.show.table import Table, columns
from leaderboard.submission.record import EVIDENCE, RECORD, SPEC

README, SITE = "README.md", "site/index.html"

_FILES = {"spec": SPEC, "record": RECORD, "examples": EVIDENCE}

_LEFT = ("defense", "flags", "reported by papers", "files")


def render_readme(tables: Sequence[Table]) -> str:
    """The board's README.md."""
    text = _rendered("README.md.j2", tables=tables, markdown=_markdown, anchor=_anchor)
    return text.rstrip() + "\n"


def render_site(tables: Sequence[Table]) -> str:
    """The board's page, which needs no other files but its pictures."""
    return _rendered("index.html.j2", tables=tables, columns=columns)


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
    from tabulate import tabulate

    names = [*columns(table.task), "reported by papers", "files"]
    rows = [
        [
            *(_linked(column, text, line.folder) for column, text in line.cells.items()),
            *(text if text == "-" else f"*{text}*" for text in line.reported.values()),
            ", ".join(f"[{name}]({line.folder}/{file})" for name, file in _FILES.items()),
        ]
        for line in table.lines
    ]
    if not rows:
        return "No rows yet."
    align = ["left" if name in _LEFT else "right" for name in names]
    return tabulate(rows, names, tablefmt="github", disable_numparse=True, colalign=align)


def _linked(column: str, text: str, folder: str) -> str:
    return f"[{text}]({folder}/README.md)" if column == "defense" else text


def _anchor(title: str) -> str:
    """The fragment that GitHub gives a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
