"""From what a user writes, "pgd/steps=40" or a mapping, to a configured attack or defense."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from benchmark.errors import UserError
from benchmark.registry import Registry

# The columns of a table that are no attack's.
NATURAL = "natural"
BEST = "best-attack"

# "saved:FOLDER" names a model that `bestattack train` left there; a folder may hold slashes.
SAVED = "saved:"


class Component(BaseModel):
    """A registered name with options: "name/key=value/flag", or a mapping with `name` in it.

    A mapping may give a `label` for the tables; by default it is the name with its options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    options: dict[str, Any] = {}
    given_label: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            name, *parts = [value] if value.startswith(SAVED) else value.split("/")
            pairs = (part.partition("=") for part in parts)
            return {"name": name, "options": {k: v if eq else True for k, eq, v in pairs}}
        if isinstance(value, dict) and "options" not in value:
            options = {key: value[key] for key in value if key not in ("name", "label")}
            return {
                "name": value.get("name"),
                "options": options,
                "given_label": value.get("label"),
            }
        return value

    @field_validator("given_label")
    @classmethod
    def _not_a_column(cls, label: str | None) -> str | None:
        if label in (NATURAL, BEST):
            raise ValueError(f"{label!r} is a column of the table: choose another label")
        return label

    @property
    def label(self) -> str:
        """How tables name it."""
        if self.given_label is not None:
            return self.given_label
        options = [k if v is True else f"{k}={v}" for k, v in self.options.items()]
        return "/".join([self.name, *options])

    def absolute(self) -> "Component":
        """The same with the paths in it absolute, and the label that it had."""
        name, options = self.name, dict(self.options)
        if name.startswith(SAVED):
            name = SAVED + str(Path(name.removeprefix(SAVED)).absolute())
        for key in ("model", "weights"):
            path, colon, attribute = str(options.get(key, "")).partition(":")
            if Path(path).is_file():
                options[key] = f"{Path(path).absolute()}{colon}{attribute}"
        if (name, options) == (self.name, self.options):
            return self
        return Component(name=name, options=options, given_label=self.label)


def configure(registry: Registry, component: Component) -> Any:
    """The dataclass behind a name with its options set and checked.

    Raises UserError for an unknown name or option and for a value of the wrong kind or range.
    """
    cls = registry.get(component.name)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"{registry.kind} {component.name!r} is not a dataclass")
    fields = [field.name for field in dataclasses.fields(cls) if field.init]
    for key in component.options:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(fields)}"
            raise UserError(f"{registry.kind} {component.name!r} has no option {key!r}: {hint}")
    try:
        return TypeAdapter(cls).validate_python(component.options)
    except ValidationError as error:
        raise UserError(f"{registry.kind} {component.label!r}: {first_line(error)}") from error


def first_line(error: ValidationError) -> str:
    """What pydantic found first, in one line."""
    detail = error.errors()[0]
    where = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        flag = {"defenses": "defense", "attacks": "attack"}.get(where, where)
        return f"give {where}, in the spec or as --{flag}"
    return f"{where}: {message}" if where else message
