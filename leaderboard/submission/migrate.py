"""The migration of submissions from format 1 to the present one, which changes no figure.

Format 1 named attacks and recipes by where their code was, with hashes of whole source files, and
data by a hash of the images that were attacked. Now they are named by registered names and declared
versions, and data by a hash of the whole split.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks import Attack
from attacks.messages import one_line
from benchmark.errors import UserError
from benchmark.judge.records import write_json, write_text
from benchmark.keys import (
    identify_attacked,
    identify_certificate,
    identify_natural,
    identify_row,
    key_of,
)
from benchmark.models.trained import Trained
from benchmark.run.looking import suited
from benchmark.spec.components import CERTIFIED, NATURAL, Component
from benchmark.spec.lineup import lineup_of
from benchmark.spec.registry import only_plugins
from benchmark.spec.roster import recipe_of
from benchmark.spec.run_spec import RunSpec, make_spec, read_values
from defenses.training.saved import CARD
from leaderboard.submission.card import card_text
from leaderboard.submission.record import CARD_TEXT, FORMAT, RECORD, SPEC, Record
from leaderboard.submission.submitted_model import (
    digest,
    hyperparameters,
    loaded,
    plugins_of,
    read_card,
)
from leaderboard.tasks import Task, find_task


def migrate(folder: Path, tasks: dict[str, Task], run_code: bool) -> bool:
    """Bring a submission up to the present format, in place.

    Returns whether it had to be changed. Raises UserError, and leaves everything as it was, where
    the submission is of neither format, where it brings code and `run_code` is not set, where its
    model cannot be loaded, and where its attacks were run with other options than its specification
    has.
    """
    # Read it, and see what format it is of.
    try:
        old = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if old["format"] == FORMAT:
            return False
        task = find_task(tasks, old["task"])
        if old["format"] != 1 or old["data"]["name"] != task.data["name"]:
            raise UserError(f"{folder / RECORD} is neither of format 1 nor of {FORMAT}")
        before = {name: (folder / name).read_text(encoding="utf-8") for name in (CARD, CARD_TEXT)}
        old_card = read_card(folder)
        draft = Record.model_validate(old | {"format": FORMAT, "data": task.data})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds no submission that can be read: {one_line(error)}"
        ) from error
    spec = make_spec(read_values(folder / SPEC))
    # The model is loaded with the card. After an error, put it back.
    try:
        with only_plugins(plugins_of(folder, draft, old_card, spec, run_code)):
            card = _card(old_card)
        write_json(folder / CARD, card)
        record = _record(folder, old, task, spec, run_code)
        write_text(folder / CARD_TEXT, card_text(record, card))
        # The record says what format all is of, so it comes last.
        write_text(folder / RECORD, record.model_dump_json(indent=1) + "\n")
    except BaseException:
        for name, text in before.items():
            write_text(folder / name, text)
        raise
    return True


def _record(folder: Path, old: dict[str, Any], task: Task, spec: RunSpec, run_code: bool) -> Record:
    """The record in the present format of a submission whose card is in that format already."""
    files = old["files"] | {CARD: digest(folder / CARD)}
    new = old | {"format": FORMAT, "data": task.data, "files": files}
    with loaded(folder, Record.model_validate(new), spec, run_code) as saved:
        new["cells"] = {
            label: _cell(folder, label, cell, saved, task, spec)
            for label, cell in old["cells"].items()
        }
    return Record.model_validate(new)


def _card(card: dict[str, Any]) -> dict[str, Any]:
    """A card in the present format: it names no module, and has today's hyperparameters."""
    recipe = recipe_of(Component.model_validate(card["component"]))
    card = {key: value for key, value in card.items() if key != "recipe"}
    card["hyperparameters"] = hyperparameters(recipe)
    if parts := card.get("parts"):
        card["parts"] = {name: _card(part) for name, part in parts.items()}
    return card


def _cell(
    folder: Path,
    label: str,
    cell: dict[str, Any],
    saved: Trained,
    task: Task,
    spec: RunSpec,
) -> dict[str, Any]:
    """A cell in the present format, with the identity and the key that it has there."""
    old = cell["note"]["identity"]
    row = identify_row(saved.identity, task.data)
    identity = identify_natural(row, torch.device(old["device"]), old["precision"])
    identity["torch"] = old["torch"]
    if label == CERTIFIED:
        identity = identify_certificate(identity, spec.threat)
    elif label != NATURAL:
        attack = _attack_of(folder, label, saved, spec)
        _check_options(folder, label, attack, old["attack"])
        none = np.arange(0)
        identity = identify_attacked(identity, attack, {}, spec.threat, old["seed"], none, 0)
        if attack.facts.by_block:
            identity |= {key: old[key] for key in ("block", "samples")}
    note = cell["note"] | {"identity": identity}
    return cell | {"note": note, "key": key_of(identity)}


def _attack_of(folder: Path, label: str, saved: Trained, spec: RunSpec) -> Attack:
    """The attack with a label in a spec, in its variant for the model."""
    lineup = lineup_of(spec)
    if label not in lineup.entries:
        raise UserError(f"{folder / SPEC} has no attack {label}")
    return suited(saved.model, lineup.entries[label]).attack


def _check_options(folder: Path, label: str, attack: Attack, old: dict[str, Any]) -> None:
    """Raises UserError unless an attack has the options that format 1 recorded, as texts."""
    for name, text in old["options"].items():
        if not hasattr(attack, name):
            raise UserError(
                f"{folder}: {label} was run with {name} {text}, an option that it no longer has"
            )
        value = getattr(attack, name)
        if isinstance(text, dict):
            _check_options(folder, label, value, text)
        elif repr(value) != text:
            raise UserError(f"{folder}: {label} was run with {name} {text}, not {value!r}")
