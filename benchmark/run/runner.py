"""A run: it trains defenses, attacks them, and keeps all results in one folder.

The folder is enough to resume the run, to show its tables again, and to verify them. It holds:

spec.yaml        what was asked for
.lock            held while a process works in the folder
run.json         what was measured: a row for each defense, with the keys of its cells
defenses/NAME/   model.safetensors, card.json and log.csv of each trained defense
cells/KEY/       per-sample records and adversarial examples, block by block
table.*          the tables
curves.png       robust accuracy against eps

Under several threats, the tables are over all of them, and run.json names them. What belongs to one
of them lies in threats/NORM-EPS/, which is a folder of a run as well: run.json, table.* and
curves.png.
"""

import asyncio
import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmark.data.choice import Choice
from benchmark.data.dataset import Dataset
from benchmark.data.sets import load_dataset
from benchmark.environment import environment, resolve_device
from benchmark.errors import UserError
from benchmark.executors import IN_PROCESS, Executor, WorkerLostError, abandoned
from benchmark.folder_lock import alone_in
from benchmark.judge.evaluator import Samples
from benchmark.judge.records import FolderCell, write_json, write_text
from benchmark.judge.subject import Terms
from benchmark.keys import Identity, identify_row
from benchmark.models.obtain import obtained
from benchmark.models.others import check_fit, check_sources, fetch, parts_of, sources_of
from benchmark.models.trained import Trained
from benchmark.report import tables
from benchmark.report.captions import may_reject_name, threat_name
from benchmark.report.left_out import find_left_out
from benchmark.report.report import Report
from benchmark.run.assess import Notify, Settings, assessed
from benchmark.run.geometry import Geometry
from benchmark.run.run_folder import CELLS, RUN, THREATS, named
from benchmark.run.run_samples import (
    choice_of,
    identify_samples,
    relabelled,
    samples_of,
    terms_of,
)
from benchmark.spec.lineup import Lineup, lineup_of
from benchmark.spec.registry import load_plugins
from benchmark.spec.roster import Member, Roster, enrol
from benchmark.spec.run_spec import RunSpec
from benchmark.threats import run_tables
from defenses.offers import rejection_of

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class _Shared:
    """What the runs of a spec under each of its threats have in common.

    folder   the whole run's, which holds the cells and the models of all.
    samples  with the labels of the data; `data` identifies them, and `choice` says what readers
             must know of how they were chosen.
    trained  the models, by the labels of the defenses.
    """

    spec: RunSpec
    folder: Path
    dataset: Dataset
    samples: Samples
    data: Identity
    choice: Choice
    device: torch.device
    trained: dict[str, Trained]
    progress: bool
    say: Say
    executor: Executor


def run(
    spec: RunSpec,
    folder: Path,
    root: Path | None,
    progress: bool,
    say: Say,
    executor: Executor = IN_PROCESS,
) -> list[Report]:
    """Carry out a spec in a folder, and report on each defense, under each threat.

    What the folder already holds is not trained or measured again. `root` is where data sets are
    looked for first, and `say` is called with a line on each thing that is done. Whatever carries
    out the units of work, this process alone writes into the folder.

    Raises UserError, SavedModelError or TrainingError, each in one line: UserError also where
    another process works in the folder. What was measured before that stays in the folder.
    """
    # Check all that can be refused before any work is done.
    load_plugins(spec.plugins)
    norms = {view.norm for view in spec.views}
    lineups = [lineup_of(view, norms) for view in spec.views]
    for lineup in lineups:
        check_sources(lineup, [component.label for component in spec.defenses])
    roster = enrol(spec.defenses)
    device = resolve_device(spec.device)
    dataset = load_dataset(spec.data, root)
    check_fit(roster, dataset)
    samples = samples_of(dataset, spec)
    data, choice = identify_samples(dataset, spec), choice_of(dataset, spec)

    with alone_in(folder, make=True):
        trained = executor.run(
            _train(roster, dataset, spec, folder, device, progress, say, executor)
        )
        shared = _Shared(
            spec, folder, dataset, samples, data, choice, device, trained, progress, say, executor
        )
        whole = _begin(shared)
        reports = []
        for view, lineup in zip(spec.views, lineups, strict=True):
            reports += executor.run(_attack(shared, view, lineup))
        if spec.threats:
            full = spec.model_copy(update={"data": data["name"]})
            run_tables.write(folder, reports, full, {"run": whole})
    return reports


async def _train(
    roster: Roster,
    dataset: Dataset,
    spec: RunSpec,
    folder: Path,
    device: torch.device,
    progress: bool,
    say: Say,
    executor: Executor,
) -> dict[str, Trained]:
    """Train the defenses of a run, or load those that its folder has."""
    trained: dict[str, Trained] = {}
    is_there = {label: asyncio.Event() for label in roster}

    async def get(label: str, member: Member) -> Trained:
        # A defense may be made of others, which stand above it.
        for name in member.made_of.values():
            if name in is_there:
                await is_there[name].wait()
        say(f"{label}: getting the model, which is trained unless it was before")
        try:
            return await obtained(
                member, dataset, spec.training_threat, spec.seed, folder / "defenses", device,
                progress, parts_of(member, trained), executor,
            )  # fmt: skip
        except WorkerLostError as error:
            raise UserError(f"training {label}: {error}") from error

    async def keep(label: str, member: Member) -> None:
        trained[label] = await get(label, member)
        is_there[label].set()

    begun = [executor.begin(keep(label, member)) for label, member in roster.items()]
    with abandoned(begun):
        for work in begun:
            await work
    return {label: trained[label] for label in roster}


