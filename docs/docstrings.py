"""How docstrings become Markdown for the reference pages: they are plain text, laid out by hand.

A line such as "steps   how many" describes what it begins with, and goes on in the indented lines
below it. Such lines become a definition list, and examples (">>>") become code. Nothing else is
marked up, so that an asterisk in "(n, *shape)" stays one.
"""

import re
import textwrap
from typing import Any

import griffe

_FIELD = re.compile(r"(?P<names>[^\s,]+(?:, [^\s,]+)*) {2,}(?P<text>\S.*)")
_CODE = re.compile(r"(`[^`]+`)")
_MARKUP = re.compile(r"([\\*_<\[#])")


def to_markdown(docstring: str) -> str:
    """A docstring of the kind that this project writes, as Markdown."""
    blocks = re.split(r"\n\s*\n", docstring.strip("\n"))
    return "\n\n".join(_block(textwrap.dedent(block).rstrip(), block) for block in blocks)


def _block(text: str, as_written: str) -> str:
    lines = text.splitlines()
    if text.startswith(">>>"):
        return f"```pycon\n{text}\n```"
    if _FIELD.match(lines[0]) and all(_FIELD.match(line) or line[0] == " " for line in lines):
        return _definitions(lines)
    if as_written.startswith("    "):
        return textwrap.indent(text, "    ")
    # A list needs an empty line before it.
    return re.sub(r"(?m)\A(?!- )((?:(?!^- ).*\n)+)(?=- )", r"\1\n", _escaped(text))


def _definitions(lines: list[str]) -> str:
    entries: list[list[str]] = []
    for line in lines:
        field = _FIELD.match(line)
        if field and line[0] != " ":
            names = ", ".join(f"`{name.strip('`')}`" for name in field["names"].split(", "))
            entries.append([names, field["text"]])
        else:
            entries[-1].append(line.strip())
    return "\n\n".join(f"{names}\n:   {_escaped(' '.join(text))}" for names, *text in entries)


def _escaped(text: str) -> str:
    pieces = _CODE.split(text)
    pieces[::2] = [_MARKUP.sub(r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces)


class Docstrings(griffe.Extension):
    """Rewrites each docstring once everything is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
