"""What a run is: the spec that a user writes as YAML or as flags, and that its folder keeps."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from attacks.messages import one_line
from attacks.threat import Norm, ThreatModel
from benchmark.errors import UserError
from benchmark.spec.components import Component, first_line

Mode = Literal["table", "cascade"]
# A split of a data set.
Part = Literal["train", "test"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "float64"]
Labels = Literal["data", "predictions"]


def _number(value: Any) -> Any:
    """Budgets are often written as fractions: 8/255."""
    if isinstance(value, str):
        try:
            top, slash, bottom = value.partition("/")
            number = float(top) / float(bottom) if slash else float(top)
        except (ValueError, ZeroDivisionError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{value!r} is not a number or a fraction such as 8/255")
        return number
    return value


class RunSpec(BaseModel):
    """All that determines a run's numbers; validated here and nowhere else.

    split    which images are attacked; models are trained on the train split in any case.
    labels   "predictions": what counts is not the label of the data but the class that the model
             gives the clean image (Ding et al. 2019, section 3.2, "robustness wrt predictions").
    bounded  whether perturbed images must stay in [0, 1]; training is bounded in any case.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "digits"
    samples: Annotated[int, Field(gt=0)] | None = None
    split: Part = "test"
    labels: Labels = "data"
    norm: Norm = "l2"
    eps: Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
    bounded: bool = True
    defenses: Annotated[list[Component], Field(min_length=1)]
    attacks: list[Component] = []
    suite: str | None = None
    mode: Mode = "table"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Device = "auto"
    precision: Precision = "float32"
    block: Annotated[int, Field(gt=0)] = 256
    # Absolute, so that the saved spec finds them from everywhere.
    plugins: list[Annotated[Path, AfterValidator(Path.absolute)]] = []

    @field_validator("defenses", "attacks")
    @classmethod
    def _find_from_everywhere(cls, components: list[Component]) -> list[Component]:
        return [component.absolute() for component in components]

    @model_validator(mode="after")
    def _check(self) -> "RunSpec":
        if not self.attacks and self.suite is None:
            raise ValueError("name attacks or a suite")
        for kind, parts in (("defense", self.defenses), ("attack", self.attacks)):
            labels = [part.label for part in parts]
            for label in labels:
                if labels.count(label) > 1:
                    raise ValueError(f"{kind} {label!r} is named twice")
        return self

    @property
    def threat(self) -> ThreatModel:
        """What the attacks may do."""
        if self.bounded:
            return self.training_threat
        # The smallest box that stops no perturbation of an image in [0, 1].
        return ThreatModel(self.norm, self.eps, -self.eps, 1 + self.eps)

    @property
    def training_threat(self) -> ThreatModel:
        """What defenses train against."""
        return ThreatModel(self.norm, self.eps)


def make_threat(norm: Norm, eps: float | str) -> ThreatModel:
    """A threat from what a user wrote. Raises UserError.

    >>> make_threat("l2", "1/4")
    ThreatModel(norm='l2', eps=0.25, lower=0.0, upper=1.0)
    """
    try:
        return ThreatModel(norm, float(_number(eps)))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def read_budgets(norm: Norm, text: str) -> dict[float, str]:
    """Several eps as a user wrote them, "0.5,1" or "4/255,8/255": from the smallest up, each as a
    number and as it was written. Raises UserError.

    >>> read_budgets("linf", "1/2,1/4")
    {0.25: '1/4', 0.5: '1/2'}
    """
    written = {make_threat(norm, one.strip()).eps: one.strip() for one in text.split(",")}
    return dict(sorted(written.items()))


def make_spec(values: dict[str, Any]) -> RunSpec:
    """A spec from plain values. Raises UserError, in one line, where they are not valid.

    >>> spec = make_spec({"eps": "1/4", "defenses": ["vanilla"], "suite": "quick"})
    >>> spec.data, spec.norm, spec.eps, spec.mode
    ('digits', 'l2', 0.25, 'table')
    >>> make_spec({"eps": 0.5, "defenses": ["vanilla"]})
    Traceback (most recent call last):
    benchmark.errors.UserError: the spec is not valid: name attacks or a suite
    """
    try:
        return RunSpec.model_validate(values)
    except ValidationError as error:
        raise UserError(f"the spec is not valid: {first_line(error)}") from error


def read_values(path: Path) -> dict[str, Any]:
    """A spec file's values, not yet validated. Raises UserError where it is missing or no YAML."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the spec {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of settings such as 'data: mnist'")
    return values
