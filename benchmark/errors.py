"""The error that is shown to users, and the hint in it."""

from collections.abc import Iterable

from attacks.messages import closest


class UserError(Exception):
    """An error that the user can mend. Its text is one line on what is wrong and what to do."""


class FailedError(Exception):
    """Attacks or certificates of a run failed. Its text is one line that names them."""


class BelowError(Exception):
    """Rows of a run fall short of what was asked for. Its text is one line that names them."""


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A hint on an unknown word: "did you mean" and the closest known word, or else `otherwise`."""
    close = closest(word, known)
    return f"did you mean {close!r}?" if close else otherwise
