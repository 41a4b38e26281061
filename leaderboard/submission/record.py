"""What a submission says: record.json, whose schema is published as record.schema.json."""

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attacks.threat import Norm
from benchmark.errors import UserError
from benchmark.report.accuracy import work
from benchmark.report.flags import FLAGS
from benchmark.report.report import Report
from benchmark.spec.components import BEST
from defenses.training.saved import CARD

RECORD, SPEC, EVIDENCE, CARD_TEXT = "record.json", "spec.yaml", "evidence.npz", "README.md"
# What each submission lists; whatever else it lists is code of its own.
NEEDED = (SPEC, CARD, EVIDENCE)
SCHEMA = "record.schema.json"
# Of records and cards. Format 1 named attacks and recipes by where their code was, and data by the
# images that were attacked alone: `bestattack leaderboard migrate` brings those up.
FORMAT: Final = 2

# The local Lipschitz bound that the paper of fractal classifiers calls safe to assume (table 6).
ASSUMED = 0.7

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# What is shown in tables and on the page can hold no markup, and files lie in the folder itself.
Label = Annotated[str, Field(pattern=r"^[\w .:+=/,()%@-]+$", max_length=120)]
Text = Annotated[str, Field(pattern=r"^[^\[\]<>|\\`*\n]*$", max_length=600)]
FileName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$", max_length=120)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Strict):
    """The images and labels: the name of their set and a hash of all of them."""

    name: str
    sha256: Sha256


class Threat(_Strict):
    """As `attacks.ThreatModel`."""

    norm: Norm
    eps: Annotated[Finite, Field(gt=0)]
    lower: Finite
    upper: Finite


class Weights(_Strict):
    """The file of weights: in the submission, or `at` a path from its folder or an address."""

    sha256: Sha256
    at: str | None = None


class Note(BaseModel):
    """What a run noted when a column was done: `identity`, all that determines the result; the
    environment; and what flags need to know of the attack."""

    model_config = ConfigDict(extra="allow", frozen=True)

    identity: dict[str, Any]


class Measured(_Strict):
    """How one column came about.

    key           a hash of `note.identity`.
    after         the attacks before it in its series.
    inapplicable  why the attack does not apply to the model.
    outside       samples for which the attack left the ball or the box.
    """

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    note: Note
    after: list[Label] = []
    inapplicable: str | None = None
    outside: Count = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0


class Work(_Strict):
    """Of an attack: samples attacked and broken, and mean passes for each of those attacked."""

    attacked: Count
    broken: Count
    forwards: Annotated[float, Field(ge=0)]
    backwards: Annotated[float, Field(ge=0)]


class Assumed(_Strict):
    """What would be certified if no output changed by more than `bound` times the distance, and how
    many of these samples are broken nevertheless."""

    bound: float
    certified: Share
    broken: Count


class Numbers(_Strict):
    """The numbers of a row; shares are over all samples. None where there is none."""

    natural: Share
    per_attack: dict[Label, Share | None]
    best_attack: Share
    interval: tuple[Share, Share]
    certified: Share | None
    assumed: Assumed | None
    contradictions: list[Count]
    work: dict[Label, Work]


class Record(_Strict):
    """A row of the leaderboard.

    task, row  where it belongs, and its name there.
    about      what was scaled down or differs from the paper, for readers.
    block      samples attacked at once.
    cells      natural, the certificate and each attack, in the order of the evidence file.
    files      the SHA-256 of the other files of the submission.
    """

    format: Literal[2]
    task: str
    row: Label
    about: Text
    data: Data
    samples: Annotated[int, Field(gt=0)]
    threat: Threat
    mode: Literal["table"]
    block: Annotated[int, Field(gt=0)]
    flags: list[Literal[tuple(sorted(FLAGS))]]  # type: ignore[valid-type]
    notes: list[str]
    cells: dict[Label, Measured]
    numbers: Numbers
    weights: Weights
    files: dict[FileName, Sha256]


def slug(row: str) -> str:
    """The name of a row's folder. Raises UserError where nothing is left of its name."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in row.lower()).strip("-")
    if not kept:
        raise UserError(f"the row {row!r} needs a letter or a digit in its name")
    return kept


def schema() -> str:
    """The JSON schema of records, as it is published."""
    return json.dumps(Record.model_json_schema(), indent=1) + "\n"


def read_record(folder: Path) -> Record:
    """The record of a submission. Raises UserError where there is none, or it is not valid."""
    path = folder / RECORD
    try:
        text = path.read_text(encoding="utf-8")
        if '"format":1' in text[:40].replace(" ", "").replace("\n", ""):
            raise UserError(
                f"{path} is of format 1: `bestattack leaderboard migrate {folder}` brings it up to "
                f"{FORMAT}"
            )
        return Record.model_validate_json(text)
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no submission: it has no {RECORD}") from error
    except ValidationError as error:
        raise UserError(f"{path} is not valid: {first_error(error)}") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid: it cannot be read") from error


def first_error(error: ValidationError) -> str:
    """What pydantic found first in a record, in one line."""
    detail = error.errors()[0]
    where = ".".join(map(str, detail["loc"]))
    return f"{where or 'it'}: {detail['msg']}"


def numbers_of(report: Report) -> Numbers:
    """The numbers of a report that has best-attack accuracy."""
    best = report.accuracy(BEST)
    assert best is not None
    per_attack = {k: None if np.isnan(v) else v for k, v in report.per_attack.items()}
    return Numbers(
        natural=report.natural,
        per_attack=per_attack,
        best_attack=best.value,
        interval=best.interval,
        certified=None if np.isnan(report.certified) else report.certified,
        assumed=_assumed(report),
        contradictions=report.contradictions.tolist(),
        work={label: _work(report, label) for label in report.measured},
    )


def _work(report: Report, label: str) -> Work:
    done = work(report.frames[label])
    if not done["attacked"]:
        return Work(attacked=0, broken=0, forwards=0, backwards=0)
    return Work.model_validate({name: done[name] for name in Work.model_fields})


def _assumed(report: Report) -> Assumed | None:
    predicted = report.certified_within(ASSUMED * report.threat.eps)
    kept = report.robust_to(BEST)
    if predicted is None or kept is None or report.threat.norm != "l2":
        return None
    broken = int((predicted & ~kept).sum())
    return Assumed(bound=ASSUMED, certified=predicted.mean(), broken=broken)
