"""How bounds are to prove what no attack breaks: the setting `certify` of runs."""

from typing import Annotated, Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

from benchmark.errors import UserError, did_you_mean
from benchmark.spec.components import SEARCH, Component, first_line
from defenses.verification import BOUNDS_VERSION, Method

# How a user writes `Proofs`, and which norms they are for.
_WRITE = "write crown, or branch/seconds=10"
PROVABLE = ("linf", "l2")


def unless_none(value: Any) -> Any:
    """Proofs as a user wrote them; those that are "none" are none."""
    return None if value == "none" else value


class Proofs(BaseModel):
    """How bounds are to prove that no perturbation breaks a sample: "crown", "branch/seconds=S", or
    a mapping with `method` and, for branch, `seconds` in it.

    method   "crown", by linear bounds alone, or "branch", by branch and bound after them.
    seconds  that an image may take beside linear bounds, roughly.

    >>> Proofs.model_validate("branch/seconds=30")
    Proofs(method='branch', seconds=30.0)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = "branch"
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str) and value:
            component = Component.model_validate(value)
            value = {"method": component.name} | component.options
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} says no method: {_WRITE}")
        method, known = value.get("method", "branch"), get_args(Method)
        if method not in known:
            hint = did_you_mean(str(method), known, _WRITE)
            raise ValueError(f"unknown method {method!r}: {hint}")
        if isinstance(value.get("seconds"), bool):
            raise ValueError(f"seconds has no value: {_WRITE}")
        for name in value.keys() - cls.model_fields.keys():
            raise ValueError(f"unknown option {name!r}: {did_you_mean(name, ['seconds'], _WRITE)}")
        return value

    @model_validator(mode="after")
    def _check(self) -> "Proofs":
        if self.method == "crown" and "seconds" in self.model_fields_set:
            raise ValueError("seconds are of branch: linear bounds take what they take")
        return self

    @model_serializer
    def options(self) -> dict[str, Any]:
        """The values that it is made of again: there is no time limit to linear bounds."""
        limit = {"seconds": self.seconds} if self.method == "branch" else {}
        return {"method": self.method, **limit}

    def identity(self) -> dict[str, Any]:
        """What determines which proofs are found, as an attack is identified."""
        return {"name": SEARCH, "version": BOUNDS_VERSION, "options": self.options()}

    @property
    def written(self) -> str:
        """As a user writes it."""
        return "crown" if self.method == "crown" else f"branch/seconds={self.seconds:g}"

    def __str__(self) -> str:
        if self.method == "crown":
            return "linear bounds (CROWN)"
        return f"linear bounds, and branch and bound within {self.seconds:g} s an image"


def not_provable(norm: str) -> str:
    """Why nothing is proven under a norm; empty where something can be."""
    return "" if norm in PROVABLE else f"bounds are for linf and l2, not {norm}"


def read_proofs(value: Any, norm: str) -> Proofs | None:
    """How bounds are to prove something under a norm, as a user wrote it; None where they are not
    to. Raises UserError."""
    value = unless_none(value)
    if value is None:
        return None
    if line := not_provable(norm):
        raise UserError(f"certify: {line}")
    try:
        return Proofs.model_validate(value)
    except ValidationError as error:
        line = first_line(error, Proofs.model_fields)
        raise UserError(f"certify is not valid: {line}") from error
