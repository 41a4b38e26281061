"""Robust accuracy of a run's models against the budget of the attacks.

Each budget is a run of its own, within the folder of the one that is studied: it resumes, and can
be verified. Source: RoBin, figures 5 and 7, tables 3 to 6.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attacks import HasArms, ThreatModel
from benchmark.analysis.learned_order import spec_of
from benchmark.columns import NONE, percent
from benchmark.environment import Device
from benchmark.errors import UserError, did_you_mean
from benchmark.executors import IN_PROCESS, Executor
from benchmark.judge.records import FolderCell
from benchmark.keys import identify_threat
from benchmark.models.trained import load_saved
from benchmark.report.captions import NORMS, images, on_order, on_settings
from benchmark.report.report import Report
from benchmark.run.run_folder import CELLS, models_of, read_manifest, read_run
from benchmark.run.runner import Say, run
from benchmark.spec.components import BEST, NATURAL, SAVED, SOURCE, Component
from benchmark.spec.lineup import choose
from benchmark.spec.registry import BASE, load_plugins, rest_of
from benchmark.spec.run_spec import RunSpec, make_spec, read_budgets
from benchmark.studies.study import Study, axes, flagged

# How the lines of attacks are drawn; that of best-attack is a broad one behind them.
_STYLES = ("o-", "s--", "^-.", "D:", "v-", "X--", "P-.", "*:")


@dataclass(frozen=True)
class How:
    """How the runs of a study are carried out; None stands for how the studied run was."""

    samples: int | None = None
    device: Device | None = None
    plugins: Sequence[Path] = ()
    root: Path | None = None
    progress: bool = False
    say: Say = lambda line: None
    executor: Executor = IN_PROCESS


def budgets(
    folder: Path,
    eps: str,
    how: How,
    attacks: Sequence[str] = (),
    suite: str | None = None,
    defenses: Sequence[str] = (),
) -> Study:
    """Robust accuracy of the models of a run, as they were trained, at each test budget of `eps`,
    "0.5,1" or "4/255,8/255" (figure 5, tables 3, 5 and 6). By default under the attacks of the run,
    and for all of its rows.

    Raises UserError, SavedModelError or TrainingError, each in one line, as the run itself does.
    """
    values, models = run_values(folder, how)
    if attacks or suite:
        values |= {"attacks": list(attacks), "suite": suite}
    return _sweep("budgets", folder, spec_of(values), models, defenses or models, eps, how)


def transfer(folder: Path, source: str, target: str, eps: str, base: str, how: How) -> Study:
    """Robust accuracy of one row of a run, RoBin, against what `base` finds on another, the
    multiclass model, untargeted and targeted, at each test budget of `eps`; for reference against
    the softmax attack, or the base itself where the target has no arms (figure 7, table 4).

    Raises UserError, also where both rows are one and where the base wraps another attack, and
    SavedModelError or TrainingError as `budgets` does.

    Unstated there: the base. The command's default is that of the suite robin-paper.
    """
    values, models = run_values(folder, how)
    if source == target:
        raise UserError(f"source and target are both {source!r}: name two rows of the run")
    for label in (source, target):
        _check_row(label, models)
    values |= {"attacks": [base], "suite": None, "mode": "table"}
    plain = make_spec(values)
    (inner,) = plain.attacks
    load_plugins(plain.plugins)
    entries = choose(None, plain.attacks, plain.threat).entries.values()
    if any(rest_of(type(entry.attack)) == BASE for entry in entries):
        raise UserError(f"base {base!r} wraps another attack: name one that does not, such as pgd")
    crafted, wrapped = inner.options | {SOURCE: source}, f"transfer:{inner.name}"
    named = [
        ("untargeted transfer", wrapped, crafted),
        ("targeted transfer", wrapped, crafted | {"targeted": True}),
        ("no transfer", inner.name, inner.options),
    ]
    if isinstance(load_saved(models[target]).model, HasArms):
        named[-1] = ("softmax", f"softmax:{inner.name}", inner.options)
    values["attacks"] = [
        Component(name=name, options=options, given_label=label) for label, name, options in named
    ]
    remark = f" Each attack is with {inner.label}; transfer is of its points on {source}."
    return _sweep("transfer", folder, make_spec(values), models, [target], eps, how, remark)


def run_values(folder: Path, how: How) -> tuple[dict[str, Any], dict[str, Path]]:
    """The values of a run's spec, changed as asked, and the folder of each row's model."""
    spec, manifest, _ = read_run(folder)
    changed = {
        "samples": how.samples or spec.samples,
        "device": how.device or spec.device,
        "plugins": [*spec.plugins, *how.plugins],
    }
    models = {label: home.absolute() for label, home in models_of(folder, manifest).items()}
    return spec.model_dump(mode="json") | changed, models


def _check_row(label: str, models: Mapping[str, Path]) -> None:
    if label not in models:
        hint = did_you_mean(label, models, f"it has {', '.join(models)}")
        raise UserError(f"the run has no row {label!r}: {hint}")


def _sweep(
    name: str,
    folder: Path,
    spec: RunSpec,
    models: Mapping[str, Path],
    chosen: Iterable[str],
    eps: str,
    how: How,
    remark: str = "",
) -> Study:
    """The attacks of a spec on the chosen models at each budget, as a study."""
    texts = read_budgets(spec.norm, eps)
    runs = runs_at(name, folder, spec, models, chosen, texts, how)
    rows = [row for value, reports in runs.items() for row in _rows(value, reports)]
    if not rows:
        raise UserError("none of the attacks applies to these models: name others")
    records = pd.DataFrame(rows)
    caption = _caption(name, spec, list(runs.values())) + remark + _rising(records)
    return Study(name, records, _table(records, texts), caption, _draw(records, spec.norm))


def runs_at(
    name: str,
    folder: Path,
    spec: RunSpec,
    models: Mapping[str, Path],
    chosen: Iterable[str],
    texts: Mapping[float, str],
    how: How,
) -> dict[float, list[Report]]:
    """The reports on the chosen models at each budget, of which `texts` are what the user wrote.
    The run at a budget lies in a folder of its own, within one that has the study's name."""
    for label in chosen:
        _check_row(label, models)
    saved = {label: f"{SAVED}{home}" for label, home in models.items()}
    # Rows that are left out are still there to craft points on.
    elsewhere = {label: name for label, name in saved.items() if label not in chosen}
    changed = {
        "defenses": [
            Component(name=saved[label], options={}, given_label=label)
            for label in dict.fromkeys(chosen)
        ],
        "attacks": [_sourced(attack, elsewhere) for attack in spec.attacks],
    }
    runs = {}
    for value, text in texts.items():
        at_budget = spec.model_copy(update=changed | {"eps": value})
        how.say(f"eps {text}")
        home = folder / name / f"eps-{value:g}"
        _lend(folder, home, at_budget.threat)
        runs[value] = run(at_budget, home, how.root, how.progress, how.say, how.executor)
    return runs


