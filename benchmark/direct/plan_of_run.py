"""What a run will take, before it begins: its tasks, passes, hours and memory."""

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import defenses
from benchmark.columns import NONE, frame_markdown
from benchmark.data.dataset import Dataset, Split
from benchmark.direct.inspect_model import inspected
from benchmark.direct.inspection import Inspection, in_bytes, told
from benchmark.direct.makespan import Part, RowOfWork, least, makespan
from benchmark.direct.request import Request, options_of
from benchmark.environment import resolve_device
from benchmark.executors import IN_PROCESS
from benchmark.executors.executor import silent
from benchmark.judge.evaluator import Samples
from benchmark.judge.examination import examine
from benchmark.judge.records import write_json
from benchmark.judge.surroundings import undisturbed
from benchmark.models.obtain import Training
from benchmark.models.others import fetch, parts_of, sources_of
from benchmark.models.trained import Trained
from benchmark.run.assess import PROVEN_AT_ONCE
from benchmark.run.geometry import Geometry
from benchmark.run.looking import unprovable
from benchmark.run.run_samples import samples_of
from benchmark.run.runner import checked
from benchmark.spec.components import CERTIFIED, NATURAL, SAVED
from benchmark.spec.lineup import Lineup
from benchmark.spec.roster import Member, Roster
from benchmark.spec.run_spec import RunSpec
from defenses.offers import rejection_of

Say = Callable[[str], None]

# What the plan of a run is called in its folder.
_KEPT = "plan.json"

# Of how many images the labels are asked from a model itself.
_LABELLED = 256

# How many seconds of a training are timed, from what it tells first, since its first steps take
# longer.
_TIMED = 3.0


