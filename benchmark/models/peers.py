"""The other models that transfer and seeded attacks craft their points on."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from benchmark.spec.components import SAVED
from benchmark.errors import UserError, did_you_mean
from benchmark.spec.lineup import Lineup
from benchmark.models.obtain import load_saved
from defenses import SavedModelError, read_card


@dataclass(frozen=True)
class Peer:
    """Another model, and what tells it from others."""

    model: nn.Module
    identity: dict[str, Any]


def check_sources(lineup: Lineup, known: Collection[str]) -> None:
    """Raises UserError where an attack names a model that is neither known nor saved."""
    for label, entry in lineup.entries.items():
        for name in sorted(set(entry.attack.facts.sources) - set(known)):
            wrong = f"attack {label!r}: source {name!r}"
            if name.startswith(SAVED):
                try:
                    read_card(Path(name.removeprefix(SAVED)))
                except SavedModelError as error:
                    raise UserError(f"{wrong}: {error}") from error
            else:
                models = ", ".join(known) or "a model that is given in peers"
                hint = did_you_mean(name, known, f"name {models} or {SAVED}FOLDER")
                raise UserError(f"{wrong} is unknown: {hint}")


def gather(lineup: Lineup, known: Mapping[str, Peer]) -> dict[str, Peer]:
    """The models that some attack crafts points on: those known, and saved ones, which are loaded.

    Raises UserError as `check_sources` does, and where a saved model does not load.
    """
    check_sources(lineup, known)
    peers = {}
    for name in set().union(*(entry.attack.facts.sources for entry in lineup.entries.values())):
        if name in known:
            peers[name] = known[name]
        else:
            try:
                saved = load_saved(Path(name.removeprefix(SAVED)))
            except SavedModelError as error:
                raise UserError(f"source {name!r}: {error}") from error
            peers[name] = Peer(saved.model, saved.identity)
    return peers
