"""How errors read to users: one line each, with the nearest known name where a word is unknown."""

import difflib
from collections.abc import Iterable


def one_line(text: object) -> str:
    """The text with every run of white space, line breaks among them, as one space."""
    return " ".join(str(text).split())


def described(error: BaseException) -> str:
    """An error as one line: its type, and its text where it has one."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def reason(error: BaseException) -> str:
    """An error as one line, without its type for a plain ValueError, whose text says all."""
    return one_line(error) if type(error) is ValueError and str(error).strip() else described(error)


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a word, upper or lower case; None where none is like it."""
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), list(folded), n=1)
    return folded[close[0]] if close else None
