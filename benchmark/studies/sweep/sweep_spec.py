"""A study as a spec: a YAML file that names defenses, data, attacks, and what is varied."""

import itertools
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationError,
    field_validator,
    model_validator,
)

from benchmark.analysis.learned_order import spec_of
from benchmark.errors import UserError, did_you_mean
from benchmark.spec.components import (
    BEST,
    NATURAL,
    SAVED,
    Component,
    first_line,
    read_component,
)
from benchmark.spec.run_spec import RunSpec, Seeds, check_seeds, make_spec, read_values

Value = bool | int | float | str
Measure = Literal[
    "train", "predictions", "unbounded", "gap", "jacobian", "inter-class-distance", "log-volume"
]

# The value of the axis `variant` that changes nothing.
ORIGINAL = "original"
VARIANT = "variant"

_EXAMPLE = "over: {variant: [original, binarize]}"

# The axis that several seeds are.
SEED = "seed"

# The settings of a run that an axis can vary; all others are options of its defenses.
_OF_RUN = ("samples", "norm", "eps", SEED)

# The columns of records and tables, which no axis may be called.
_COLUMNS = {
    *("defense", "setting", "measure", "value", "low", "high", "images", "column", "text", "sd"),
    *(NATURAL, BEST, *get_args(Measure)),
}


class Reported(BaseModel):
    """What a paper says: where, and its numbers, each row by axes and defense, in the columns of
    the study's table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    rows: list[dict[str, Value]]


class SweepSpec(BaseModel):
    """A study: a run at each point of a grid.

    about     one line.
    over      the axes. Each is the name of a setting with a list of its values, or a name with a
              mapping from labels to several settings. Settings are variant (a part of the name of
              the data set, "original" for none), samples, norm, eps, seed, or an option of all
              defenses. The first axis is that of the picture.
    seeds     several, two at least, in place of the seed of a run: at each point of the grid, all
              defenses are trained with each of them, and attacked with the same one.
    measures  what is measured besides natural accuracy, attacks and best-attack.
    reported  what a paper says of it.
    run       all else: the settings of a run, with defenses and attacks; without attacks, natural
              accuracy alone is measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = ""
    over: dict[str, list[Value] | dict[Value, dict[str, Value]]]
    seeds: Annotated[Seeds, AfterValidator(check_seeds)] = []
    measures: list[Measure] = []
    reported: Reported | None = None
    run: dict[str, Any]

    @field_validator("over", mode="before")
    @classmethod
    def _is_grid(cls, over: Any) -> Any:
        if not isinstance(over, dict) or not over:
            raise ValueError(f"axes are needed, as in {_EXAMPLE}")
        for axis, values in over.items():
            if axis in _COLUMNS:
                raise ValueError(f"{axis!r} is a column of the table: name the axis otherwise")
            mapped = isinstance(values, dict) and all(
                isinstance(settings, dict) for settings in values.values()
            )
            listed = isinstance(values, list) and not any(
                value is None or isinstance(value, list | dict) for value in values
            )
            if not values or not (mapped or listed):
                raise ValueError(
                    f"the axis {axis!r} needs a list of values, or a mapping from labels to "
                    "settings, as in {half: {epochs: 5}, all: {epochs: 10}}"
                )
            labels = [_part(label) for label, _ in _settings(axis, values)]
            for label in labels:
                if labels.count(label) > 1:
                    raise ValueError(f"the axis {axis!r} has {label} twice")
        return over

    @field_validator("run")
    @classmethod
    def _no_setting(cls, run: dict[str, Any]) -> dict[str, Any]:
        for key in ("split", "labels", "bounded"):
            if key in run:
                raise ValueError(f"{key!r} is not for studies: use measures")
        if "threats" in run:
            raise ValueError("'threats' is not for studies: give norm and eps, or vary them")
        return run

    @model_validator(mode="after")
    def _has_one_way_to_seeds(self) -> "SweepSpec":
        settings = {
            key
            for axis, values in self.over.items()
            for _, changed in _settings(axis, values)
            for key in (axis, *changed)
        }
        if self.seeds and SEED in settings | set(self.run):
            raise ValueError("give either seeds or seed")
        return self

    @model_validator(mode="after")
    def _places_reported(self) -> "SweepSpec":
        places = set()
        for row in self.reported.rows if self.reported else []:
            for key in (*self.over, "defense"):
                if key not in row:
                    raise ValueError(f"a row of reported lacks {key!r}: {row}")
            place = tuple(str(row[key]) for key in (*self.over, "defense"))
            if place in places:
                raise ValueError(f"reported has two rows for {', '.join(place)}")
            places.add(place)
        return self

    @property
    def base(self) -> str:
        """The data set that variants are of."""
        return str(self.run.get("data", RunSpec.model_fields["data"].default))

    def flat(self) -> dict[str, Any]:
        """The values that `make_sweep` makes it of."""
        left_out = {"run"} if self.seeds else {"run", "seeds"}
        return self.model_dump(mode="json", exclude=left_out) | self.run

    @property
    def grid(self) -> dict[str, list[Value] | dict[Value, dict[str, Value]]]:
        """The axes of the runs: those of the study and, where there are several seeds, these."""
        return self.over | ({SEED: list[Value](self.seeds)} if self.seeds else {})

    def at(self, point: Sequence[str]) -> str:
        """The name of a point, in messages and as a folder."""
        pairs = zip(self.grid, point, strict=True)
        return ",".join(f"{_part(axis)}={_part(label)}" for axis, label in pairs)

    def points(self) -> dict[tuple[str, ...], RunSpec]:
        """The run at each point and with each seed, by the labels of its values along the axes of
        `grid`, in order. Raises UserError where one of them is not valid."""
        axes = [_settings(axis, values) for axis, values in self.grid.items()]
        return {
            tuple(label for label, _ in point): self._spec([settings for _, settings in point])
            for point in itertools.product(*axes)
        }

    def _spec(self, changes: list[Mapping[str, Value]]) -> RunSpec:
        """The run with some settings changed. Raises UserError where they are not valid."""
        values = ({} if self.run.get("attacks") else {"suite": "none"}) | self.run
        given = values.get("defenses")
        if not isinstance(given, list):
            return make_spec(values)  # which refuses them
        defenses = [read_component(defense, "a defense") for defense in given]
        for key, value in (item for change in changes for item in change.items()):
            if key == VARIANT:
                data = values.get("data", self.base)
                values["data"] = data if value == ORIGINAL else f"{data}/{value}"
            elif key in _OF_RUN:
                values[key] = value
            else:
                defenses = [_with_option(defense, key, value) for defense in defenses]
        return spec_of(values | {"defenses": defenses})


