"""A run: it trains defenses, attacks them, and keeps all results in one folder.

The folder is enough to resume the run, to show its tables again, and to verify them. It holds:

spec.yaml        what was asked for
.lock            held while a process works in the folder
run.json         what was measured: a row for each defense, with the keys of its cells
defenses/NAME/   model.safetensors, card.json and log.csv of each trained defense
plan.json        what it was to take, where that was asked
cells/KEY/       per-sample records and adversarial examples, block by block
table.*          the tables
report.html      the tables, pictures and examples as a page
curves.png       robust accuracy against eps

Under several threats, or with several seeds, the tables are over all of them, and run.json names
them. What belongs to one of them lies in threats/NORM-EPS/ or seeds/SEED/, which is a folder of a
run as well: run.json, table.*, report.html and curves.png.
"""

import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmark.data.choice import Choice
from benchmark.data.dataset import Dataset
from benchmark.data.sets import load_dataset
from benchmark.environment import environment
from benchmark.errors import UserError
from benchmark.executors import IN_PROCESS, Executor, WorkerLostError, abandoned, in_order
from benchmark.folder_lock import alone_in
from benchmark.judge.evaluator import Samples
from benchmark.judge.records import FolderCell, write_json, write_text
from benchmark.judge.subject import Terms
from benchmark.keys import Identity, identify_row
from benchmark.models.obtain import obtained
from benchmark.models.others import check_fit, check_sources, fetch, parts_of, sources_of
from benchmark.models.trained import Trained
from benchmark.pages.run_page import Shown, write_page
from benchmark.report import tables
from benchmark.report.captions import may_reject_name
from benchmark.report.left_out import find_left_out
from benchmark.report.report import Report
from benchmark.run.assess import Notify, Settings, assessed
from benchmark.run.geometry import Geometry
from benchmark.run.run_folder import CELLS, RUN, named
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
from benchmark.whole import run_tables
from benchmark.whole.parts import SEEDS, THREATS, Part, kind_of, parts, places_in
from defenses.offers import rejection_of

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class _Shared:
    """What the runs of a spec under each of its threats have in common, with one of its seeds.

    folder   the whole run's, which holds the cells and the models of all.
    seed     that the models are trained with.
    samples  with the labels of the data; `data` identifies them, and `choice` says what readers
             must know of how they were chosen.
    roster   the defenses, by their labels.
    models   what is trained of them.
    """

    spec: RunSpec
    folder: Path
    seed: int
    dataset: Dataset
    samples: Samples
    data: Identity
    choice: Choice
    device: torch.device
    roster: Roster
    models: "_Models"
    progress: bool
    say: Say
    executor: Executor


class _Models:
    """The models of a run, by the labels of the defenses, which come one after another."""

    def __init__(self, roster: Roster) -> None:
        self.trained: dict[str, Trained] = {}
        self._is_there = {label: asyncio.Event() for label in roster}

    def add(self, label: str, model: Trained) -> None:
        self.trained[label] = model
        self._is_there[label].set()

    async def wait_for(self, names: Iterable[str]) -> None:
        """Wait for the models with some names, but for those that are not of the run."""
        for name in names:
            if name in self._is_there:
                await self._is_there[name].wait()


def run(
    spec: RunSpec,
    folder: Path,
    root: Path | None,
    progress: bool,
    say: Say,
    executor: Executor = IN_PROCESS,
) -> list[Report]:
    """Carry out a spec in a folder, and report on each defense, under each threat, with each seed.

    What the folder already holds is not trained or measured again. `root` is where data sets are
    looked for first, and `say` is called with a line on each thing that is done. Whatever carries
    out the units of work, this process alone writes into the folder.

    Raises UserError, SavedModelError or TrainingError, each in one line: UserError also where
    another process works in the folder. What was measured before that stays in the folder.
    """
    device = executor.device(spec.device)
    lineups, roster, dataset = checked(spec, root)
    # The views under several threats have one seed, and so one model of each defense.
    with_seed = {view.seed: view for view in spec.views}
    shared = {
        seed: _Shared(
            spec, folder, seed, dataset, samples_of(dataset, view),
            identify_samples(dataset, view), choice_of(dataset, view), device, roster,
            _Models(roster), progress, say, executor,
        )
        for seed, view in with_seed.items()
    }  # fmt: skip
    with alone_in(folder, make=True):
        return executor.run(_carry_out(shared, lineups))


