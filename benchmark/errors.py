"""The one error that users see, and the hint in it."""

from collections.abc import Iterable

from attacks.messages import closest


class UserError(Exception):
    """Something that the user can mend: one line that says what is wrong and what to do."""


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A question where something close is known, else what is to be said otherwise."""
    close = closest(word, known)
    return f"did you mean {close!r}?" if close else otherwise
