"""Robustness against the number of classes that a model is trained on (RoBin, section 3)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from attacks import ThreatModel
from benchmark.data.dataset import Dataset
from benchmark.data.sets import load_dataset
from benchmark.data.variants import order, other
from benchmark.errors import UserError
from benchmark.executors import IN_PROCESS, Executor
from benchmark.folder_lock import alone_in
from benchmark.judge.evaluator import Samples
from benchmark.judge.records import FolderCell
from benchmark.keys import identify_row, identify_side
from benchmark.models.obtain import obtained
from benchmark.models.trained import Trained
from benchmark.report.report import Report
from benchmark.run.assess import Settings, assessed
from benchmark.run.run_samples import choice_of, identify_samples, samples_of, terms_of
from benchmark.run.runner import Say
from benchmark.spec.components import BEST, NATURAL, Component
from benchmark.spec.lineup import Lineup, choose
from benchmark.spec.registry import load_plugins
from benchmark.spec.roster import configured
from benchmark.spec.run_spec import RunSpec, read_budgets
from benchmark.studies.classes.classes_shown import caption, draw, table
from benchmark.studies.classes.first_against_rest import FirstAgainstRest
from benchmark.studies.study import Study
from defenses import Derived

Distances = NDArray[np.float64]
Side = NDArray[np.bool_]

# Where a model is right on less than this share of the clean images of one side, it hardly ever
# answers that side: with many classes, the first is rare enough to be ignored.
_LEAST = 0.1
_ONE_SIDED = {
    "one-sided": f"right on under {_LEAST:.0%} of one side's clean images: it hardly ever answers "
    "that side, and its accuracies say little"
}


@dataclass(frozen=True, eq=False)
class _Measured:
    """What became of the n samples of one model.

    rows     of the records: `accuracy` over all, and on each side apart, `first` and `rest`.
    closest  (n,) the distance of the closest misclassified point: 0 where a sample is misclassified
             clean, infinite where none is known.
    rest     the share of samples that are not of the first class.
    flags    code to explanation.
    """

    defense: str
    classes: int
    rows: list[dict[str, Any]]
    closest: Distances
    rest: float
    flags: dict[str, str]


def classes(
    spec: RunSpec,
    counts: str,
    orders: int,
    budgets: str,
    folder: Path,
    root: Path | None,
    progress: bool,
    say: Say,
    executor: Executor = IN_PROCESS,
) -> Study:
    """Robust accuracy, at each of `budgets`, of models that are trained to tell more and more of
    the classes of the same data apart (figures 1, 3 and 4).

    For each J of `counts`, such as "2,4,10", MODEL[J] is trained on the classes 1, ..., J - 1 and
    OTHER[J], which holds all from the J-th on. What all these models can tell is measured: the
    first class against the rest. That is repeated for `orders` random orders of the classes.

    The first defense of the spec is trained against its threat, and attacked. A second one is only
    measured clean, as the models without adversarial examples of figure 4. Models and records are
    in `folder`, and what it holds is not made again: orders, numbers and budgets can be added.

    Raises UserError for what cannot be studied, and where an attack fails or does not apply;
    SavedModelError and TrainingError as `obtained` does.

    Differs from the source: best-attack at an eps is over all points found, at any budget, so that
    it never rises with eps.
    """
    load_plugins(spec.plugins)
    texts = read_budgets(spec.norm, budgets)
    lineup = choose(spec.suite, spec.attacks, spec.threat)
    _check(spec, lineup)
    base = load_dataset(spec.data, root)
    numbers = _numbers(counts, base.classes)
    job = _Job(spec, base, texts, folder, executor.device(spec.device), progress, say, executor)
    attacked = spec.defenses[0]
    with alone_in(folder, make=True):
        models = [
            job.study(number, dataset, defense, lineup if defense is attacked else Lineup({}))
            for number, dataset in _datasets(base, orders, numbers)
            for defense in spec.defenses
        ]
    records = pd.DataFrame([row for model in models for row in model.rows])
    rest = float(np.mean([model.rest for model in models]))
    distances = {}
    if any(entry.attack.facts.minimises for entry in lineup.entries.values()):
        of_attacked = [model for model in models if model.defense == attacked.label]
        distances = {
            end: np.concatenate([model.closest for model in of_attacked if model.classes == end])
            for end in (numbers[0], numbers[-1])
        }
    about = caption(
        spec, base.name, len(models[0].closest), choice_of(base, spec), orders, rest, distances,
        [model.flags for model in models],
    )  # fmt: skip
    figure = draw(records, spec, texts, rest, distances)
    return Study("classes", records, table(records, texts), about, figure)


def _numbers(counts: str, most: int) -> list[int]:
    """The numbers of classes that a user wrote, ascending. Raises UserError where one is none."""
    known = {str(count): count for count in range(2, most + 1)}
    try:
        return sorted({known[count.strip()] for count in counts.split(",")})
    except KeyError as error:
        raise UserError(f"classes are 2 to {most}, as in 2,{most}, not {counts!r}") from error


def _datasets(base: Dataset, orders: int, numbers: Sequence[int]) -> Iterator[tuple[int, Dataset]]:
    """The data of each model, with the number of its order of the classes."""
    for number in range(1, orders + 1):
        for count in numbers:
            yield number, other(order(base, str(number)), str(count))


def _check(spec: RunSpec, lineup: Lineup) -> None:
    """Raises UserError where a defense or an attack is tied to models of a fixed set of classes."""
    for component in spec.defenses:
        member = configured(component)
        if member.recipe is None or isinstance(member.recipe, Derived):
            raise UserError(
                f"defense {component.label!r}: a model is trained for each number of classes, so "
                "name one that is neither saved nor made of others"
            )
    for label, entry in lineup.entries.items():
        if entry.attack.facts.sources:
            raise UserError(f"attack {label!r}: its other model does not know the binary task")


@dataclass(frozen=True)
class _Job:
    """How models are trained and measured; `budgets` are eps, ascending, each with its text. The
    same images of `base`, the data with its classes as they are, are measured for all of them."""

    spec: RunSpec
    base: Dataset
    budgets: Mapping[float, str]
    folder: Path
    device: torch.device
    progress: bool
    say: Say
    executor: Executor

    def study(
        self, number: int, dataset: Dataset, component: Component, lineup: Lineup
    ) -> _Measured:
        """Train a defense on one order of the classes and measure it. Raises UserError where it
        cannot be measured, and where an attack fails."""
        name = f"order {number}, {dataset.classes} classes, {component.label}"
        self.say(f"{name}: getting the model, which is trained unless it was before")
        model = self.executor.run(
            obtained(
                configured(component), dataset, self.spec.training_threat, self.spec.seed,
                self.folder / "defenses", self.device, self.progress, {}, self.executor,
            )
        )  # fmt: skip
        samples = samples_of(dataset, self.spec, self.base)
        first = samples.y.numpy() == 0
        reached, flags = self._attacked(name, model, dataset, samples, first, lineup)
        closest = np.min(list(reached.values()), axis=0)
        if lineup.entries:
            reached |= {(BEST, budget): closest for budget in self.budgets}
        rows: list[dict[str, Any]] = [
            {
                "order": number, "classes": dataset.classes, "defense": component.label,
                "attack": label, "eps": eps, "accuracy": _share(distance > eps),
                "first": _share(distance[first] > eps), "rest": _share(distance[~first] > eps),
            }
            for wanted in (NATURAL, *lineup.entries, BEST)
            for (label, eps), distance in reached.items()
            if label == wanted
        ]  # fmt: skip
        accuracies = [
            f"{row['attack']} {row['accuracy']:.2%}"
            + (f" at eps {self.budgets[row['eps']]}" if row["eps"] else "")
            for row in rows
            if row["attack"] in (NATURAL, BEST)
        ]
        self.say(f"{name}: {', '.join(accuracies)}")
        # On one side alone, being right less often than by chance says little.
        flags.pop("chance", None)
        if rows[0]["first"] < _LEAST or rows[0]["rest"] < _LEAST:
            flags |= _ONE_SIDED
            # A model that always gives one answer withstands every eps, without hiding a gradient.
            flags.pop("large-eps", None)
        return _Measured(
            component.label, dataset.classes, rows, closest, 1 - float(first.mean()), flags
        )

    def _attacked(
        self,
        name: str,
        model: Trained,
        dataset: Dataset,
        samples: Samples,
        first: Side,
        lineup: Lineup,
    ) -> tuple[dict[tuple[str, float], Distances], dict[str, str]]:
        """The distances (n,) of the closest misclassified points under each label and budget, and
        the flags of all reports. Each side of the task is attacked on its own."""
        reached: dict[tuple[str, float], Distances] = {}
        flags: dict[str, str] = {}
        for attacks, eps, budgets in self._rounds(lineup):
            for side in (first, ~first):
                if not side.any():
                    continue
                report = self._assess(name, model, dataset, samples, side, attacks, eps)
                flags |= report.flags
                for label in (NATURAL, *report.attacks):
                    series = [NATURAL, *report.after.get(label, ()), label]
                    distance = report.closest(series).distance
                    for budget in [0.0] if label == NATURAL else budgets:
                        reached.setdefault((label, budget), np.zeros(len(first)))[side] = distance
        return reached, flags

    def _rounds(self, lineup: Lineup) -> Iterator[tuple[Lineup, float, Sequence[float]]]:
        """Attacks, the eps that they run within, and the budgets that their points speak of: once
        for those that minimise, and for the others at each budget."""
        entries, budgets = lineup.entries, list(self.budgets)
        minimising = {
            label: entry for label, entry in entries.items() if entry.attack.facts.minimises
        }
        others = {label: entry for label, entry in entries.items() if label not in minimising}
        if minimising or not entries:
            yield Lineup(minimising), self.spec.eps, budgets
        if others:
            yield from ((Lineup(others), budget, [budget]) for budget in budgets)

    def _assess(
        self,
        name: str,
        model: Trained,
        dataset: Dataset,
        samples: Samples,
        side: Side,
        lineup: Lineup,
        eps: float,
    ) -> Report:
        """Attack the samples on one side of the task. Those of the first class may become any other
        (untargeted, in the paper), and are attacked on the model as it is, because two logits would
        hide which of the others is near. The rest must become the first class (targeted)."""
        spec, task = self.spec, model.model
        of_side = Samples(samples.x[side], samples.y[side], samples.number[side])
        row = identify_row(model.identity, identify_samples(dataset, spec, self.base))
        if of_side.y.any():
            task = FirstAgainstRest(task).eval()
            of_side = replace(of_side, y=torch.ones_like(of_side.y))
            identity = identify_side(row, "rest", task)
        else:
            identity = identify_side(row, "first", None)
        settings = Settings(
            ThreatModel(spec.norm, eps), "table", spec.device, spec.block, terms_of(dataset, spec),
            self.progress, executor=self.executor,
        )  # fmt: skip
        work = assessed(
            name, task, of_side, lineup, {}, settings,
            lambda key: FolderCell(self.folder / "cells" / key), identity,
        )  # fmt: skip
        report = self.executor.run(work)
        for label in [*report.errors, *report.inapplicable]:
            raise UserError(f"{name}: {report.summary(label)}")
        return report


def _share(which: Side) -> float:
    return float(which.mean()) if len(which) else np.nan
