"""The tasks of the board, and what papers report on them.

A task is one table. It prescribes the data, the threat and the attacks for all its rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from benchmark.data.dataset import Dataset
from benchmark.data.sets import load_dataset
from benchmark.errors import UserError, did_you_mean
from benchmark.judge.evaluator import Samples
from benchmark.run.run_samples import identify_samples, samples_of
from benchmark.spec.lineup import Lineup, lineup_of
from benchmark.spec.registry import load_plugins
from benchmark.spec.roster import enrol
from benchmark.spec.run_spec import RunSpec, make_spec, read_values

TASKS, REPORTED, SPECS, ROWS = "tasks.yaml", "reported.yaml", "specs", "rows"


class Reported(BaseModel):
    """What a paper reports about a defense on a task, in %.

    row          the row of the board beside which it is shown.
    source       the paper and the table in it.
    named        what the paper calls the row.
    natural      natural accuracy; this and the next two are None where the paper does not give it.
    best_attack  robust accuracy in the worst case over the attacks.
    certified    certified accuracy.
    attacks      robust accuracy under each attack, by the paper's names.
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
    """A claim of a paper that one number in a task's table is above another.

    above, below  the two numbers, each as (row, column).
    by            the least difference, in percentage points, with which the claim counts as
                  confirmed.
    paper         the difference in the paper, in percentage points.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    above: tuple[str, str]
    below: tuple[str, str]
    by: float
    paper: float


@dataclass(frozen=True)
class Task:
    """One table of the board.

    name      the name of the task, and of the folder of its rows.
    title     the heading of the table.
    about     what readers should know about it.
    spec      the data, the threat, the samples, and the attacks that each row must withstand.
    reported  what papers report on its rows.
    claims    what papers claim about the order of its numbers.
    root      where data sets are looked for first.
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
        """The data set of the task."""
        return load_dataset(self.spec.data, self.root)

    @cached_property
    def samples(self) -> Samples:
        """The samples that each row is measured on."""
        return samples_of(self.dataset, self.spec)

    @cached_property
    def data(self) -> dict[str, str]:
        """The identity of the task's images and labels."""
        return identify_samples(self.dataset, self.spec)

    @cached_property
    def lineup(self) -> Lineup:
        """The attacks that each row must withstand."""
        return lineup_of(self.spec)


def tasks_at(board: Path | None) -> Path:
    """The folder to read tasks from where no rows are needed: that of a board, if one is named,
    else that of a board here, else what is installed."""
    here = Path("leaderboard")
    installed = Path(str(resources.files("leaderboard")))
    return board or (here if (here / TASKS).is_file() else installed)


def load_tasks(board: Path, root: Path | None = None) -> dict[str, Task]:
    """Read the tasks of a board, in its order, by name.

    `root` is where data sets are looked for first. Raises UserError where the folder holds no
    board, or one of its files is not valid.
    """
    if not (board / TASKS).is_file():
        raise UserError(
            f"{board} is no leaderboard (it has no {TASKS}): start in a clone of bestattack's "
            "repository, which has the rows, or name the folder with --board"
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


def spec_for(task: str, defenses: Sequence[str], plugins: Sequence[Path], board: Path) -> str:
    """The spec of a run for a task, as YAML: what the task prescribes, with some defenses in place
    of those of the board. Raises UserError for a task or a defense that there is not."""
    name = find_task(load_tasks(board), task).name
    values = read_values(board / SPECS / f"{name}.yaml") | {"defenses": list(defenses)}
    if plugins:
        values["plugins"] = [str(plugin) for plugin in plugins]
    spec = make_spec(values)
    load_plugins(spec.plugins)
    enrol(spec.defenses)
    return f"# For the board's task {name}.\n" + yaml.safe_dump(values, sort_keys=False)


def find_task(tasks: Mapping[str, Task], name: str) -> Task:
    """The task with a name. Raises UserError where there is none."""
    if name not in tasks:
        hint = did_you_mean(name, tasks, f"there are {', '.join(tasks)}")
        raise UserError(f"unknown task {name!r}: {hint}")
    return tasks[name]


def _reported(path: Path, tasks: dict[str, Any]) -> dict[str, list[Reported]]:
    """What papers report on each task, from a file that need not exist."""
    if not path.is_file():
        return {}
    reported = {}
    for task, rows in read_values(path).items():
        if task not in tasks:
            raise UserError(f"{path}: unknown task {task!r}")
        try:
            reported[task] = [Reported.model_validate(row) for row in rows or ()]
        except (TypeError, ValidationError) as error:
            raise UserError(f"{path} is not valid at {task}: give row, source, figures") from error
    return reported
