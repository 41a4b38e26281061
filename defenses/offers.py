"""What a model may say of itself beside its logits, by attributes."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class HasRejection(Protocol):
    """A model that may refuse to classify an image.

    reject  the class that it gives an image then, behind those of the data.
    """

    reject: int


@runtime_checkable
class HasNote(Protocol):
    """A model that readers of a table must know something of.

    note  one line.
    """

    note: str


def rejection_of(model: object) -> int | None:
    """The class by which a model rejects an image; None if it has none."""
    reject = model.reject if isinstance(model, HasRejection) else None
    return reject if isinstance(reject, int) and not isinstance(reject, bool) else None


def note_of(model: object) -> str:
    """What a model says of itself; empty if it says nothing."""
    note = model.note if isinstance(model, HasNote) else ""
    return note if isinstance(note, str) else ""