def checked(spec: RunSpec, root: Path | None) -> tuple[list[Lineup], Roster, Dataset]:
    """The attacks of each view of a spec, its defenses and its data. Raises UserError for all that
    can be refused before any work is done."""
    load_plugins(spec.plugins)
    norms = {view.norm for view in spec.views}
    lineups = [lineup_of(view, norms) for view in spec.views]
    for lineup in lineups:
        check_sources(lineup, [component.label for component in spec.defenses])
    roster = enrol(spec.defenses)
    dataset = load_dataset(spec.data, root)
    check_fit(roster, dataset)
    return lineups, roster, dataset


async def _carry_out(shared: Mapping[int, _Shared], lineups: Sequence[Lineup]) -> list[Report]:
    """Train the defenses of a run with each seed, given what is shared with each, and attack each
    in each part of the run as soon as it is there."""
    first = next(iter(shared.values()))
    reports: list[Report] = []
    training = [
        first.executor.begin(_train(of_seed, member))
        for of_seed in shared.values()
        for member in of_seed.roster.values()
    ]
    with abandoned(training):
        for part, lineup in zip(parts(first.spec), lineups, strict=True):
            reports += await _attack(shared[part.view.seed], part, lineup, training)
            training.clear()
    if kind_of(first.spec):
        full = first.spec.model_copy(update={"data": first.data["name"]})
        run_tables.write(first.folder, reports, full, {"run": _whole(first)})
    return reports


async def _train(shared: _Shared, member: Member) -> None:
    """Train a defense of a run, or load it if the folder has it."""
    spec, models, label = shared.spec, shared.models, member.label
    # It may be made of others, which stand above it.
    await models.wait_for(member.made_of.values())
    which = f"{label} (seed {shared.seed})" if spec.seeds else label
    shared.say(f"{which}: getting the model, trained unless it was before")
    if member.recipe is not None and member.recipe.hint:
        shared.say(f"{which}: {member.recipe.hint}")
    try:
        trained = await obtained(
            member, shared.dataset, spec.training_threat, shared.seed, shared.folder / "defenses",
            shared.device, shared.progress, parts_of(member, models.trained), shared.executor,
        )  # fmt: skip
    except WorkerLostError as error:
        raise UserError(f"training {label}: {error}") from error
    models.add(label, trained)


def _begin(shared: _Shared) -> None:
    """Begin a run in a folder: write its spec and, where it has parts, its manifest."""
    spec, folder = shared.spec, shared.folder
    # Tables that an earlier run left in the folder do not belong to this run.
    for name in tables.FILES:
        (folder / name).unlink(missing_ok=True)
    for path in (path for kind in (THREATS, SEEDS) for path in (folder / kind).glob("*/*")):
        if path.name in (RUN, *tables.FILES):
            path.unlink()
    write_text(folder / "spec.yaml", yaml.safe_dump(spec.written(), sort_keys=False))
    if kind_of(spec):
        write_json(folder / RUN, _whole(shared))


def _whole(shared: _Shared) -> dict[str, Any]:
    """The manifest of a run under several threats or with several seeds."""
    spec = shared.spec
    plain = spec.model_dump(mode="json")
    named_parts = {kind_of(spec): places_in(spec)}
    return {"spec": plain, **named_parts, "environment": environment(shared.device)}


async def _attack(
    shared: _Shared, part: Part, lineup: Lineup, training: Sequence[Awaitable[None]]
) -> list[Report]:
    """Attack each defense in one part of a run, and note every step in the folder.

    training  of the models, where it is not done. What the folder held before is left as it is
              until all are trained.
    """
    view, folder, executor = part.view, shared.folder, shared.executor
    home = folder / part.place
    if note := Geometry(view.threat, frozen=shared.dataset.frozen).note:
        lineup = dataclasses.replace(lineup, notes=(*lineup.notes, note))
    # Commands on the results of one part have that one's lock.
    with alone_in(home, make=True) if part.place else nullcontext():
        record = _Record(folder, home, _manifest(shared, view, lineup, home), list(shared.roster))
        begun = [
            executor.begin(_rows(shared, part, lineup, label, record)) for label in shared.roster
        ]
        reports: list[Report] = []
        with abandoned(begun):
            async for _ in in_order(training):
                pass
            if training:
                _begin(shared)
            record.open()
            async for of_row in in_order(begun):
                reports += of_row
        find_left_out(reports, folder / CELLS, view.seed)
        manifest = record.manifest
        # As `read_run` has it, so that the page is the same when it is written anew.
        full = named(view, manifest).model_copy(update={"choose": shared.choice.choose})
        tables.write(home, reports, full, {"run": manifest})
        write_page(home, reports, Shown(full, manifest, shared.samples, shared.dataset.labels))
    return reports