def _lend(folder: Path, home: Path, threat: ThreatModel) -> None:
    """Give a run at one budget what the studied run measured that is true of it, so that nothing is
    measured twice: the same files, under two names where the disk has that."""
    studied = folder / read_manifest(folder).get(CELLS, CELLS)
    wanted = identify_threat(threat)
    for note in studied.glob("*/cell.json"):
        identity = FolderCell(note.parent).note.get("identity", {})
        if identity.get("threat", wanted) != wanted:
            continue
        target = home / CELLS / note.parent.name
        if target.exists():
            continue
        target.mkdir(parents=True)
        for file in sorted(note.parent.iterdir()):
            try:
                os.link(file, target / file.name)
            except OSError:
                shutil.copyfile(file, target / file.name)


def _sourced(attack: Component, elsewhere: Mapping[str, str]) -> Component:
    """The attack, with the folder of a row in place of its label where it crafts its points on that
    row; the label of the attack stays."""
    home = elsewhere.get(attack.options.get(SOURCE, ""))
    if home is None:
        return attack
    options = attack.options | {SOURCE: home}
    return Component(name=attack.name, options=options, given_label=attack.label)


def _rows(eps: float, reports: Iterable[Report]) -> Iterator[dict[str, object]]:
    """The accuracies at one budget; NaN where an attack failed."""
    for report in reports:
        single = [] if report.mode == "cascade" else report.attacks
        labels = [label for label in single if label not in report.inapplicable]
        for label in (*labels, BEST) if report.measured or report.failed else ():
            accuracy = report.accuracy(label)
            yield {
                "defense": report.name,
                "attack": label,
                "eps": eps,
                "natural": report.natural,
                "accuracy": accuracy.value if accuracy else np.nan,
            }


