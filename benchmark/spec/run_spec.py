"""The spec of a run, which determines its numbers.

A user writes it as YAML or as flags of the command line, and the run's folder keeps it.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from attacks.messages import one_line
from attacks.threat import Norm, ThreatModel
from benchmark.columns import eps_text
from benchmark.environment import Device, check_device
from benchmark.errors import UserError
from benchmark.judge.subject import DRAWS, EXPECTATION, Precision, Terms
from benchmark.spec.components import Component, first_line
from benchmark.spec.learned_suite import LearnedSuite
from benchmark.spec.proof_setting import PROVABLE, Proofs, not_provable, unless_none
from benchmark.spec.source_names import with_absolute_paths
from benchmark.spec.suites import DEFAULT_SUITE

Mode = Literal["table", "cascade"]
# The splits of a data set.
Part = Literal["train", "test"]
Choose = Literal["first", "random", "stratified"]
Labels = Literal["data", "predictions"]

# What is put behind the name of a model in tables, where its rejecting a perturbed image does not
# count as wrong.
MAY_REJECT = ", may reject"


def _number(value: Any) -> Any:
    """A number from what a user wrote, which may be a fraction, as budgets often are: 8/255."""
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


def _lower(value: Any) -> Any:
    """The name of a norm as it is listed, from L2 or Linf."""
    return value.lower() if isinstance(value, str) else value


ANorm = Annotated[Norm, BeforeValidator(_lower)]
Eps = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]


_OF_THREAT = {"norm", "eps"}

Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _several(seeds: Any) -> Any:
    """Several seeds that a user wrote as text, such as "0,1,2"."""
    return [seed.strip() for seed in seeds.split(",")] if isinstance(seeds, str) else seeds


Seeds = Annotated[list[Seed], BeforeValidator(_several)]


def check_seeds(seeds: Seeds) -> Seeds:
    """Return seeds, of which there must be two at least. Raises ValueError."""
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise ValueError(f"{seed} is named twice")
    if len(seeds) < 2:
        raise ValueError("name two at least, such as 0,1,2, or give seed")
    return seeds


def _parts(threat: Any) -> Any:
    """The norm and the eps of a threat that a user wrote as text, such as "linf:8/255"."""
    if isinstance(threat, str) and ":" in threat:
        norm, _, eps = threat.partition(":")
        return {"norm": norm.strip(), "eps": eps}
    return threat


class Threat(BaseModel):
    """One of several threats: "NORM:EPS", or a mapping with `norm` and `eps` in it.

    >>> Threat.model_validate("linf:1/4")
    Threat(norm='linf', eps=0.25)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    norm: ANorm
    eps: Eps

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        value = _parts(value)
        if not isinstance(value, dict) or value.keys() != _OF_THREAT:
            raise ValueError(
                f"{value!r} is no threat: write it as l2:0.5 or {{norm: linf, eps: 8/255}}"
            )
        return value


