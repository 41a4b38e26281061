"""Carries out a study that is a spec: a run at each point of its grid, one table, one picture.

SPEC          study.yaml
the runs      points/AXIS=VALUE,.../, of each seed too, and within each: train, predictions,
              unbounded
the table     sweep.csv (one row per number), sweep.md, sweep.png
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from benchmark.data.separation import inter_class_distance, log_volumes
from benchmark.data.sets import load_dataset
from benchmark.environment import Device, resolve_device
from benchmark.errors import UserError
from benchmark.executors import IN_PROCESS, Executor
from benchmark.folder_lock import alone_in
from benchmark.judge.records import write_text
from benchmark.models.others import check_fit
from benchmark.models.trained import load_saved
from benchmark.report.report import Report
from benchmark.run.run_folder import models_of, read_run
from benchmark.run.run_samples import samples_of
from benchmark.run.runner import Say, run
from benchmark.spec.components import BEST, NATURAL, SAVED, Component
from benchmark.spec.lineup import lineup_of
from benchmark.spec.registry import load_plugins
from benchmark.spec.roster import configured, enrol
from benchmark.spec.run_spec import RunSpec, read_values
from benchmark.studies.outputs import FIRST, gaps, mean_jacobian_norm
from benchmark.studies.study import Study
from benchmark.studies.sweep.sweep_shown import TEST, TRAIN, caption, draw, table
from benchmark.studies.sweep.sweep_spec import SweepSpec, make_sweep

SPEC = "study.yaml"
NAME = "sweep"
POINTS = "points"

# Other ways to attack the models of a point, and what each changes of its run.
_AGAIN: dict[str, dict[str, object]] = {
    TRAIN: {"split": TRAIN},
    "predictions": {"labels": "predictions"},
    "unbounded": {"bounded": False},
}


@dataclass(frozen=True)
class How:
    """How the runs of a study are carried out."""

    device: Device | None = None
    root: Path | None = None
    progress: bool = False
    say: Say = lambda line: None
    executor: Executor = IN_PROCESS


def sweep(spec: SweepSpec, folder: Path, how: How) -> Study:
    """Carry out a study in a folder. What its runs hold already is not measured again; gaps,
    Jacobians, distances and volumes are.

    Records have one row per number: a column per axis, the seed of several among them, `defense`
    (empty where it is of the data),
    `setting` (test, or what was changed), `measure`, `value` (NaN for an attack that failed), for
    shares of images `low` and `high` of their 95% interval, and `images`.

    Raises UserError, SavedModelError or TrainingError, each in one line; for what is wrong with the
    spec of any point before any work.
    """
    if how.device:
        spec = spec.model_copy(update={"run": spec.run | {"device": how.device}})
    if (folder / "run.json").exists():
        raise UserError(f"{folder} holds a run: name another folder")
    points = spec.points()
    _check(spec, points, how.root)
    with alone_in(folder, make=True):
        # From here on the folder is this study's: the tables of an earlier one would not be.
        for name in (NAME, "ranks"):
            for ending in ("md", "csv", "png"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
        write_text(folder / SPEC, yaml.safe_dump(spec.flat(), sort_keys=False))
        rows: list[dict[str, object]] = []
        reports: list[Report] = []
        for labels, run_spec in points.items():
            home = folder / POINTS / spec.at(labels)
            how.say(home.name)
            axes = dict(zip(spec.grid, labels, strict=True))
            by_setting = _runs(spec, run_spec, home, how)
            reports += [report for of_setting in by_setting.values() for report in of_setting]
            numbers = [*_accuracies(by_setting), *_others(spec, run_spec, home, how.root)]
            rows += [axes | number for number in numbers]
    records = pd.DataFrame(rows)
    about = caption(spec, records, reports)
    return Study(NAME, records, table(spec, records), about, draw(spec, records))


def load_sweep(folder: Path) -> tuple[SweepSpec, dict[tuple[str, ...], list[Report]]]:
    """The study that was carried out in a folder, to its end, and the reports of each point, with
    each seed. Raises UserError where there is none."""
    if not (folder / f"{NAME}.csv").exists():
        raise UserError(
            f"{folder} holds no finished study: name a folder that `study sweep` filled"
        )
    spec = make_sweep(read_values(folder / SPEC))
    return spec, {
        labels: read_run(folder / POINTS / spec.at(labels))[2] for labels in spec.points()
    }


def _check(spec: SweepSpec, points: Mapping[tuple[str, ...], RunSpec], root: Path | None) -> None:
    """Find before any work what would fail at some point later. Raises UserError."""
    for labels, run_spec in points.items():
        try:
            check_point(run_spec, root)
            if "log-volume" in spec.measures and run_spec.norm != "linf":
                raise UserError(
                    f"log-volume is of linf alone, not of {run_spec.norm}: leave it out"
                )
        except UserError as error:
            raise UserError(f"at {spec.at(labels)}: {error}") from error
    for run_spec in points.values():
        _check_images(run_spec, root, TRAIN in spec.measures)


def check_point(spec: RunSpec, root: Path | None) -> None:
    """Find before any work what would fail later in a run. Raises UserError."""
    load_plugins(spec.plugins)
    lineup_of(spec)
    check_fit(enrol(spec.defenses), load_dataset(spec.data, root))


def _check_images(spec: RunSpec, root: Path | None, train: bool) -> None:
    """Find before any work whether there are enough images to measure on, those of the training
    set too where `train`, and to train on. Raises UserError, also DataError."""
    dataset = load_dataset(spec.data, root)
    dataset.first(TEST, spec.samples)
    dataset.first(TRAIN, spec.samples if train else None)
    for component in spec.defenses:
        recipe = configured(component).recipe
        if recipe is not None and recipe.hold_out >= len(dataset.train.y):
            raise UserError(
                f"{component.label}: hold_out leaves nothing of the {len(dataset.train.y)} "
                f"training images of {dataset.name}: lower it"
            )


def _runs(spec: SweepSpec, run_spec: RunSpec, home: Path, how: How) -> dict[str, list[Report]]:
    """The reports of a point, by setting: those of the run that trains the models, and those of
    other runs that attack the same models in another setting."""
    reports = {TEST: run(run_spec, home, how.root, how.progress, how.say, how.executor)}
    saved = [
        Component(name=f"{SAVED}{path.absolute()}", options={}, given_label=label)
        for label, path in _models(home).items()
    ]
    for setting, changed in _AGAIN.items():
        if setting in spec.measures:
            how.say(setting)
            again = run_spec.model_copy(update={**changed, "defenses": saved})
            reports[setting] = run(
                again, home / setting, how.root, how.progress, how.say, how.executor
            )
    return reports


def _models(home: Path) -> dict[str, Path]:
    """The folder of each row's model of a run."""
    return models_of(home, read_run(home)[1])


