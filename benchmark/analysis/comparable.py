"""Whether rows can be compared sample by sample, and what differs though they can."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import UserError, did_you_mean
from benchmark.keys import Identity, identify_threat, key_of
from benchmark.report.captions import chosen, threat_name
from benchmark.report.left_out import written
from benchmark.report.measurements import Measurements
from benchmark.spec.components import BEST, CERTIFIED, NATURAL
from benchmark.spec.source_names import noun_of, without_places


def counted(name: str, report: Measurements, of: str) -> NDArray[np.float64]:
    """How much each sample (n,) of a row counts in an accuracy: see `Measurements.shares`; of
    "certified", 1 where it does. Raises UserError where the row has no such accuracy."""
    if of == CERTIFIED:
        proven = report.certified_within(report.threat.eps)
        shares = None if proven is None else proven.astype(np.float64)
    else:
        shares = report.shares(of)
    if shares is None:
        raise UserError(f"{name} has no {of} accuracy: {_why_none(report, of)}")
    return shares


def _why_none(report: Measurements, of: str) -> str:
    """Why a report has no accuracy of some kind."""
    if why := report.why_failed(of):
        return f"it failed: {why}"
    if why := report.why_inapplicable(of):
        return f"it does not apply: {why}"
    if of == CERTIFIED:
        return "the model certifies nothing, and no bounds were asked for; leave the row out"
    if of == BEST:
        return "no attack of it counts"
    if of in report.attacks:
        return f"in a cascade, attacks saw only what others left: compare {BEST}"
    return did_you_mean(of, (NATURAL, CERTIFIED, BEST, *report.attacks), "no attack is called that")


def check_comparable(rows: Mapping[str, Measurements]) -> None:
    """Raises UserError where some of the rows, by their names, are not on the same samples with the
    same labels and under one threat, as far as their records tell, or lack records."""
    for name, report in rows.items():
        for label in sorted(report.lacking):
            raise UserError(
                f"{name} is not finished ({label}: {report.errors[label]}): run the same command "
                "again, or leave the row out"
            )
    (first, one), *others = rows.items()
    for name, other in others:
        if why := _difference(one, other):
            raise UserError(f"{first} and {name} cannot be compared: {why}")


def _difference(one: Measurements, other: Measurements) -> str:
    """Why two reports cannot be compared; empty if they can."""
    if identify_threat(one.threat) != identify_threat(other.threat):
        names = threat_name(one.threat), threat_name(other.threat)
        if len(set(names)) == 1:
            return f"both are under {names[0]}, but with other bounds of what may be perturbed"
        return f"one is under {names[0]}, the other under {names[1]}"
    ours, theirs = (report.identity.get("data") for report in (one, other))
    if isinstance(ours, dict) != isinstance(theirs, dict):
        return "one is of a run and the other of evaluate, whose samples cannot be told to be those"
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if why := _other_data(ours, theirs):
            return why
        ours, theirs = ours.get("order"), theirs.get("order")
    if ours != theirs or one.total != other.total:
        return f"they are on other samples, {images(one)} and {images(other)}"
    labels = [report.frames[NATURAL]["label"].to_numpy() for report in (one, other)]
    if not np.array_equal(labels[0], labels[1]):
        return "their labels differ, as where each model's own predictions are its labels"
    return ""


def _other_data(ours: Identity, theirs: Identity) -> str:
    """Why two identities of data, as `identify_data` gives them, are of other images or labels;
    empty if they are of the same ones. Names do not count: contents do."""
    if ours.get("labels") != theirs.get("labels"):
        return "the labels of one are those of the data, and those of the other its predictions"
    names = [without_places(str(data["name"])) for data in (ours, theirs)]
    if ours["sha256"] != theirs["sha256"]:
        if len(set(names)) == 1:
            return f"the images or labels of {names[0]} are not the same"
        return f"one is on {names[0]}, the other on {names[1]}"
    if ours.get("frozen") != theirs.get("frozen"):
        return "other features of the data are held still"
    return ""


def images(report: Measurements) -> str:
    """How texts call the samples that a report is on."""
    data = report.identity.get("data")
    if not isinstance(data, dict):
        return chosen(report.total, report.choice, "samples")
    name = str(data["name"])
    return chosen(report.total, report.choice, f"{without_places(name)} {noun_of(name)}")


def met(rows: Mapping[str, Measurements], of: str) -> dict[tuple[str, ...], list[str]]:
    """What a number of the rows was made by, attacks or bounds, and the names of the rows for which
    it was: several entries where that differs."""
    if of == CERTIFIED:
        return _grouped({name: (_certified_by(report),) for name, report in rows.items()})
    attacks = {
        (name, label): report.cells[label].note.get("identity", {}).get("attack")
        for name, report in rows.items()
        for label in _labels(report, of)
    }
    versions: dict[str, dict[str, str]] = {}
    for (_, label), attack in attacks.items():
        versions.setdefault(label, {})[key_of({"attack": attack})] = _version(attack)

    def called(name: str, label: str) -> str:
        """The label of an attack, with more where attacks of that label differ."""
        known, key = versions[label], key_of({"attack": attacks[name, label]})
        if len(known) == 1:
            return label
        alike = list(known.values()).count(known[key]) > 1  # but for its code, or its models
        return f"{label} ({known[key]}{f', key {key}' if alike else ''})"

    return _grouped(
        {
            name: tuple(sorted(called(name, label) for label in _labels(report, of)))
            for name, report in rows.items()
        }
    )


def _labels(report: Measurements, of: str) -> list[str]:
    """The attacks that an accuracy counts, in order."""
    if of in (NATURAL, CERTIFIED):
        return []
    if of == BEST:
        return report.measured
    return [label for label in report.measured if label in (*report.after.get(of, ()), of)]


def _version(attack: Any) -> str:
    """An attack with its options and its version, as far as its cell notes them."""
    if not isinstance(attack, dict):
        return "unknown"
    return f"{written(attack)}, version {attack['version']}"


def _certified_by(report: Measurements) -> str:
    own = ["its own certificate"] if CERTIFIED in report.keys or report.proofs is None else []
    return " and ".join([*own, *([str(report.proofs)] if report.proofs else [])])


def _grouped(by_name: Mapping[str, tuple[str, ...]]) -> dict[tuple[str, ...], list[str]]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, what in by_name.items():
        groups.setdefault(what, []).append(name)
    return groups


def broken_by(report: Measurements, of: str, samples: Iterable[int]) -> list[str]:
    """What broke each of some samples of a row, of what an accuracy counts: "natural" where it is
    misclassified clean, and attacks."""
    by_sample: dict[int, list[str]] = {int(sample): [] for sample in samples}
    for label in (NATURAL, *(report.measured if of == CERTIFIED else _labels(report, of))):
        frame = report.frames[label]
        for sample in frame["index"][frame["broken"]]:
            if sample in by_sample:
                by_sample[sample].append(label)
    return [", ".join(labels) for labels in by_sample.values()]