def _lines(records: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Each defense and attack, with its records from the smallest budget up."""
    groups = records.groupby(["defense", "attack"], sort=False)
    return [(str(defense), str(attack), rows) for (defense, attack), rows in groups]


def _table(records: pd.DataFrame, texts: Mapping[float, str]) -> pd.DataFrame:
    """A line for each defense and attack, a column for each budget, as it was written."""
    lines = []
    for defense, attack, rows in _lines(records):
        row = {"defense": defense, "attack": attack, NATURAL: percent(rows["natural"].iloc[0])}
        accuracies = dict(zip(rows["eps"], rows["accuracy"], strict=True))
        for eps, text in texts.items():
            share = accuracies.get(eps, np.nan)
            unknown = "error" if eps in accuracies else NONE
            row[f"eps {text}"] = unknown if np.isnan(share) else percent(share)
        lines.append(row)
    return pd.DataFrame(lines)


def _caption(name: str, spec: RunSpec, runs: Sequence[Sequence[Report]]) -> str:
    first = runs[0]
    text = on_settings(spec, first[0]) + (
        f"Accuracy in % over {images(first[0], spec)}, natural and "
        f"within each {NORMS[spec.norm]} eps, of the models as the run trained them. A sample "
        "counts as robust if it is classified correctly and the attack of the line does not break "
        "it; best-attack: if no attack breaks it. Each eps is a run of its own, with its records "
        f"and notes, in {name}/."
    )
    text += on_order(first, "line")
    for report in first:
        if report.inapplicable:
            text += f" Not applicable to {report.name}: {', '.join(report.inapplicable)}."
    return text + flagged(report for reports in runs for report in reports)


def _rising(records: pd.DataFrame) -> str:
    """What a caption says of attacks that break fewer samples within a larger budget, though all
    points within the smaller one lie in it too."""
    rising = [
        f"{attack} on {defense}"
        for defense, attack, rows in _lines(records)
        if rows["accuracy"].dropna().diff().max() > 0
    ]
    return f" Too weak at some larger eps: {', '.join(rising)}." if rising else ""


def _draw(records: pd.DataFrame, norm: str) -> Any:
    """Accuracy against the budget: a colour for each defense, a style of line for each attack."""
    lines = _lines(records)
    defenses = list(records["defense"].unique())
    attacks = [attack for attack in records["attack"].unique() if attack != BEST]
    figure, plot = axes(4.5 + 0.2 * len(lines))
    for defense, attack, rows in lines:
        colour, label = f"C{defenses.index(defense)}", f"{defense}: {attack}"
        eps = [0.0, *rows["eps"]]
        shares = [100 * share for share in (rows["natural"].iloc[0], *rows["accuracy"])]
        if attack == BEST:
            plot.plot(eps, shares, color=colour, label=label, linewidth=7, alpha=0.25)
        else:
            style = _STYLES[attacks.index(attack) % len(_STYLES)]
            plot.plot(eps, shares, style, color=colour, label=label, markersize=5)
    plot.set(xlabel=f"eps ({norm})", ylabel="robust accuracy (%)", xlim=(0, None), ylim=(0, 102))
    figure.legend(loc="outside lower center", fontsize="small")
    return figure