def _with_option(defense: Component, key: str, value: Value) -> Component:
    """A defense with an option that an axis sets, under its old label. Raises UserError where it
    cannot be set."""
    if defense.name.startswith(SAVED):
        raise UserError(f"{defense.label} is a saved model: {key} cannot vary")
    if key in defense.options:
        raise UserError(f"{key} is of an axis and of {defense.label}: say it once")
    options = defense.options | {key: value}
    return defense.model_copy(update={"options": options, "given_label": defense.label})


def _part(label: str) -> str:
    """A label as a part of a folder's name."""
    return label.replace("/", "+")


def _settings(
    axis: str, values: list[Value] | dict[Value, dict[str, Value]]
) -> list[tuple[str, dict[str, Value]]]:
    if isinstance(values, dict):
        return [(str(label), settings) for label, settings in values.items()]
    return [(str(value), {axis: value}) for value in values]


def read_sweep(name: str, reduced: bool, seeds: str | None = None) -> SweepSpec:
    """The study in a YAML file, or the ready one of that name; where `reduced`, with what the block
    "reduced" of the file changes, and with several seeds, such as "0,1,2", where these are given.
    Raises UserError, in one line, where there is no such study or it is not valid."""
    path = Path(name)
    if not path.is_file():
        ready = ready_made()
        if name not in ready:
            hint = did_you_mean(name, ready, f"ready ones are {', '.join(ready)}")
            raise UserError(f"there is no file and no ready study {name!r}: {hint}")
        path = ready[name]
    values = read_values(path)
    changes = values.pop("reduced", None)
    if reduced and not isinstance(changes, dict):
        raise UserError(f"{name} has no reduced size")
    values |= changes if reduced else {}
    if seeds is not None:
        values = {key: value for key, value in values.items() if key != SEED} | {"seeds": seeds}
    spec = make_sweep(values)
    if reduced and spec.reported and "reported" not in changes:
        source = f"{spec.reported.source}, whose networks and training are those of full size"
        spec = spec.model_copy(
            update={"reported": spec.reported.model_copy(update={"source": source})}
        )
    return spec


def make_sweep(values: dict[str, Any]) -> SweepSpec:
    """A study from plain values. Raises UserError, in one line, where they are not valid."""
    if "over" not in values:
        raise UserError(f"the study has no axes: give over, as in '{_EXAMPLE}'")
    fields = SweepSpec.model_fields.keys() - {"run"}
    of_study = {key: value for key, value in values.items() if key in fields}
    of_run = {key: value for key, value in values.items() if key not in of_study}
    try:
        return SweepSpec.model_validate({"run": of_run} | of_study)
    except ValidationError as error:
        raise UserError(f"the study is not valid: {first_line(error)}") from error


def ready_made() -> dict[str, Path]:
    """The studies that come with the program, by name."""
    folder = Path(str(resources.files("benchmark.studies"))) / "specs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def describe_studies() -> dict[str, str]:
    """What each ready study is about, by name."""
    return {name: read_sweep(str(path), False).about for name, path in ready_made().items()}
