"""Components: from what a user writes, such as "pgd/steps=40", to a configured attack or defense.

Names may be composed. "best-arm:pgd/steps=40" is the attack best-arm with pgd as its base; each
option goes to the first of the two that has an option of that name. "foolbox:NAME/steps=40" is an
attack of that library, with the options that it has there.
"""

import dataclasses
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from benchmark.errors import UserError, did_you_mean
from benchmark.spec.registry import BASE, NAME, Registry, rest_of

# The names of the columns of a table that do not belong to an attack.
NATURAL = "natural"
CERTIFIED = "certified"
BEST = "best-attack"

# What records call the search for proofs, which may break samples.
SEARCH = "search"

# "saved:FOLDER" names a model that `bestattack train` left there; a folder may hold slashes.
SAVED = "saved:"


def saved_folder(name: str) -> Path | None:
    """The folder that a name such as "saved:FOLDER" holds; None for other names."""
    return Path(name.removeprefix(SAVED)) if name.startswith(SAVED) else None


# The option that names another model. In text it stands last, and its value is all that follows,
# because labels and folders hold slashes.
SOURCE = "source"

# Options that hold the path of a file or a folder, of which some name code in it after a colon.
_PATHS = ("model", "weights", "python", "onnx", "exported", "script", "transformers")
# That of which it is a folder.
_FOLDER = "transformers"
# Options whose values are names with so many slashes at most.
_SLASHES = {"robustbench": 2, _FOLDER: 1}

# How a model in a file is named, by the ending of the file.
_BY_ENDING = {
    ".onnx": "external/onnx={file}",
    ".onnx.gz": "external/onnx={file}",
    ".pt2": "external/exported={file}",
    ".ts": "external/script={file}",
    ".torchscript": "external/script={file}",
    ".py": "external/python={file}:NETWORK",
    ".pt": "external/timm=NETWORK/weights={file}",
    ".pth": "external/timm=NETWORK/weights={file}",
    ".safetensors": "external/timm=NETWORK/weights={file}",
}

# A number as a fraction, such as 8/255.
_FRACTION = re.compile(r"\d+(\.\d+)?/0*[1-9]\d*")


