"""Attacks that a run's folder holds from earlier runs, and its table leaves out."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmark.errors import UserError
from benchmark.judge.records import FolderCell, blocks_of
from benchmark.keys import Identity, is_attacked
from benchmark.report.accuracy import LeftOut, robust_shares
from benchmark.report.measurements import Measurements
from benchmark.spec.components import BEST, NATURAL, SEARCH
from benchmark.spec.proof_setting import Proofs
from benchmark.spec.registry import ATTACKS, BASE, rest_of


def find_left_out(reports: Iterable[Measurements], cells: Path, seed: int) -> None:
    """Note in each report on a run which attacks its folder of cells holds besides, of the same
    model, samples, threat and seed, that break what the run's own attacks leave.

    Cells of attacks that failed or were interrupted do not count.
    """
    notes = {
        path.parent: FolderCell(path.parent).note for path in sorted(cells.glob("*/cell.json"))
    }
    for report in reports:
        report.left_out = _left_out(report, notes, seed)


def _left_out(
    report: Measurements, notes: Mapping[Path, Mapping[str, Any]], seed: int
) -> LeftOut | None:
    """The attacks that one report leaves out, given the note of each cell in its folder."""
    counted = report.shares(BEST)
    if counted is None:
        return None
    own = [report.frames[label] for label in (NATURAL, *report.measured)]
    others = list(_others(report, notes, seed))
    every = [*own, *(frame for _, frame in others)]
    # A series or a cascade gives an attack what others left: it lacks only what these broke.
    unbroken = np.flatnonzero(robust_shares(every, report.total, "trial") > 0)
    stronger: dict[str, float] = {}
    frames = []
    for attack, frame in others:
        shares = robust_shares([*own, frame], report.total)
        if np.isin(unbroken, frame["index"]).all() and shares.sum() < counted.sum():
            met = np.isin(np.arange(report.total), frame["index"])
            leaves = float(robust_shares([own[0], frame], report.total)[met].sum() / report.total)
            name = written(attack)
            stronger[name] = min(leaves, stronger.get(name, 1.0))
            frames.append(frame)
    if not frames:
        return None
    best = float(robust_shares([*own, *frames], report.total).mean())
    return LeftOut(dict(sorted(stronger.items(), key=lambda item: item[1])), best)


def _others(
    report: Measurements, notes: Mapping[Path, Mapping[str, Any]], seed: int
) -> Iterator[tuple[Identity, pd.DataFrame]]:
    """The identity of each other attack in a folder that was carried out on the same model, samples
    and threat, with what it recorded of these samples."""
    labels = (*report.attacks, SEARCH)
    own = [_attack(report.cells[label].note) for label in labels if label in report.cells]
    for folder, note in notes.items():
        attack = _attack(note)
        if attack is None or attack in own or note.get("error") or note.get("inapplicable"):
            continue
        if is_attacked(note["identity"], report.identity, report.threat, seed):
            blocks = blocks_of(FolderCell(folder), np.arange(report.total), images=False)
            frames = [block.frame() for block in blocks]
            if frames:
                yield attack, pd.concat(frames, ignore_index=True)


def _attack(note: Mapping[str, Any]) -> Identity | None:
    """The identity of the attack in a cell's note; None if it is of none."""
    identity = note.get("identity")
    attack = identity.get("attack") if isinstance(identity, dict) else None
    return attack if isinstance(attack, dict) else None


def written(attack: Identity) -> str:
    """An attack as a user would write it, from its identity: its name, and the options that are not
    its defaults. Options that are no single values, such as models, are left out.

    >>> written({"name": "pgd", "version": 1, "options": {"steps": 7, "restarts": 1}})
    'pgd/steps=7'
    """
    name, options = str(attack["name"]), dict(attack["options"])
    if name == SEARCH:
        return f"--certify {Proofs(**options).written}"
    try:
        entry = ATTACKS.get(name)
    except UserError:  # of a plugin that is not loaded
        entry = None
    fields = dataclasses.fields(entry) if dataclasses.is_dataclass(entry) else ()
    defaults = {field.name: field.default for field in fields}
    if form := rest_of(entry):
        rest = options.pop("base" if form == BASE else "attack")
        name += f":{written(rest) if form == BASE else rest}"
    words = [
        option if value is True else f"{option}={_word(value)}"
        for option, value in options.items()
        if (value is None or isinstance(value, bool | int | float | str))
        and value != defaults.get(option, dataclasses.MISSING)
    ]
    return "/".join([name, *words])


def _word(value: Any) -> str:
    if value is None:
        return "none"
    return "no" if value is False else str(value)
