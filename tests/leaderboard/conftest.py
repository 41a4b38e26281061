"""A small board of digits, with three rows, made once; and submissions to spoil."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import leaderboard.cli  # noqa: F401 (adds the command)
from benchmark.errors import UserError
from benchmark.run import runner
from benchmark.spec.run_spec import make_spec
from leaderboard.board import build, check
from leaderboard.submission.card import card_text
from leaderboard.submission.record import CARD_TEXT, EVIDENCE, RECORD, read_record
from leaderboard.submission.submit import submit
from leaderboard.submission.submitted_model import read_card
from leaderboard.tasks import Task, load_tasks

SPEC = {
    "data": "digits",
    "samples": 60,
    "norm": "l2",
    "eps": 0.5,
    "defenses": [
        {"label": "vanilla", "name": "vanilla", "epochs": 6, "half": True},
        {"label": "L2NNN", "name": "l2nnn", "epochs": 3, "batch": 64, "half": True},
        {"label": "NBR", "name": "nbr", "epochs": 2, "widen": 0.1, "slope": 20, "half": True},
    ],
    "attacks": [
        {"label": "PGD", "name": "pgd", "steps": 10},
        {"label": "CW", "name": "cw", "steps": 30, "searches": 2, "minimize": True},
        {"label": "SCW", "name": "seeded:cw", "steps": 20, "searches": 1},
    ],
}


@dataclass(frozen=True)
class Small:
    """A board, its tasks, and the run that its rows are from."""

    board: Path
    run: Path

    @property
    def tasks(self) -> dict[str, Task]:
        return load_tasks(self.board)

    @property
    def rows(self) -> Path:
        return self.board / "rows" / "digits"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Made once; tests change copies."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("board")
    small = Small(home / "leaderboard", home / "run")
    (small.board / "specs").mkdir(parents=True)
    (small.board / "specs" / "digits.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    claims = [
        {"above": ["NBR", "PGD"], "below": ["NBR", "best-attack"], "by": 0, "paper": 1},
        {"above": ["NBR", "best-attack"], "below": ["NBR", "PGD"], "by": 0.1, "paper": 2.5},
        {"above": ["NBR", "PGD"], "below": ["fractal", "PGD"], "by": 5, "paper": 7},
    ]
    about = {"digits": {"title": "Digits, L2 0.5", "about": "Small images.", "claims": claims}}
    (small.board / "tasks.yaml").write_text(yaml.safe_dump(about))
    row = {"row": "vanilla", "source": "A paper, table 1", "named": "Plain", "natural": 99.5}
    (small.board / "reported.yaml").write_text(yaml.safe_dump({"digits": [row]}))
    runner.run(make_spec(SPEC), small.run, None, False, lambda line: None)
    notes = {"vanilla": "A small network."}
    list(submit(small.run, small.tasks, small.board / "rows", [], notes, None))
    build(small.board, small.tasks)
    torch.set_num_threads(threads)
    return small


@pytest.fixture
def small(made: Small, tmp_path: Path) -> Small:
    """A copy of the board, to change."""
    shutil.copytree(made.board, tmp_path / "leaderboard")
    return Small(tmp_path / "leaderboard", made.run)


def refusal(small: Small, folder: Path, run_code: bool = False) -> str:
    """The line with which a submission is refused."""
    with pytest.raises(UserError) as error:
        check(folder, small.tasks, run_code)
    assert "\n" not in str(error.value)
    return str(error.value)


def change_record(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a record in place."""
    record = json.loads((folder / RECORD).read_text())
    change(record)
    (folder / RECORD).write_text(json.dumps(record))


def list_again(folder: Path, name: str) -> None:
    """Put the hash of a file, as it is now, into the record, as somebody who cheats would."""
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    change_record(folder, lambda record: record["files"].update({name: digest}))


def change_evidence(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the arrays of an evidence file, and its hash in the record."""
    with np.load(folder / EVIDENCE) as data:
        arrays = {name: data[name].copy() for name in data.files}
    change(arrays)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    (folder / EVIDENCE).write_bytes(content.getvalue())
    list_again(folder, EVIDENCE)


def rewrite_card(folder: Path) -> None:
    """Put the text of a submission's card in agreement with its record."""
    (folder / CARD_TEXT).write_text(card_text(read_record(folder), read_card(folder)))