class Component(BaseModel):
    """A registered name with options: "name/key=value/flag", or a mapping with `name` in it.

    An option may have several values, separated by commas or in a list; they make a series of
    attacks (see `benchmark.spec.lineup`). A mapping may give a `label`, which names the component
    in tables; by default, the label is the name with its options.

    >>> component = Component.model_validate("pgd/steps=40/restarts=5")
    >>> component.name, component.options
    ('pgd', {'steps': '40', 'restarts': '5'})
    >>> Component.model_validate({"name": "pgd", "steps": 40, "label": "PGD-40"}).label
    'PGD-40'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    options: dict[str, Any] = {}
    given_label: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """The fields of a component, from text or from the mapping that a user wrote."""
        if isinstance(value, str):
            if value.startswith(SAVED):
                return {"name": value}
            _refuse_file(value)
            value, named, source = value.partition(f"/{SOURCE}=")
            name, *settings = _settings(value)
            pairs = [setting.partition("=") for setting in settings]
            # An option without a value is a flag that is set.
            options: dict[str, Any] = {key: text if eq else True for key, eq, text in pairs}
            if len(options) < len(pairs):
                raise ValueError(f"{value!r} gives an option twice")
            return {"name": name, "options": options | ({SOURCE: source} if named else {})}
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
        """Refuse a label that a column of the table has already."""
        if label in (NATURAL, CERTIFIED, BEST, SEARCH):
            raise ValueError(f"{label!r} is a column of the table: choose another label")
        return label

    @property
    def label(self) -> str:
        """The name of the component in tables."""
        if self.given_label is not None:
            return self.given_label
        options = [
            key if value is True else f"{key}={_text(value)}" for key, value in self.options.items()
        ]
        return "/".join([self.name, *options])

    def with_option(self, key: str, value: Any) -> "Component":
        """The component with one option changed, in its label too."""
        label, before = self.given_label, f"{key}={_text(self.options.get(key))}"
        if label is not None:
            after = f"{key}={value}"
            label = label.replace(before, after) if before in label else f"{label} {after}"
        return Component(name=self.name, options=self.options | {key: value}, given_label=label)

    def absolute(self) -> "Component":
        """The component with absolute paths to models, weights and code, and the same label."""
        name, options = self.name, dict(self.options)
        if name.startswith(SAVED):
            name = SAVED + str(Path(name.removeprefix(SAVED)).absolute())
        for key in _PATHS:
            path, colon, attribute = str(options.get(key, "")).partition(":")
            # A folder may have the name of an architecture.
            if Path(path).is_file() or (key == _FOLDER and path and Path(path).is_dir()):
                options[key] = f"{Path(path).absolute()}{colon}{attribute}"
        for key, value in options.items():
            if isinstance(value, str) and value.startswith(SAVED):
                options[key] = SAVED + str(Path(value.removeprefix(SAVED)).absolute())
        if (name, options) == (self.name, self.options):
            return self
        return Component(name=name, options=options, given_label=self.label)


def _refuse_file(text: str) -> None:
    """Raises ValueError where a text is the path of a file of a model, and says how to write it."""
    file, _, network = text.removeprefix("external/").partition(":")
    for ending, form in _BY_ENDING.items():
        if file.endswith(ending) and "=" not in file:
            form = form.replace("NETWORK", network or "NETWORK")
            raise ValueError(f"{text!r} is the name of a file: write {form.format(file=file)}")


def _settings(text: str) -> list[str]:
    """The name and the options of a component, which slashes separate. Slashes that are part of an
    option are those of a path that exists, of a name such as robustbench=NAME/DATASET/THREAT, and
    of a fraction, as in "pgd-at/eps=8/255"."""
    parts, settings = text.split("/"), []
    while parts:
        key, _, value = parts[0].partition("=")
        count = 1
        if key in _PATHS:
            count = _path_length(parts)
        if count == 1:
            count += sum("=" not in part for part in parts[1 : 1 + _SLASHES.get(key, 0)])
        if count == 1 and len(parts) > 1 and _FRACTION.fullmatch(f"{value}/{parts[1]}"):
            count = 2
        settings.append("/".join(parts[:count]))
        parts = parts[count:]
    return settings


def _path_length(parts: list[str]) -> int:
    """How many parts the longest path takes that exists and begins with the value of the first; 1
    where none does."""
    for count in range(len(parts), 1, -1):
        path = "/".join(parts[:count]).partition("=")[2]
        file, _, attribute = path.rpartition(":")
        if Path(path).exists() or ("/" not in attribute and Path(file).is_file()):
            return count
    return 1


def _number(value: Any) -> Any:
    """The number that a fraction is, as budgets often are; other values as they are."""
    if isinstance(value, str) and _FRACTION.fullmatch(value):
        top, _, bottom = value.partition("/")
        return float(top) / int(bottom)
    return value


def _several(value: Any) -> Any:
    """The values in a text such as 0.5,0.5, or the only one; other values as they are."""
    if isinstance(value, str):
        return [_number(part) for part in value.split(",")]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _mapping(value: Any) -> Any:
    """The mapping in a text such as {img_size: 16}; other values as they are."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return value


def read_component(value: Any, what: str) -> Component:
    """Validate a component that a user wrote, as text or as a mapping.

    Raises UserError where it is not valid, in a line that begins with `what`, such as "the attack".
    """
    try:
        return Component.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{what} is not valid: {first_line(error)}") from error


def configure(registry: Registry, component: Component) -> Any:
    """Create the attack or the defense that a component names, with its options.

    Raises UserError for an unknown name or option and for a value of the wrong kind or range.

    >>> from benchmark.spec.registry import ATTACKS
    >>> configure(ATTACKS, read_component("pgd/steps=10", "the attack")).steps
    10
    >>> configure(ATTACKS, read_component("pgd/step=10", "the attack"))
    Traceback (most recent call last):
    benchmark.errors.UserError: attack 'pgd' has no option 'step': did you mean 'steps'?
    """
    return _build(registry, component, component.name, component.options, [])