class RunSpec(BaseModel):
    """All that determines a run's numbers, validated.

    data       the name of the data set, with variants: "mnist", "mnist/pair=4-9". The paths of data
               in files, as in "npz=images.npz", become absolute.
    samples    how many images of the split to attack; all by default.
    choose     which, where that is not all: the first, random ones, or of each class the share that
               it has in the split. By default the first of the data sets that come with this
               program, whose order is mixed, and "stratified" of others, which may be sorted.
    split      which images to attack. Models are always trained on the train split.
    labels     "predictions" takes as the label of an image not that of the data but the class that
               the model gives the clean image (Ding et al. 2019, section 3.2, "robustness wrt
               predictions").
    norm, eps  the threat: the norm, and the radius for images in [0, 1].
    threats    several threats, in place of norm and eps. All attacks are carried out under each of
               them, on the same models: defenses are trained once, against the first threat, unless
               they name a norm or eps of their own. `norm` and `eps` are then those of the first.
    bounded    whether perturbed images must stay in [0, 1]. In training, they always must.
    defenses   the models to train, or saved ones.
    attacks    the attacks on each of them, besides those of the suite.
    suite      the name of a set of attacks, or one that was learned from a run; "strong" where
               neither it nor attacks are given.
    certify    how bounds prove what no attack breaks and the defense does not certify itself, as
               `Proofs` has it; by default, or where it is "none", they do not.
    mode       "table" carries out every attack on every correctly classified sample. "cascade"
               carries out each attack only on what cheaper ones left; those of a learned suite, for
               which it is the default, come in the order that was learned.
    seed       of training, of all noise of attacks, and of the choice of samples.
    seeds      several, two at least, in place of seed: all defenses are trained with each of them,
               and attacked with the same one. `seed` is then the first.
    device     as torch names it, such as "cuda:1". "auto" takes CUDA where there is a CUDA device.
    precision  of the models while they are attacked: "model" leaves them as they are.
    draws, expectation  of randomised models: how many fresh draws judge a point, and how many
               attacks take the mean of in each step.
    block      how many samples to attack at once.
    plugins    local files that add attacks, defenses or data sets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Annotated[str, AfterValidator(with_absolute_paths)] = "digits"
    samples: Annotated[int, Field(gt=0)] | None = None
    choose: Choose | None = None
    split: Part = "test"
    labels: Labels = "data"
    # Before norm and eps, so that a mistake in them is told as one in the threats.
    threats: list[Threat] = []
    norm: ANorm = "l2"
    eps: Eps
    bounded: bool = True
    defenses: Annotated[list[Component], Field(min_length=1)]
    attacks: list[Component] = []
    suite: str | LearnedSuite | None = None
    certify: Annotated[Proofs | None, BeforeValidator(unless_none)] = None
    mode: Mode = "table"
    # Before seed, so that a mistake in them is told as one in the seeds.
    seeds: Annotated[Seeds, AfterValidator(check_seeds)] = []
    seed: Seed = 0
    device: Annotated[Device, AfterValidator(check_device)] = "auto"
    precision: Precision = "model"
    draws: Annotated[int, Field(gt=0)] = DRAWS
    expectation: Annotated[int, Field(gt=1)] = EXPECTATION
    block: Annotated[int, Field(gt=0)] = 256
    # The paths are absolute, so that the spec in a run's folder is valid in any working directory.
    plugins: list[Annotated[Path, AfterValidator(Path.absolute)]] = []

    @field_validator("defenses", "attacks")
    @classmethod
    def _make_paths_absolute(cls, components: list[Component]) -> list[Component]:
        return [component.absolute() for component in components]

    @field_validator("suite", mode="before")
    @classmethod
    def _read_suite(cls, suite: Any) -> Any:
        """A suite that was learned, where the spec holds one, or the name of one."""
        if suite is None or isinstance(suite, str | LearnedSuite):
            return suite
        try:
            return LearnedSuite.model_validate(suite)
        except ValidationError as error:
            wrong = first_line(error, LearnedSuite.model_fields)
            raise ValueError(f"neither the name of a suite nor a learned one: {wrong}") from None

    @model_validator(mode="before")
    @classmethod
    def _choose_suite(cls, values: Any) -> Any:
        """The default suite, where neither attacks nor a suite are named."""
        if isinstance(values, dict) and not values.get("attacks") and not values.get("suite"):
            return values | {"suite": DEFAULT_SUITE}
        return values

    @model_validator(mode="before")
    @classmethod
    def _cascade_what_was_learned(cls, values: Any) -> Any:
        """The mode where a suite was learned, which is an order, and none is named."""
        if isinstance(values, dict) and isinstance(values.get("suite"), dict | LearnedSuite):
            return {"mode": "cascade"} | values
        return values

    @model_validator(mode="before")
    @classmethod
    def _take_first_threat(cls, values: Any) -> Any:
        """The norm and the eps of the first threat, where several are given in their place."""
        if not isinstance(values, dict) or "threats" not in values:
            return values
        if "norm" in values or "eps" in values:
            raise ValueError("give either threats, or norm and eps")
        threats = values["threats"]
        if isinstance(threats, list) and not threats:
            raise ValueError("threats are none: name at least one, such as l2:0.5")
        first = _parts(threats[0]) if isinstance(threats, list) else None
        # What is no threat is told where it is validated.
        return values | (first if isinstance(first, dict) and first.keys() == _OF_THREAT else {})

    @model_validator(mode="before")
    @classmethod
    def _take_first_seed(cls, values: Any) -> Any:
        """The first seed, where several are given in its place."""
        if not isinstance(values, dict) or "seeds" not in values:
            return values
        if "seed" in values:
            raise ValueError("give either seeds or seed")
        if isinstance(values.get("threats"), list) and len(values["threats"]) > 1:
            raise ValueError("seeds are for one threat: make a run with them under each threat")
        seeds = _several(values["seeds"])
        # What is no seed is told where it is validated.
        return values | ({"seed": seeds[0]} if isinstance(seeds, list) and seeds else {})

    @field_validator("threats")
    @classmethod
    def _check_threats(cls, threats: list[Threat]) -> list[Threat]:
        """Refuse threats that occur twice, as far as tables can tell. One alone is as norm and eps
        are, and leaves no trace."""
        names = [f"{threat.norm}:{threat.eps:g}" for threat in threats]
        for name, threat in zip(names, threats, strict=True):
            if names.count(name) > 1:
                raise ValueError(f"{threat.norm}:{eps_text(threat.eps)} is named twice")
        return threats if len(threats) > 1 else []

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The values that it is made of again: either threats, or norm and eps, and either seeds or
        seed."""
        left_out = {"norm", "eps"} if self.threats else {"threats"}
        left_out |= {"seed"} if self.seeds else {"seeds"}
        left_out |= set() if self.certify else {"certify"}
        return {key: value for key, value in dump(self).items() if key not in left_out}

    @model_validator(mode="after")
    def _check(self) -> "RunSpec":
        """Refuse labels that occur twice, or are kept for the rows of models that may reject, and
        proofs under norms that they are not for."""
        if self.certify and not any(view.norm in PROVABLE for view in self.views):
            raise ValueError(f"certify: {not_provable(self.norm)}")
        for component in self.defenses:
            if component.label.endswith(MAY_REJECT):
                raise ValueError(f"defense {component.label!r}: no label may end in {MAY_REJECT!r}")
        for kind, components in (("defense", self.defenses), ("attack", self.attacks)):
            labels = [component.label for component in components]
            for label in labels:
                if labels.count(label) > 1:
                    raise ValueError(f"{kind} {label!r} is named twice")
        return self

    def written(self) -> dict[str, Any]:
        """The values as a user would write them, a radius that is a fraction as such."""
        plain = self.model_dump(mode="json")
        for holder in (plain, *plain.get("threats", [])):
            if "eps" in holder and "/" in (text := eps_text(holder["eps"])):
                holder["eps"] = text
        return plain

    @property
    def views(self) -> list["RunSpec"]:
        """The spec of the same run under each threat alone, or with each seed alone, in order."""
        changes: list[dict[str, Any]] = [
            *(threat.model_dump() | {"threats": []} for threat in self.threats),
            *({"seed": seed, "seeds": []} for seed in self.seeds),
        ]
        return [self.model_copy(update=changed) for changed in changes] or [self]

    @property
    def place(self) -> str:
        """What folders call its threats."""
        return "-".join(dict.fromkeys(f"{view.norm}-{view.eps:g}" for view in self.views))

    @property
    def threat(self) -> ThreatModel:
        """The threat that attacks have to stay within: the first one, where there are several."""
        if self.bounded:
            return self.training_threat
        # This is the smallest box that holds all perturbations of images in [0, 1].
        return ThreatModel(self.norm, self.eps, -self.eps, 1 + self.eps)

    @property
    def terms(self) -> Terms:
        """The terms on which models are judged."""
        return Terms(self.precision, draws=self.draws, expectation=self.expectation, seed=self.seed)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which studies look at models."""
        dtype: torch.dtype = getattr(
            torch, "float32" if self.precision == "model" else self.precision
        )
        return dtype

    @property
    def training_threat(self) -> ThreatModel:
        """The threat that defenses are trained against."""
        return ThreatModel(self.norm, self.eps)


def make_threat(norm: Norm, eps: float | str) -> ThreatModel:
    """The threat on images in [0, 1] with a radius as a user wrote it. Raises UserError.

    >>> make_threat("l2", "1/4")
    ThreatModel(norm='l2', eps=0.25, lower=0.0, upper=1.0)
    """
    try:
        return ThreatModel(norm, float(_number(eps)))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def read_budgets(norm: Norm, text: str) -> dict[float, str]:
    """Several radii from one text, such as "0.5,1" or "4/255,8/255".

    Returns each radius as a number with the text that the user wrote for it, the smallest first.
    Raises UserError.

    >>> read_budgets("linf", "1/2,1/4")
    {0.25: '1/4', 0.5: '1/2'}
    """
    written = {make_threat(norm, radius).eps: radius.strip() for radius in text.split(",")}
    return dict(sorted(written.items()))


def make_spec(values: dict[str, Any]) -> RunSpec:
    """Validate the values of a spec. Raises UserError, in one line, where they are not valid.

    >>> spec = make_spec({"eps": "1/4", "defenses": ["vanilla"], "suite": "quick"})
    >>> spec.data, spec.norm, spec.eps, spec.mode
    ('digits', 'l2', 0.25, 'table')
    >>> make_spec({"eps": 0.5, "defenses": []})
    Traceback (most recent call last):
    benchmark.errors.UserError: ...
    """
    try:
        return RunSpec.model_validate(values)
    except ValidationError as error:
        line = first_line(error, RunSpec.model_fields)
        raise UserError(f"the spec is not valid: {line}") from error


def read_values(path: Path) -> dict[str, Any]:
    """Read the values in a spec file, without validating them.

    Raises UserError where the file is missing, or is not YAML with a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the spec {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of settings such as 'data: mnist'")
    return values