def _silent(line: str) -> None:
    del line


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    rows     what there is to do for each row, with the seconds that it takes.
    memory   bytes that a worker takes, roughly, at most over all rows.
    workers  how many work at once.
    untrained  the rows that are not trained yet, whose attacks may take longer.
    """

    rows: Sequence[RowOfWork]
    memory: int
    workers: int
    untrained: Sequence[str]

    @property
    def work(self) -> float:
        """The seconds that one worker would take."""
        return sum(row.work for row in self.rows)

    @property
    def seconds(self) -> float:
        """The seconds that the workers will take together."""
        return makespan(self.rows, self.workers)

    @property
    def least(self) -> float:
        """The seconds that no order of the work can be below."""
        return least(self.rows, self.workers)

    def keep(self, folder: Path) -> None:
        """Keep in the folder of a run what it will take, for `compared`."""
        write_json(folder / _KEPT, {"seconds": self.seconds, "workers": self.workers})

    def __str__(self) -> str:
        lines = []
        for row in self.rows:
            if row.training:
                lines.append((row.name, "training", "1", NONE, told(row.training)))
            lines += [
                (
                    row.name, f"{part.label}, at most" if part.most else part.label,
                    str(part.tasks), f"{part.passes:.0f}" if part.passes else NONE,
                    told(part.tasks * part.seconds),
                )
                for part in row.parts
            ]  # fmt: skip
        frame = pd.DataFrame(
            lines, columns=["defense", "work", "tasks", "passes per image", "time of one worker"]
        )
        tasks = sum(sum(part.tasks for part in row.parts) + bool(row.training) for row in self.rows)
        who = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        about, shortest = "about", f" (no order takes less than {told(self.least)})"
        if any(part.most for row in self.rows for part in row.parts):
            about, shortest = "at most about", ""
        summary = (
            f"{tasks} tasks, {about} {told(self.work)} of work: "
            f"{about} {told(self.seconds)} with {who}{shortest}, "
            f"about {in_bytes(self.memory)} of memory each."
        )
        notes = [summary, "What the folder of the run holds already is not taken off."]
        if self.untrained:
            notes.append(
                f"Not trained yet: {', '.join(self.untrained)}. Attacks were tried on these as "
                "they are before their training; on a robust model they go on longer."
            )
        return "\n\n".join([frame_markdown(frame), " ".join(notes)])


def compared(folder: Path, seconds: float) -> str:
    """What a run took beside what was planned; empty where nothing was."""
    try:
        planned = json.loads((folder / _KEPT).read_text())
        before, workers = float(planned["seconds"]), int(planned["workers"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    who = "1 worker" if workers == 1 else f"{workers} workers"
    return f"Took {told(seconds)}; planned: {told(before)} with {who}"


def plan(spec: RunSpec, folder: Path, root: Path | None, workers: int, say: Say) -> Plan:
    """Look at each model of a spec, and reckon what a run in a folder will take.

    Models that are not trained are timed over a few steps of their training, and attacked as they
    are before it. Raises what the run would raise for what is wrong with the spec.
    """
    lineups, roster, dataset = checked(spec, root)
    rows, memory = list[RowOfWork](), 0
    # Each seed has models of its own, and several threats share them.
    with_seed: dict[int, list[tuple[RunSpec, Lineup]]] = {}
    for view, lineup in zip(spec.views, lineups, strict=True):
        with_seed.setdefault(view.seed, []).append((view, lineup))
    for seed, views in with_seed.items():
        named = f" (seed {seed})" if spec.seeds else ""
        of_seed = _OfSeed(views, roster, dataset, folder, named, say)
        rows += map(of_seed.row, roster.values())
        memory = max(memory, of_seed.memory)
    return Plan(rows, memory, workers, [row.name for row in rows if row.training])


class _OfSeed:
    """The models of a run with one seed, as they are, and what their rows will take.

    views   what they are attacked in, with the attacks.
    named   what comes behind the names of the rows.
    memory  bytes that a worker takes, roughly, at most over the rows that were looked at.
    """

    def __init__(
        self,
        views: Sequence[tuple[RunSpec, Lineup]],
        roster: Roster,
        dataset: Dataset,
        folder: Path,
        named: str,
        say: Say,
    ) -> None:
        self.views, self.roster, self.dataset, self.named = views, roster, dataset, named
        self.say, self.memory = say, 0
        spec = views[0][0]
        self.samples = samples_of(dataset, spec)
        self.models: dict[str, Trained] = {}
        self.training: dict[str, float] = {}
        for label, member in roster.items():
            say(f"{label}{named}: looking at the model")
            found = _model(member, dataset, spec, folder, self.models)
            self.models[label], self.training[label] = found

    def row(self, member: Member) -> RowOfWork:
        """What there is to do for one defense."""
        label = member.label
        self.say(f"{label}{self.named}: trying the attacks")
        model, training, parts = self.models[label].model, self.training[label], list[Part]()
        for view, lineup in self.views:
            # Before its training a model is right by chance, and after it as often as is not known:
            # all that it says is taken for right.
            is_right = training or view.labels == "predictions"
            given = _as_predicted(model, self.samples) if is_right else self.samples
            request = _request(label, view, lineup, self.dataset, given, self.models)
            seen = inspected(model, request, len(self.samples), self.dataset.classes, _silent)
            provable = view.certify is not None and _is_provable(model, request)
            place = f"{view.place} " if len(self.views) > 1 else ""
            parts += _parts(seen, view, lineup, place, provable)
            self.memory = max(self.memory, seen.memory)
        made_of = [name + self.named for name in member.made_of.values() if name in self.roster]
        return RowOfWork(f"{label}{self.named}", training, parts, made_of)


@torch.no_grad()
@undisturbed()
def _as_predicted(model: nn.Module, samples: Samples) -> Samples:
    """The first samples, with the labels that a model gives them."""
    x = samples.x[:_LABELLED]
    labels = copy.deepcopy(model).eval().cpu()(x).argmax(1)
    return Samples(x, labels, samples.number[:_LABELLED])


def _model(
    member: Member,
    dataset: Dataset,
    spec: RunSpec,
    folder: Path,
    models: dict[str, Trained],
) -> tuple[Trained, float]:
    """A model as it is, trained or not, and the seconds that its training takes."""
    if member.folder is not None:
        return fetch([member.component.name], {})[member.component.name], 0.0
    parts = parts_of(member, models)
    training = Training(
        member, dataset, spec.training_threat, spec.seed, resolve_device(spec.device), parts,
        IN_PROCESS.threads,
    )  # fmt: skip
    kept = training.kept(training.home(folder / "defenses"))
    if kept is not None:
        return kept, 0.0
    recipe = training.recipe
    seconds = _training_seconds(training, dataset.train) if recipe.is_fitted else 0.0
    return Trained(training.model.eval(), {}), seconds


class _EnoughError(Exception):
    """A training was timed."""


def _training_seconds(training: Training, split: Split) -> float:
    """How long a training takes, by its first seconds."""
    told: list[tuple[float, float]] = []

    def report(state: defenses.Progress) -> None:
        told.append((time.perf_counter(), state.epoch - 1 + state.step / state.steps))
        if told[-1][0] - told[0][0] > _TIMED:
            raise _EnoughError

    began = time.perf_counter()
    try:
        defenses.train(
            training.recipe, copy.deepcopy(training.model), split.x[:], split.y,
            threat=training.threat, seed=training.seed, device=training.device, report=report,
        )  # fmt: skip
    except _EnoughError:
        (first, before), (last, after) = told[0], told[-1]
        return (last - first) / (after - before) * training.recipe.epochs
    return time.perf_counter() - began


def _request(
    label: str,
    view: RunSpec,
    lineup: Lineup,
    dataset: Dataset,
    samples: Samples,
    models: dict[str, Trained],
) -> Request:
    """What is asked about a model under one threat, as `inspect` takes it."""
    options = options_of(
        mode="table", seed=view.seed, device=view.device, precision=view.precision,
        block=view.block, draws=view.draws, expectation=view.expectation,
        reject=rejection_of(models[label].model),
    )  # fmt: skip
    sources = fetch(
        [name for name in sources_of(lineup) if name in models or name.startswith(SAVED)], models
    )
    known = {
        name: entry
        for name, entry in lineup.entries.items()
        if set(entry.attack.facts.sources) <= sources.keys()
    }
    geometry = Geometry(view.threat, frozen=dataset.frozen)
    return Request(label, samples, {}, geometry, replace(lineup, entries=known), sources, options)


def _is_provable(model: nn.Module, request: Request) -> bool:
    """Whether bounds pass a model, under the threat that is asked about."""
    settings, x = request.settings(), request.samples.x
    subject = examine(model, x[: settings.block], resolve_device(settings.device), settings.terms)
    return not unprovable(IN_PROCESS.hold(subject), settings.threat, x[:1], silent)


def _parts(
    seen: Inspection, view: RunSpec, lineup: Lineup, place: str, provable: bool
) -> list[Part]:
    """What there is to do with the samples of a row, after what `inspect` saw of its model; bounds
    pass it if it is `provable`."""
    blocks = math.ceil(seen.samples / view.block)
    judging = seen.samples * seen.judged * seen.cost.forward
    natural = Part(f"{place}{NATURAL}", blocks, judging / blocks, seen.judged)
    parts = [natural]
    for label, entry in lineup.entries.items():
        trial = seen.trials.get(label)
        if trial is None or trial.line:
            continue  # it does not apply to the model, or fails on it
        after = [natural.label]
        if view.mode == "cascade":
            after = [part.label for part in parts]
        known = {part.label for part in parts}
        after += [name for name in (f"{place}{other}" for other in entry.after) if name in known]
        passes = trial.forwards + trial.backwards
        parts.append(Part(f"{place}{label}", blocks, trial.seconds / blocks, passes, after))
    if provable and view.certify is not None and view.certify.method == "branch":
        # All its time for each sample, which most do not need.
        tasks = math.ceil(seen.samples / PROVEN_AT_ONCE)
        each = seen.samples * view.certify.seconds / tasks
        after = [part.label for part in parts]
        parts.append(Part(f"{place}{CERTIFIED}", tasks, each, 0, after, most=True))
    return parts