def _build(
    registry: Registry, whole: Component, name: str, options: dict[str, Any], outer: list[str]
) -> Any:
    """Create the object of a name, which may be composed: "best-arm:pgd".

    whole    the component that the user wrote, for messages.
    name     the part of its name that is to be built: all of it, or what follows a wrapper.
    options  the options that no wrapper before it has taken.
    outer    the names of the options of the wrappers before it.
    """
    head, colon, rest = name.partition(":")
    cls = registry.get(head)
    kind = f"{registry.kind} {head!r}"
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"{kind} is not a dataclass")
    form = rest_of(cls)
    if colon and not form:
        raise UserError(f"{kind} takes nothing after a colon: write {head!r}")
    if form and not rest:
        what, such = "a library", ""
        if form == BASE:
            what, such = "around another", f", such as '{head}:pgd'"
        raise UserError(f"{kind} is {what}: write '{head}:{form}'{such}")
    if form == NAME:
        return _make(registry, whole, cls, {"attack": rest, "options": options})
    # Take the options that this class has, and leave the others to its base.
    fields = [field.name for field in dataclasses.fields(cls) if field.init]
    if form == BASE:
        fields.remove("base")
    taken = {key: value for key, value in options.items() if key in fields}
    left = {key: value for key, value in options.items() if key not in fields}
    known = [*outer, *fields]
    if form == BASE:
        taken["base"] = _build(registry, whole, rest, left, known)
    for key in left if not form else ():
        hint = did_you_mean(key, known, f"it has {', '.join(known)}")
        raise UserError(f"{registry.kind} {whole.name!r} has no option {key!r}: {hint}")
    return _make(registry, whole, cls, taken)


def _make(registry: Registry, whole: Component, cls: type, values: dict[str, Any]) -> Any:
    """Create an object of a dataclass from values that are checked. Raises UserError."""
    try:
        read = {field.name: _reader(str(field.type)) for field in dataclasses.fields(cls)}
        values_read = {key: read[key](value) for key, value in values.items()}
        configured: Any = TypeAdapter(cls).validate_python(values_read)
    except ValidationError as error:
        detail = error.errors()[0]
        wrong = first_line(error)
        if detail["type"] == "missing":
            wrong = f"give {detail['loc'][0]}=..."
        elif len(detail["loc"]) > 1 and detail["loc"][0] in values:
            wrong = f"{detail['loc'][0]}: write numbers with commas between them, as in 0,255"
        raise UserError(f"{registry.kind} {whole.label!r}: {wrong}") from error
    except PydanticUserError as error:
        raise UserError(
            f"{registry.kind} {whole.name!r} has fields of types that cannot be checked: give it "
            "the __pydantic_config__ of attacks.Wrapper"
        ) from error
    for key, value in values.items():
        # Pydantic would take an option without its number, as in "pgd/steps", as 1.
        if isinstance(value, bool) and getattr(configured, key) is not value:
            raise UserError(f"{registry.kind} {whole.label!r}: give {key} a value: {key}=...")
    return configured


def _reader(kind: str) -> Callable[[Any], Any]:
    """What makes the value of an option of a type, which is given as text."""
    return _several if "tuple" in kind else _mapping if "Mapping" in kind else _number


def _text(value: Any) -> str:
    """The value of an option as text in a label."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def first_line(error: ValidationError, known: Collection[str] = ()) -> str:
    """The first error that pydantic found, in one line; an unknown setting comes before all else,
    since it may be why another is missing. `known` are the settings that there are."""
    details = error.errors()
    unknown = (detail for detail in details if detail["type"] == "extra_forbidden")
    detail = next(unknown, details[0])
    where = ".".join(str(step) for step in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        flag = {"defenses": "defense", "attacks": "attack"}.get(where, where)
        return f"give {where}, in the spec or as --{flag}"
    if detail["type"] == "extra_forbidden":
        known = known if len(detail["loc"]) == 1 else ()
        otherwise = f"use {', '.join(known)}" if known else "leave it out"
        return f"unknown setting {where!r}: {did_you_mean(where, known, otherwise)}"
    return f"{where}: {message}" if where else message
