"""The record of a submission, record.json, whose schema is published as record.schema.json."""

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
from benchmark.spec.components import BEST, SEARCH
from defenses.training.saved import CARD

RECORD, SPEC, EVIDENCE, CARD_TEXT = "record.json", "spec.yaml", "evidence.npz", "README.md"
# The files that each submission must list. All others that it lists are code of its own.
NEEDED = (SPEC, CARD, EVIDENCE)
SCHEMA = "record.schema.json"
# The format of records and cards. Format 1 named attacks and recipes by where their code was, and
# data by the attacked images alone; `bestattack leaderboard migrate` turns it into the present one.
FORMAT: Final = 2

# The local Lipschitz bound that the paper of fractal classifiers calls safe to assume (table 6).
ASSUMED = 0.7

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Labels and texts are shown in tables and on the page, so they can hold no markup. Files lie in the
# submission's folder itself, so their names can hold no slash.
Label = Annotated[str, Field(pattern=r"^[\w .:+=/,()%@-]+$", max_length=120)]
Text = Annotated[str, Field(pattern=r"^[^\[\]<>|\\`*\n]*$", max_length=600)]
FileName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$", max_length=120)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    # A record may have no field that the schema does not name.
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Strict):
    """The images and labels: the name of the data set, and a hash of its split."""

    name: str
    sha256: Sha256


class Threat(_Strict):
    """The threat; the fields are those of `attacks.ThreatModel`."""

    norm: Norm
    eps: Annotated[Finite, Field(gt=0)]
    lower: Finite
    upper: Finite


class Weights(_Strict):
    """The file of weights.

    sha256  the SHA-256 of the file.
    at      an address, or a path from the submission's folder; None if the submission holds it.
    """

    sha256: Sha256
    at: str | None = None


class Note(BaseModel):
    """What a run noted when a column was done.

    identity  all that determines the result.

    Further entries are the environment, and the facts about the attack that flags depend on.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    identity: dict[str, Any]


class Measured(_Strict):
    """How one column came about.

    key           a hash of `note.identity`.
    note          what the run noted.
    after         the labels of the attacks before it in its series.
    inapplicable  why the attack does not apply to the model; None if it does.
    outside       for how many samples the attack returned a point outside the ball or the box.
    seconds       how long it took.
    """

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    note: Note
    after: list[Label] = []
    inapplicable: str | None = None
    outside: Count = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0


class Work(_Strict):
    """What an attack did: samples attacked and broken, and mean passes per attacked sample."""

    attacked: Count
    broken: Count
    forwards: Annotated[float, Field(ge=0)]
    backwards: Annotated[float, Field(ge=0)]


class Assumed(_Strict):
    """What would be certified under an assumed local Lipschitz bound.

    bound      no output is assumed to change by more than this times the distance.
    certified  the share of samples that would be certified.
    broken     how many of these samples an attack breaks nevertheless.
    """

    bound: float
    certified: Share
    broken: Count


class Numbers(_Strict):
    """The numbers of a row. Accuracies are shares of all samples.

    natural         natural accuracy.
    per_attack      robust accuracy under each attack; None if the attack does not apply.
    best_attack     robust accuracy in the worst case over all attacks, sample by sample.
    interval        the confidence interval of best_attack.
    certified       certified accuracy; None if the model has no certificate.
    assumed         what would be certified under an assumed bound; None if it cannot be told.
    contradictions  the places of the samples that attacks misclassify within the certified radius.
    work            what each attack did.
    """

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

    format   the version of this format.
    task     the task that the row belongs to.
    row      the name of the row.
    about    for readers: what was scaled down, or differs from the paper.
    data     the images and labels that the model was measured on; samples, how many.
    threat   what the attacks had to stay within.
    mode     every attack was carried out on every correctly classified sample.
    block    how many samples were attacked at once.
    flags    codes of signs that a number is not to be trusted.
    notes    remarks, such as on attacks that were left out.
    cells    one for each column: natural accuracy, the certificate and each attack, in the order of
             the evidence file.
    numbers  the numbers that the table shows.
    weights  the file of weights.
    files    the SHA-256 of each other file of the submission.
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
    """The name of a row's folder: the row's name in lower case, with "-" for most signs.

    Raises UserError where the name of the row has no letter and no digit.
    """
    signs = (sign if sign.isascii() and sign.isalnum() else "-" for sign in row.lower())
    name = "".join(signs).strip("-")
    if not name:
        raise UserError(f"the row {row!r} needs a letter or a digit in its name")
    return name


def schema() -> str:
    """The JSON schema of records, as it is published."""
    return json.dumps(Record.model_json_schema(), indent=1) + "\n"


def read_record(folder: Path) -> Record:
    """Read the record of a submission. Raises UserError where it is missing or not valid."""
    path = folder / RECORD
    try:
        text = path.read_text(encoding="utf-8")
        if _is_of_format_1(text):
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


def _is_of_format_1(text: str) -> bool:
    try:
        record = json.loads(text)
    except ValueError:  # that it is no JSON is told where it is validated
        return False
    return isinstance(record, dict) and record.get("format") == 1


def first_error(error: ValidationError) -> str:
    """The first error that pydantic found in a record, in one line."""
    detail = error.errors()[0]
    where = ".".join(map(str, detail["loc"]))
    return f"{where or 'it'}: {detail['msg']}"


def numbers_of(report: Report) -> Numbers:
    """The numbers of a report that has best-attack accuracy."""
    best = report.accuracy(BEST)
    assert best is not None
    per_attack = {
        label: None if np.isnan(accuracy) else accuracy
        for label, accuracy in report.per_attack.items()
    }
    return Numbers(
        natural=report.natural,
        per_attack=per_attack,
        best_attack=best.value,
        interval=best.interval,
        certified=None if np.isnan(report.certified) else report.certified,
        assumed=_assumed(report),
        contradictions=report.contradictions.tolist(),
        # The search for proofs counts no passes.
        work={label: _work(report, label) for label in report.measured if label != SEARCH},
    )


def _work(report: Report, label: str) -> Work:
    """What an attack did; zeros rather than means over nothing if it attacked no sample."""
    figures = work(report.frames[label])
    if not figures["attacked"]:
        return Work(attacked=0, broken=0, forwards=0, backwards=0)
    return Work.model_validate({name: figures[name] for name in Work.model_fields})


def _assumed(report: Report) -> Assumed | None:
    """What would be certified under the bound ASSUMED, of an L2 report with certified radii."""
    certified = report.certified_within(ASSUMED * report.threat.eps, itself=True)
    robust = report.robust_to(BEST)
    if certified is None or robust is None or report.threat.norm != "l2":
        return None
    broken = int((certified & ~robust).sum())
    return Assumed(bound=ASSUMED, certified=certified.mean(), broken=broken)
