"""The replay of submissions, from weights and evidence alone."""

from typing import Any

import torch

from attacks import Attack, Problem
from attacks.problem import NotApplicableError
from benchmark.errors import UserError
from benchmark.executors.executor import Tell, silent
from benchmark.keys import identify_attack
from benchmark.models.trained import Trained
from benchmark.report.report import Report
from benchmark.run.assess import traits
from benchmark.run.looking import suited
from benchmark.run.replay.defense_replay import replay
from benchmark.spec.components import SOURCE
from benchmark.spec.lineup import lineup_of
from leaderboard.submission.card import card_text
from leaderboard.submission.record import CARD_TEXT, RECORD, SPEC, numbers_of
from leaderboard.submission.submission import Row, unreadable
from leaderboard.submission.submitted_model import loaded, read_card


def replay_row(row: Row, run_code: bool = False, tell: Tell = silent) -> Report:
    """Replay a submission, and return the report that its weights and evidence give.

    Code that the submission brings is run only if `run_code`. Raises UserError, in one line, where
    anything differs from the record.
    """
    del tell
    try:
        with loaded(row.folder, row.record, row.spec, run_code) as saved:
            _check_attacks(row, saved)
            replayed = replay(
                row.report, (), saved, row.task.samples, row.record.data.model_dump(),
                row.record.block, "cpu", row.spec.terms,
            )  # fmt: skip
        if replayed.problems:
            raise UserError(f"{row.folder}: {'; '.join(replayed.problems)}")
        check_numbers(row, replayed.report)
        _check_text(row)
    except UserError:
        raise
    except Exception as error:  # files of strangers fail in more ways than can be listed
        raise unreadable(row.folder, error) from error
    return replayed.report


def _check_attacks(row: Row, saved: Trained) -> None:
    """Raises UserError unless the attacks were run with the settings of the task.

    It is also an error if the record says that an attack does not apply to the model, and it does.
    """
    where, spec = f"{row.folder / RECORD}", row.spec
    lineup = lineup_of(spec)
    for label, entry in row.task.lineup.entries.items():
        if lineup.entries.get(label) != entry:
            raise UserError(f"{row.folder / SPEC} has other settings of {label} than the task's")
        measured = row.record.cells[label]
        attack, note = suited(saved.model, entry).attack, measured.note.model_dump()
        identity, recorded = identify_attack(attack, {}), note["identity"].get("attack")
        if not _same(identity, recorded):
            raise UserError(f"{where}: {label} was run with other settings than the task's")
        if _versions(identity) != _versions(recorded):
            continue  # what an earlier version took, and where it applied, cannot be tried now
        for name, value in traits(attack, saved.model, {}).items():
            if note.get(name) != value:
                raise UserError(f"{where}: {label}: its {name} is {note.get(name)}, not {value}")
        if measured.inapplicable is not None and _applies(attack, row, saved):
            raise UserError(f"{where}: {label} is said not to apply to the model, and does")


def _same(wanted: dict[str, Any], recorded: Any) -> bool:
    """Whether two identities of attacks have the same name and options.

    Versions and sources may differ, and an earlier version may lack options of a later one.
    """
    if not isinstance(recorded, dict) or wanted["name"] != recorded.get("name"):
        return False
    options, known = recorded.get("options"), wanted["options"]
    if not isinstance(options, dict) or options.keys() - known.keys():
        return False
    if known.keys() - options.keys() and recorded.get("version") == wanted["version"]:
        return False
    return all(
        _same(known[key], value) if key == "base" else value == known[key]
        for key, value in options.items()
        if key != SOURCE
    )


def _versions(identity: dict[str, Any]) -> list[Any]:
    """The versions of an attack by its identity, and of those that it runs."""
    base = identity["options"].get("base")
    return [identity.get("version"), *(_versions(base) if isinstance(base, dict) else ())]


def _applies(attack: Attack, row: Row, saved: Trained) -> bool:
    """Whether an attack applies to a model, which it says when it is called."""
    samples = row.task.samples
    number = torch.from_numpy(samples.number[:1])
    problem = Problem(saved.model, samples.x[:1], samples.y[:1], row.task.spec.threat, index=number)
    try:
        attack(problem)
    except NotApplicableError:
        return False
    return True


def check_numbers(row: Row, report: Report) -> None:
    """Raises UserError unless the numbers and flags in a row's record are those of a report."""
    where = row.folder / RECORD
    recorded = row.record.numbers.model_dump()
    for name, value in numbers_of(report).model_dump().items():
        if value != recorded[name]:
            raise UserError(
                f"{where}: {name} is {recorded[name]}, and by weights and evidence {value}"
            )
    if missing := sorted(set(report.flags) - set(row.record.flags)):
        raise UserError(f"{where} lacks the flags {', '.join(missing)}")


def _check_text(row: Row) -> None:
    """Raises UserError unless the text for readers is the one that record and card give."""
    path = row.folder / CARD_TEXT
    wanted = card_text(row.record, read_card(row.folder))
    if not path.is_file() or path.read_text(encoding="utf-8") != wanted:
        raise UserError(f"{path} is missing, or not what record and card say")
