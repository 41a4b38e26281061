"""The parts of a run under several threats, or with several seeds: each is a run of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmark.report.captions import threat_name
from benchmark.seeds.spread import seeds_named
from benchmark.spec.run_spec import RunSpec

# What a manifest calls the parts of a run, and the folder that they lie in.
THREATS, SEEDS = "threats", "seeds"

# How messages say that a run has parts.
_SAID = {THREATS: "under several threats", SEEDS: "with several seeds"}


@dataclass(frozen=True)
class Part:
    """What belongs to one threat of a run under several, or to one seed of a run with several. A
    run that has neither is its own only part, and that has no name.

    name   what tables call the threat or the seed.
    view   the spec of the run under this threat alone, or with this seed alone.
    place  where its files lie, seen from the folder of the run.
    """

    name: str
    view: RunSpec
    place: str


def kind_of(spec: RunSpec) -> str:
    """What the parts of a run are: THREATS or SEEDS; empty for a run that is its own part."""
    return THREATS if spec.threats else SEEDS if spec.seeds else ""


def kind_in(manifest: Mapping[str, Any]) -> str:
    """The same, of the run that a manifest is of."""
    return next((kind for kind in (THREATS, SEEDS) if kind in manifest), "")


def several(kind: str) -> str:
    """How messages say that a run has parts of a kind."""
    return _SAID[kind]


def parts(spec: RunSpec) -> list[Part]:
    """The parts of a run, in order.

    >>> from benchmark.spec.run_spec import make_spec
    >>> spec = make_spec({"eps": 0.5, "defenses": ["vanilla"], "seeds": "0,1"})
    >>> [(part.name, part.place, part.view.seed) for part in parts(spec)]
    [('seed 0', 'seeds/0', 0), ('seed 1', 'seeds/1', 1)]
    """
    kind, named = kind_of(spec), {THREATS: _of_threat, SEEDS: _of_seed}
    return [named[kind](view) for view in spec.views] if kind else [Part("", spec, "")]


def places_in(spec: RunSpec) -> list[str]:
    """The names of the folders of the parts of a run, as its manifest lists them."""
    return [part.place.rpartition("/")[2] for part in parts(spec)]


def _of_threat(view: RunSpec) -> Part:
    return Part(threat_name(view.threat), view, f"{THREATS}/{view.place}")


def _of_seed(view: RunSpec) -> Part:
    return Part(seeds_named([view.seed]), view, f"{SEEDS}/{view.seed}")
