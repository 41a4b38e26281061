"""The one error that users see, and the hint in it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend: one line that says what is wrong and what to do."""


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A question where something close is known, else what is to be said otherwise."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise
