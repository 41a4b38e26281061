"""The spec of a run, and the attacks and defenses that the names in it stand for."""

from benchmark.spec.components import Component, configure, read_component
from benchmark.spec.lineup import Entry, Lineup, choose
from benchmark.spec.registry import (
    ATTACKS,
    DATASETS,
    DEFENSES,
    SUITES,
    Registry,
    load_plugin,
    load_plugins,
)
from benchmark.spec.roster import Member, Roster, enrol
from benchmark.spec.run_spec import RunSpec, make_spec, make_threat, read_values
from benchmark.spec.suites import Suite

__all__ = [
    "ATTACKS",
    "DATASETS",
    "DEFENSES",
    "SUITES",
    "Component",
    "Entry",
    "Lineup",
    "Member",
    "Registry",
    "Roster",
    "RunSpec",
    "Suite",
    "choose",
    "configure",
    "enrol",
    "load_plugin",
    "load_plugins",
    "make_spec",
    "make_threat",
    "read_component",
    "read_values",
]