async def _rows(
    shared: _Shared, part: Part, lineup: Lineup, label: str, record: "_Record"
) -> list[Report]:
    """The reports on a defense in one part of a run. One that may reject images has a second row,
    in which rejecting a perturbed image is not wrong."""
    sources, view = sources_of(lineup), part.view
    await shared.models.wait_for([label, *sources])
    target, peers = shared.models.trained[label], fetch(sources, shared.models.trained)
    reject = rejection_of(target.model)
    rows = {label: terms_of(shared.dataset, view, reject)}
    if reject is not None:
        rows[may_reject_name(label)] = terms_of(shared.dataset, view, reject, True)
    reports = []
    for name, terms in rows.items():
        settings = Settings(
            view.threat, view.mode, view.device, view.block, terms, shared.progress, part.name,
            shared.executor, view.certify,
        )  # fmt: skip
        try:
            report = await assessed(
                name, target.model, relabelled(shared.samples, target.model, view), lineup, peers,
                settings, lambda key: FolderCell(shared.folder / CELLS / key),
                identify_row(target.identity, shared.data), shared.dataset.classes,
                *record.of_row(label, name, target, terms, shared.say),
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        report.choice = shared.choice
        reports.append(report)
    return reports


def _manifest(shared: _Shared, view: RunSpec, lineup: Lineup, home: Path) -> dict[str, Any]:
    """The manifest of one part of a run, which has no rows yet; `home` is where its tables lie."""
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


class _Record:
    """How far one part of a run is, as run.json in its folder says.

    whole   the folder of the run that it is a part of.
    labels  of the defenses, in the order of the table.
    """

    def __init__(
        self, whole: Path, folder: Path, manifest: dict[str, Any], labels: Sequence[str]
    ) -> None:
        self.whole, self.folder, self.manifest, self._is_open = whole, folder, manifest, False
        self._rows: dict[str, list[dict[str, Any]]] = {label: [] for label in labels}

    def open(self) -> None:
        """Write what was measured from now on, and what was before."""
        self._is_open = True
        self._write()

    def _write(self) -> None:
        self.manifest["rows"] = [row for rows in self._rows.values() for row in rows]
        if self._is_open and self.manifest["rows"]:
            write_json(self.folder / RUN, self.manifest)

    def of_row(
        self, label: str, name: str, target: Trained, terms: Terms, say: Say
    ) -> tuple[Notify, Notify]:
        """Two functions that record how far the assessment of a defense, in a row of that name, is.

        Each brings the row in run.json up to date. The first also says what was measured; the
        second is called where something is under way.
        """
        assert target.folder is not None
        model = _relative(target.folder, self.folder, self.whole)
        row: dict[str, Any] = {"defense": name, "model": model}
        if terms.reject is not None:
            row |= {"reject": terms.reject, "may_reject": terms.may_reject}

        def began(report: Report, label_begun: str) -> None:
            row.update(
                flags=sorted(report.flags),
                cells=report.keys,
                errors=report.errors,
                inapplicable=report.inapplicable,
                after=report.after,
                notes=report.notes,
                begun={of: {"key": it.key, "after": it.after} for of, it in report.begun.items()},
            )
            if row not in self._rows[label]:
                self._rows[label].append(row)
            self._write()

        def notify(report: Report, measured: str) -> None:
            began(report, measured)
            say(f"{report.called}: {report.summary(measured)}")

        return notify, began


def _relative(path: Path, folder: Path, whole: Path) -> str:
    """The path of a model as the manifest in a folder has it, which belongs to a part of the run in
    the folder `whole`.

    It is relative if the model lies in that of the run, or in that of another run around it, so
    that these can be moved. It is absolute otherwise.
    """
    path, folder, whole = path.resolve(), folder.resolve(), whole.resolve()
    outer_runs = [parent for parent in whole.parents if (parent / RUN).exists()]
    inside = any(map(path.is_relative_to, (whole, *outer_runs)))
    return os.path.relpath(path, folder) if inside else str(path)
