"""A suite that was learned from a run: its attacks, in the order of their cascade."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from benchmark.spec.components import Component

# "learned:RUN" names the suite that is learned from the run in a folder.
LEARNED = "learned:"


class LearnedSuite(BaseModel):
    """What was learned from a run, as the spec of another run records it, which can then be
    repeated without the first.

    learned  the folder of the run, as it was named.
    of       what that run was on, in words.
    attacks  with their options, in the order in which a cascade carries them out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    learned: str
    of: str = ""
    attacks: Annotated[list[Component], Field(min_length=1)]

    @field_validator("attacks")
    @classmethod
    def _make_paths_absolute(cls, attacks: list[Component]) -> list[Component]:
        return [attack.absolute() for attack in attacks]

    @property
    def note(self) -> str:
        """What tables say of it."""
        labels = ", ".join(attack.label for attack in self.attacks)
        of = f" ({self.of})" if self.of else ""
        return f"attacks and their order learned from {self.learned}{of}: {labels}"

    def __str__(self) -> str:
        return f"{LEARNED}{self.learned}"
