"""A submission that was tampered with is refused, by one line that names what does not hold."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load, save

from defenses.training.saved import CARD, WEIGHTS
from leaderboard.board import check
from leaderboard.submission.record import CARD_TEXT, EVIDENCE, RECORD, SPEC
from tests.leaderboard.conftest import (
    Small,
    change_evidence,
    change_record,
    list_again,
    refusal,
)

Spoil = Callable[[Path], object]

# Places of the cells in the evidence of L2NNN and NBR.
NATURAL, CERTIFIED, PGD, CW = range(4)


def _number(*path: str, value: Any) -> Spoil:
    def change(record: dict[str, Any]) -> None:
        *outer, last = path
        for key in outer:
            record = record[key]
        record[last] = value

    return lambda folder: change_record(folder, change)


def _array(name: str, change: Callable[[np.ndarray], object]) -> Spoil:
    return lambda folder: change_evidence(folder, lambda arrays: change(arrays[name]))


def _flip_byte(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return spoil


def _change_broken(folder: Path, change: Callable[[np.ndarray], object]) -> None:
    """Change which samples an attack is said to have broken, with examples that fit in number."""

    def apply(arrays: dict[str, np.ndarray]) -> None:
        count = len(arrays[f"{PGD}/index"])
        broken = np.unpackbits(arrays[f"{PGD}/broken"], count=count).astype(bool)
        before = np.flatnonzero(broken)
        change(broken)
        # The example of each, or that of some other sample.
        source = np.searchsorted(before, np.flatnonzero(broken)).clip(max=len(before) - 1)
        for name in ("steps", "low", "high"):
            arrays[f"{PGD}/{name}"] = arrays[f"{PGD}/{name}"][source]
        arrays[f"{PGD}/broken"] = np.packbits(broken)

    change_evidence(folder, apply)


def _one_less(broken: np.ndarray) -> None:
    broken[np.flatnonzero(broken)[-1]] = False


def _one_more(broken: np.ndarray) -> None:
    broken[np.flatnonzero(~broken)[-1]] = True


def _beyond(arrays: dict[str, np.ndarray]) -> None:
    """Twice the perturbation, which breaks what the half broke, further out than eps."""
    steps = arrays[f"{CW}/steps"]
    arrays[f"{CW}/steps"] = np.where(steps > 0, steps - 1, steps).astype(np.uint8)


def _other_class(arrays: dict[str, np.ndarray]) -> None:
    predicted = arrays[f"{CW}/predicted"]
    labels = arrays[f"{NATURAL}/label"][arrays[f"{CW}/index"]]
    wrong = predicted != labels
    predicted[wrong] = (labels[wrong] + 1) % 10


def _other_weights(folder: Path) -> None:
    """Other weights, with hashes that fit."""
    weights = load((folder / WEIGHTS).read_bytes())
    content = save({name: np.asarray(-value) for name, value in weights.items()})
    (folder / WEIGHTS).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    card = json.loads((folder / CARD).read_text()) | {"sha256": digest}
    (folder / CARD).write_text(json.dumps(card))
    list_again(folder, CARD)
    change_record(folder, lambda record: record["weights"].update(sha256=digest))


def _other_card(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text()) | {"sha256": "0" * 64}
    (folder / CARD).write_text(json.dumps(card))
    list_again(folder, CARD)


def _weaker(record: dict[str, Any]) -> None:
    record["cells"]["PGD"]["note"]["identity"]["attack"]["options"]["steps"] = "1"


def _inapplicable(record: dict[str, Any]) -> None:
    record["cells"]["CW"]["inapplicable"] = "it has no use for it"


def _drop_sample(arrays: dict[str, np.ndarray]) -> None:
    """The last sample that PGD did not break, from all of its records."""
    count = len(arrays[f"{PGD}/index"])
    broken = np.unpackbits(arrays[f"{PGD}/broken"], count=count).astype(bool)
    place = np.flatnonzero(~broken)[-1]
    for name in ("index", "predicted", "forwards", "backwards"):
        arrays[f"{PGD}/{name}"] = np.delete(arrays[f"{PGD}/{name}"], place)
    arrays[f"{PGD}/broken"] = np.packbits(np.delete(broken, place))


def _after(record: dict[str, Any]) -> None:
    record["cells"]["CW"]["after"] = ["PGD"]


def _twice(index: np.ndarray) -> None:
    index[1] = index[0]


def _spec(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        spec = yaml.safe_load((folder / SPEC).read_text()) | changes
        (folder / SPEC).write_text(yaml.safe_dump(spec))
        list_again(folder, SPEC)

    return spoil


def _card(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        card = json.loads((folder / CARD).read_text()) | changes
        (folder / CARD).write_text(json.dumps(card))
        list_again(folder, CARD)

    return spoil


def _cell(record: dict[str, Any], label: str) -> None:
    record["cells"][label] = record["cells"]["CW"]


SPOILED: dict[str, tuple[Spoil, str]] = {
    "natural": (_number("numbers", "natural", value=0.99), "natural is 0.99"),
    "best-attack": (_number("numbers", "best_attack", value=0.99), "best_attack is 0.99"),
    "an attack": (_number("numbers", "per_attack", "PGD", value=0.99), "per_attack is"),
    "interval": (_number("numbers", "interval", value=[0.5, 0.99]), "interval is"),
    "certified": (_number("numbers", "certified", value=0.99), "certified is 0.99"),
    "assumed": (_number("numbers", "assumed", "broken", value=0), "assumed is"),
    "work": (_number("numbers", "work", "CW", "forwards", value=1e6), "work is"),
    "norm": (_number("threat", "norm", value="linf"), "its norm: linf"),
    "eps": (_number("threat", "eps", value=0.4), "its eps: 0.4"),
    "box": (_number("threat", "upper", value=2.0), "its box: [0.0, 2.0]"),
    "samples": (_number("samples", value=50), "its number of samples: 50"),
    "data set": (_number("data", "name", value="mnist"), "its data: mnist"),
    "images": (_number("data", "sha256", value="0" * 64), "its images or labels: 000"),
    "task": (_number("task", value="digit"), "unknown task 'digit': did you mean 'digits'?"),
    "schema": (_number("score", value=1.0), "record.json is not valid: score"),
    "format": (_number("format", value=3), "record.json is not valid: format"),
    "key": (_number("cells", "CW", "key", value="0" * 16), "CW: made with other weights, data"),
    "attack left out": (
        lambda folder: change_record(folder, lambda record: record["cells"].pop("CW")),
        "it lacks the attack CW",
    ),
    "weaker attack": (
        lambda folder: change_record(folder, _weaker),
        "PGD was run with other settings than the task's",
    ),
    "attack that applies": (
        lambda folder: change_record(folder, _inapplicable),
        "CW: found on some samples only that it does not apply",
    ),
    "what others left": (
        lambda folder: change_record(folder, _after),
        "CW was run on what other attacks left",
    ),
    "what flags go by": (
        _number("cells", "CW", "note", "minimises", value=False),
        "CW: its minimises is False, not True",
    ),
    "file outside": (
        _number("files", "../../../tasks.yaml", value="0" * 64),
        "record.json is not valid: files",
    ),
    "link": (
        lambda folder: (
            (folder / SPEC).rename(folder.parent / "spec.yaml"),
            (folder / SPEC).symlink_to(folder.parent / "spec.yaml"),
        ),
        f"{SPEC} is missing",
    ),
    "markup in a flag": (
        _number("flags", value=["ok | 99.9 |\n\n# Owned"]),
        "record.json is not valid: flags.0",
    ),
    "markup in a name": (
        _number("row", value="x](http://example.org) [y"),
        "record.json is not valid: row",
    ),
    "markup in a label": (
        lambda folder: change_record(folder, lambda record: _cell(record, "<img src=x>")),
        "record.json is not valid: cells.<img src=x>",
    ),
    "infinite eps": (_number("threat", "eps", value=float("inf")), "record.json is not valid: thr"),
    "other identity": (
        _number("cells", "CW", "note", "identity", value=[]),
        "record.json is not valid: cells.CW.note.identity",
    ),
    "another row's spec": (_spec(eps=0.4), f"{SPEC} does not make the row: its threat are"),
    "spec's data": (_spec(data="digits/pair=4-9"), f"{SPEC} does not make the row: its data are"),
    "spec's defense": (
        _spec(defenses=[{"name": "mart", "label": "L2NNN"}]),
        f"{SPEC} does not make the row: its defense are others",
    ),
    "spec's attacks": (
        _spec(attacks=[{"label": "PGD", "name": "pgd", "steps": 1}]),
        f"{SPEC} has other settings of PGD than the task's",
    ),
    "no spec": (_spec(defenses=7), "the spec is not valid"),
    "card's parameters": (_card(parameters=5), f"{CARD}: parameters is 5, of the model "),
    "card's options": (_card(hyperparameters={}), f"{CARD}: its hyperparameters are not those"),
    "card's text": (
        lambda folder: (folder / CARD_TEXT).write_text("best-attack 99.9 %"),
        f"{CARD_TEXT} is missing, or not what record and card say",
    ),
    "no card": (_card(component=None), f"{CARD} is no card of a model"),
    "endless card": (
        lambda folder: (
            (folder / CARD).write_text("[" * 100000),
            list_again(folder, CARD),
        ),
        "",
    ),
    "file missing": (lambda folder: (folder / SPEC).unlink(), f"{SPEC} is missing"),
    "no record": (lambda folder: (folder / RECORD).unlink(), "holds no submission"),
    "spec": (
        lambda folder: (folder / SPEC).write_text("data: mnist"),
        f"{SPEC} is not the file that record.json lists",
    ),
    "evidence file": (_flip_byte(EVIDENCE), f"{EVIDENCE} is not the file that record.json lists"),
    "weights file": (_flip_byte(WEIGHTS), f"{WEIGHTS} holds other weights than"),
    "weights": (_other_weights, f"{CARD}: fingerprint is "),
    "card": (_other_card, f"{CARD} is of other weights than record.json"),
    "label": (
        _array(f"{NATURAL}/label", lambda labels: labels.__setitem__(3, 5 - labels[3])),
        "natural: 1 labels are not those of the data",
    ),
    "clean verdict": (
        _array(f"{NATURAL}/predicted", lambda predicted: predicted.__setitem__(0, 9)),
        "samples are recorded",
    ),
    "radius": (
        _array(f"{CERTIFIED}/radius", lambda radius: radius.__iadd__(0.5)),
        "certified: 60 radii are not as found now",
    ),
    "example that was moved": (
        _array(f"{CW}/low", lambda codes: codes.__imul__(0)),
        " examples do not hold",
    ),
    "example beyond eps": (
        lambda folder: change_evidence(folder, _beyond),
        " examples do not hold",
    ),
    "class of an example": (
        lambda folder: change_evidence(folder, _other_class),
        "predicted classes are not those of the examples",
    ),
    "broken that is not": (
        lambda folder: _change_broken(folder, _one_more),
        "PGD: 1 examples do not hold",
    ),
    "unbroken that is": (
        lambda folder: _change_broken(folder, _one_less),
        "per_attack is",
    ),
    "sample left out": (
        lambda folder: change_evidence(folder, _drop_sample),
        f"{EVIDENCE}: PGD: incomplete: ",
    ),
    "sample twice": (
        _array(f"{PGD}/index", _twice),
        "PGD has samples twice, or others",
    ),
    "no archive": (
        lambda folder: ((folder / EVIDENCE).write_bytes(b"no"), list_again(folder, EVIDENCE)),
        "the evidence is damaged",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_was_tampered_with_is_refused(small: Small, name: str) -> None:
    spoil, line = SPOILED[name]
    spoil(small.rows / "l2nnn")
    assert line in refusal(small, small.rows / "l2nnn")


def test_what_was_not_tampered_with_holds(small: Small) -> None:
    for row in ("l2nnn", "nbr", "vanilla"):
        assert check(small.rows / row, small.tasks, False).folder.name == row


def test_an_attack_said_not_to_apply_is_tried(small: Small) -> None:
    """SCW does not apply to L2NNN, which has no surrogate; to NBR it does."""

    def hide(record: dict[str, Any]) -> None:
        record["cells"]["SCW"]["inapplicable"] = "the model offers no surrogate"

    def empty(arrays: dict[str, np.ndarray]) -> None:
        for name in [name for name in arrays if name.startswith("4/")]:
            arrays[name] = arrays[name][:0]

    change_record(small.rows / "nbr", hide)
    change_evidence(small.rows / "nbr", empty)
    line = refusal(small, small.rows / "nbr")
    assert line.endswith("SCW is said not to apply to the model, and does")


def test_flags_that_records_raise_cannot_be_dropped(small: Small) -> None:
    folder = small.rows / "nbr"
    change_record(folder, lambda record: record["cells"]["PGD"].update(outside=3))
    assert refusal(small, folder).endswith("lacks the flags outside-ball")