def _accuracies(by_setting: Mapping[str, Iterable[Report]]) -> Iterator[dict[str, object]]:
    """The accuracies of a point, as records without its axes."""
    pairs = [(setting, report) for setting, reports in by_setting.items() for report in reports]
    for setting, report in pairs:
        singles = [] if report.mode == "cascade" else report.measured
        # In the other settings the clean images are the same, or right by definition.
        clean = [NATURAL] if setting in (TEST, TRAIN) else []
        for label in (*clean, *singles, *report.failed, *([BEST] if report.measured else [])):
            accuracy = report.accuracy(label)
            record: dict[str, object] = {
                "defense": report.name, "setting": setting, "measure": label,
                "value": math.nan, "images": report.total,
            }  # fmt: skip
            if accuracy is not None:
                low, high = accuracy.interval
                record |= {"value": accuracy.value, "low": low, "high": high}
            yield record


def _others(
    spec: SweepSpec, run_spec: RunSpec, home: Path, root: Path | None
) -> Iterator[dict[str, object]]:
    """What is measured of models and data themselves, on the images of each split, as records
    without the axes."""
    measures = set(spec.measures) & {"gap", "jacobian", "inter-class-distance", "log-volume"}
    if not measures:
        return
    dataset, device = load_dataset(run_spec.data, root), resolve_device(run_spec.device)
    for setting in (TEST, TRAIN) if TRAIN in spec.measures else (TEST,):
        images = samples_of(dataset, run_spec.model_copy(update={"split": setting}))
        x, y, n = images.x[:], images.y, len(images)
        for label, path in _models(home).items() if measures & {"gap", "jacobian"} else ():
            model = load_saved(path).model
            of_model: dict[str, object] = {"defense": label, "setting": setting}
            if "gap" in measures:
                mean = float(gaps(model, x, device).double().mean())
                yield of_model | {"measure": "gap", "value": mean, "images": n}
            if "jacobian" in measures:
                mean = mean_jacobian_norm(model, x, device)
                yield of_model | {"measure": "jacobian", "value": mean, "images": min(n, FIRST)}
        of_data = {"defense": "", "setting": setting, "images": n}
        if "inter-class-distance" in measures:
            distance = inter_class_distance(x.to(device), y.to(device))
            yield of_data | {"measure": "inter-class-distance", "value": distance}
        if "log-volume" in measures:
            volume = float(log_volumes(x.to(device), run_spec.threat).mean())
            yield of_data | {"measure": "log-volume", "value": volume}
