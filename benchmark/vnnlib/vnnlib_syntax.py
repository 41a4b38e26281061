"""The text of VNN-LIB files: names and numbers in nested brackets, each with its place."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from benchmark.errors import UserError

# A comment, a bracket, or anything else up to one of those.
_TOKEN = re.compile(r";[^\n]*|[()]|[^\s();]+")

# Brackets within brackets, at most. Files have five or so.
_DEEPEST = 100

_PACKED = b"\x1f\x8b"


class Symbol(NamedTuple):
    """A name or a number, and where it begins in the text."""

    text: str
    at: int


class Form(NamedTuple):
    """What stands in a pair of brackets, and where it begins in the text."""

    items: list["Node"]
    at: int

    @property
    def head(self) -> str:
        """The first item if it is a symbol, and else nothing."""
        first = self.items[0] if self.items else self
        return first.text if isinstance(first, Symbol) else ""


Node = Symbol | Form


class Source:
    """The text of a property file, which may be packed by gzip, and errors that name a line of it.

    Raises UserError for a file that cannot be read or is no text.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = path.read_bytes()
            self.text = (gzip.decompress(data) if data[:2] == _PACKED else data).decode()
        except OSError as error:
            raise UserError(
                f"cannot read the property {path}: {error.strerror or error}"
            ) from error
        except (EOFError, zlib.error) as error:
            raise UserError(f"cannot read the property {path}: it is no whole gzip file") from error
        except UnicodeDecodeError as error:
            raise UserError(f"cannot read the property {path}: it is no text") from error

    def fail(self, node: Node, what: str) -> NoReturn:
        """Raise UserError that says what is wrong on the line where a node begins."""
        line = self.text.count("\n", 0, node.at) + 1
        raise UserError(f"{self.path}: line {line}: {what}")

    def forms(self) -> Iterator[Form]:
        """The outermost forms, in order. Raises UserError where brackets do not match."""
        opened: list[Form] = []
        for match in _TOKEN.finditer(self.text):
            token, at = match.group(), match.start()
            if token[0] == ";":
                continue
            if token == "(":
                if len(opened) == _DEEPEST:
                    self.fail(opened[0], f"brackets are nested more than {_DEEPEST} deep")
                opened.append(Form([], at))
                continue
            if not opened:
                self.fail(Symbol(token, at), f"{shown(Symbol(token, at))} stands in no brackets")
            if token != ")":
                opened[-1].items.append(Symbol(token, at))
                continue
            closed = opened.pop()
            if opened:
                opened[-1].items.append(closed)
            else:
                yield closed
        if opened:
            self.fail(opened[0], "this bracket is never closed")


def shown(node: Node) -> str:
    """The beginning of a node, for messages."""
    text = _text(node)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _text(node: Node) -> str:
    if isinstance(node, Symbol):
        return node.text
    return f"({' '.join(_text(item) for item in node.items[:4])})"