def _begin(shared: _Shared) -> dict[str, Any]:
    """Begin a run in a folder: write its spec and, under several threats, its manifest, which is
    returned."""
    spec, folder = shared.spec, shared.folder
    # Tables that an earlier run left in the folder do not belong to this run.
    for name in tables.FILES:
        (folder / name).unlink(missing_ok=True)
    for path in (folder / THREATS).glob("*/*"):
        if path.name in (RUN, *tables.FILES):
            path.unlink()
    plain = spec.model_dump(mode="json")
    write_text(folder / "spec.yaml", yaml.safe_dump(plain, sort_keys=False))
    places = [view.place for view in spec.views]
    whole = {"spec": plain, THREATS: places, "environment": environment(shared.device)}
    if spec.threats:
        write_json(folder / RUN, whole)
    return whole


async def _attack(shared: _Shared, view: RunSpec, lineup: Lineup) -> list[Report]:
    """Attack each defense under one threat, and note every step in the folder."""
    spec, folder, trained = shared.spec, shared.folder, shared.trained
    cells, under = folder / CELLS, threat_name(view.threat) if spec.threats else ""
    peers = fetch(sources_of(lineup), trained)
    home = folder / THREATS / view.place if spec.threats else folder
    if note := Geometry(view.threat, frozen=shared.dataset.frozen).note:
        lineup = dataclasses.replace(lineup, notes=(*lineup.notes, note))
    # Commands on the results under one threat have that one's lock.
    with alone_in(home, make=True) if spec.threats else nullcontext():
        manifest = _manifest(shared, view, lineup, home)
        rows: list[dict[str, Any]] = []

        async def row(name: str, target: Trained, terms: Terms, notify: Notify) -> Report:
            settings = Settings(
                view.threat, view.mode, view.device, view.block, terms, shared.progress, under,
                shared.executor,
            )  # fmt: skip
            try:
                return await assessed(
                    name, target.model, relabelled(shared.samples, target.model, view), lineup,
                    peers, settings, lambda key: FolderCell(cells / key),
                    identify_row(target.identity, shared.data), shared.dataset.classes, notify,
                )  # fmt: skip
            except (UserError, WorkerLostError) as error:
                raise UserError(f"{name}: {error}") from error

        recorder = partial(_recorder, home, manifest, rows, say=shared.say)
        begun = [
            shared.executor.begin(row(name, target, terms, recorder(name, target, terms)))
            for name, target, terms in _rows(shared, view)
        ]
        reports = []
        with abandoned(begun):
            for work in begun:
                report = await work
                report.choice = shared.choice
                reports.append(report)
        find_left_out(reports, cells, view.seed)
        tables.write(home, reports, named(view, manifest), {"run": manifest})
    return reports


def _rows(shared: _Shared, view: RunSpec) -> Iterator[tuple[str, Trained, Terms]]:
    """Each defense by the name of its row, and the terms on which it is judged. One that may reject
    images has a second row, in which rejecting a perturbed image is not wrong."""
    for label, target in shared.trained.items():
        reject = rejection_of(target.model)
        yield label, target, terms_of(shared.dataset, view, reject)
        if reject is not None:
            yield may_reject_name(label), target, terms_of(shared.dataset, view, reject, True)


def _manifest(shared: _Shared, view: RunSpec, lineup: Lineup, home: Path) -> dict[str, Any]:
    """The manifest of a run under one threat, which has no rows yet; `home` is where its tables
    lie."""
    elsewhere = home != shared.folder
    return {
        "spec": shared.spec.model_dump(mode="json"),
        "data": shared.data,
        "samples": len(shared.samples),
        "choice": dataclasses.asdict(shared.choice),
        "mode": view.mode,
        "threat": dataclasses.asdict(view.threat),
        "attacks": list(lineup.entries),
        "environment": environment(shared.device),
        **({CELLS: os.path.relpath(shared.folder / CELLS, home)} if elsewhere else {}),
        "rows": [],
    }


def _recorder(
    folder: Path,
    manifest: dict[str, Any],
    rows: list[dict[str, Any]],
    name: str,
    target: Trained,
    terms: Terms,
    say: Say,
) -> Notify:
    """A function that records how far the assessment of one defense, in a row of that name, is.

    Each call brings the row of the defense in run.json up to date, and says what was measured.
    `rows` are those of all defenses; run.json has those of which something was measured.
    """
    assert target.folder is not None
    row: dict[str, Any] = {"defense": name, "model": _relative(target.folder, folder)}
    if terms.reject is not None:
        row |= {"reject": terms.reject, "may_reject": terms.may_reject}
    rows.append(row)

    def notify(report: Report, measured: str) -> None:
        row.update(
            flags=sorted(report.flags),
            cells=report.keys,
            errors=report.errors,
            inapplicable=report.inapplicable,
            after=report.after,
            notes=report.notes,
        )
        manifest["rows"] = [row for row in rows if "cells" in row]
        write_json(folder / RUN, manifest)
        say(f"{report.called}: {report.summary(measured)}")

    return notify


def _relative(path: Path, folder: Path) -> str:
    """The path of a model as a run's manifest has it.

    It is relative to the run's folder if the model lies in that folder, or in that of another run
    around it, so that these can be moved. It is absolute otherwise.
    """
    path, folder = path.resolve(), folder.resolve()
    outer_runs = [parent for parent in folder.parents if (parent / RUN).exists()]
    inside = any(map(path.is_relative_to, (folder, *outer_runs)))
    return os.path.relpath(path, folder) if inside else str(path)
