"""What the board asks for: tasks, each a spec of data, threat and attacks; what papers say."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmark.data.dataset import Dataset
from benchmark.data.sets import load_dataset
from benchmark.errors import UserError, did_you_mean
from benchmark.judge.evaluator import Samples
from benchmark.keys import identify_data
from benchmark.run.runner import samples_of
from benchmark.spec.lineup import Lineup, choose
from benchmark.spec.run_spec import RunSpec, make_spec, read_values

TASKS, REPORTED, SPECS, ROWS = "tasks.yaml", "reported.yaml", "specs", "rows"


class Reported(BaseModel):
    """What a paper reports of a defense on a task, in %.

    row      the board's row that it is shown beside.
    source   paper and table; named, what the row is called there.
    attacks  by the paper's names; best_attack is the worst case over them, where it is given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: str
    source: str
    named: str
    natural: float | None = None
    best_attack: float | None = None
    certified: float | None = None
    attacks: dict[str, float] = {}


class Claim(BaseModel):
    """An ordering that a paper claims: that one number of a task's table is above another.

    above, below  (row, column); by, points between them from which on the claim holds; paper, the
                  points between them there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    above: tuple[str, str]
    below: tuple[str, str]
    by: float
    paper: float


@dataclass(frozen=True)
class Task:
    """One table of the board.

    name      of its folder; title, in words; about, what readers should know.
    spec      data, threat, samples, and the attacks that each row must withstand.
    reported  by papers; claims, theirs on the order of rows and columns.
    """

    name: str
    title: str
    about: str
    spec: RunSpec
    reported: tuple[Reported, ...]
    claims: tuple[Claim, ...]
    root: Path | None

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.spec.data, self.root)

    @cached_property
    def samples(self) -> Samples:
        return samples_of(self.dataset, self.spec)

    @cached_property
    def data(self) -> dict[str, str]:
        """What tells the task's images and labels from others."""
        return identify_data(self.dataset, self.spec.split, self.spec.labels)

    @cached_property
    def lineup(self) -> Lineup:
        """The attacks that each row must withstand."""
        labels = [component.label for component in self.spec.defenses]
        return choose(self.spec.suite, self.spec.attacks, self.spec.threat, labels)


def load_tasks(board: Path, root: Path | None = None) -> dict[str, Task]:
    """The tasks of a board, by name, in its order; `root` is where data are sought first. Raises
    UserError where the folder is no board or one of its files is not valid."""
    if not (board / TASKS).is_file():
        raise UserError(
            f"{board} is no leaderboard (it has no {TASKS}): name its folder with --board"
        )
    values = read_values(board / TASKS)
    reported = _reported(board / REPORTED, values)
    try:
        return {
            name: Task(
                name,
                str(value["title"]),
                str(value.get("about", "")),
                make_spec(read_values(board / SPECS / f"{name}.yaml")),
                tuple(reported.get(name, ())),
                tuple(Claim.model_validate(claim) for claim in value.get("claims", ())),
                root,
            )
            for name, value in values.items()
        }
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise UserError(f"{board / TASKS} is not valid: title, about, claims of a task") from error


def find_task(tasks: Mapping[str, Task], name: str) -> Task:
    """Raises UserError where there is no such task."""
    if name not in tasks:
        hint = did_you_mean(name, tasks, f"there are {', '.join(tasks)}")
        raise UserError(f"unknown task {name!r}: {hint}")
    return tasks[name]


def _reported(path: Path, tasks: dict[str, Any]) -> dict[str, list[Reported]]:
    if not path.is_file():
        return {}
    found = {}
    for task, rows in read_values(path).items():
        if task not in tasks:
            raise UserError(f"{path}: unknown task {task!r}")
        try:
            found[task] = [Reported.model_validate(row) for row in rows or ()]
        except (TypeError, ValidationError) as error:
            raise UserError(f"{path} is not valid at {task}: give row, source, figures") from error
    return found
