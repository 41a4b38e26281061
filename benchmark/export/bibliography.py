"""The references of a run: the papers of exactly those attacks, defenses and data that it used.

They are found by what its records say was carried out, down to the attacks within wrappers, the
attacks of libraries, and the models that others were made of.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from attacks.messages import one_line
from attacks.threat import Norm
from benchmark.export import citations
from benchmark.export.citations import Keys
from benchmark.report.measurements import Measurements
from benchmark.spec.components import NATURAL
from benchmark.spec.source_names import is_source, without_places

_Kind = Literal["attack", "defense"]
_ENTRY = re.compile(r"^@\w+\{([^,]+),\n.*?^\}\n", re.M | re.S)


@cache
def references() -> Mapping[str, str]:
    """All entries that there are in BibTeX, by key."""
    text = (files(__package__) / "references.bib").read_text(encoding="utf-8")
    return {match[1]: match[0] for match in _ENTRY.finditer(text)}


def bibliography(reports: Sequence[Measurements], data: str) -> str:
    """The references of a run on a data set, in BibTeX, sorted by key, each with what it is for. A
    comment names what no reference is known for, as for what users bring."""
    parts = cited(reports, data)
    text = [
        f"% {', '.join(name for name, of in parts.items() if key in (of or ()))}\n{entry}"
        for key, entry in sorted(references().items())
        if key in keys_of(parts)
    ]
    if unknown := [one_line(name) for name, keys in parts.items() if keys is None]:
        # BibTeX knows no comments: an entry begins at any @.
        named = ", ".join(unknown).replace("@", "(at)")
        text.append(f"% No reference is known for: {named}\n")
    return "\n".join(text)


def keys_of(parts: Mapping[str, Keys | None]) -> list[str]:
    """The keys of the references of all parts of a run, sorted."""
    return sorted({key for keys in parts.values() for key in keys or ()})


def cited(reports: Sequence[Measurements], data: str) -> dict[str, Keys | None]:
    """The keys of the references of each part of a run, by what the part is called: OWN where it is
    our own work, None where none is known."""
    parts: dict[str, Keys | None] = {"bestattack": citations.ITSELF, **_of_data(data)}
    for report in reports:
        for label in (NATURAL, *report.attacks):
            if label not in report.inapplicable:
                identity = report.cells[label].note.get("identity", {})
                for name, keys in _of_identity(identity, report.threat.norm):
                    known = parts.get(name) or ()
                    # A part may be used with several options.
                    parts[name] = None if keys is None else tuple(dict.fromkeys((*known, *keys)))
        if report.proofs is not None:
            parts[f"certify {report.proofs.method}"] = citations.PROOFS[report.proofs.method]
    return parts


def _of_data(data: str) -> dict[str, Keys | None]:
    """The keys of a data set and of its variants, by their names."""
    if is_source(data):
        return {without_places(data): None}
    name, *variants = data.split("/")
    kinds = [variant.partition("=")[0] for variant in variants]
    of_variants = {kind: citations.VARIANTS.get(kind, citations.OWN) for kind in kinds}
    return {f"data {name}": citations.DATASETS.get(name)} | {
        f"variant {kind}": keys for kind, keys in of_variants.items()
    }


def _of_identity(
    value: Any, norm: Norm, kind: _Kind = "attack"
) -> Iterator[tuple[str, Keys | None]]:
    """Whatever an identity names, with its keys, and what is named within that."""
    if not isinstance(value, dict):
        return
    if {"name", "version", "options"} <= value.keys():
        name = str(value["name"])
        yield f"{kind} {name}", _keys(name, value["options"], norm, kind)
    for key, inner in value.items():
        inside: _Kind = "defense" if key in ("recipe", "parts") else kind
        for element in inner if isinstance(inner, list) else [inner]:
            yield from _of_identity(element, norm, inside)


def _keys(name: str, options: Mapping[str, Any], norm: Norm, kind: _Kind) -> Keys | None:
    """The keys of an attack or a defense with these options; None where it is none of ours."""
    known = citations.ATTACKS if kind == "attack" else citations.DEFENSES
    if name not in known:
        return None
    found = known[name]
    for option, value in options.items():
        if isinstance(value, str):
            found += citations.OPTIONS.get((option, value), ())
        if kind == "defense" and value is not None:
            found += citations.SOURCES.get(option, ())
    if kind == "attack" and not options.get("quick"):
        found += citations.PARTS.get((name, norm), ())
    if name == "torchattacks":
        found += citations.TORCHATTACKS.get(options["attack"], ())
    if name == "foolbox":
        attack = str(options["attack"])
        found += next((k for part, k in citations.FOOLBOX.items() if part in attack), ())
    return tuple(dict.fromkeys(found))
