"""How reports are printed and written: terminal, Markdown, CSV and JSON."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmark.judge.records import write_json, write_text
from benchmark.report.accuracy import work
from benchmark.report.curves import draw
from benchmark.report.report import Report
from benchmark.spec.components import BEST, CERTIFIED, NATURAL
from benchmark.spec.run_spec import RunSpec

# How norms are printed.
NORMS = {"l2": "L2", "linf": "L-infinity"}

JSON = "table.json"
_STUDIES = ("lipschitz", "budgets", "transfer", "coherence", "confidence")
# Of a run as it is: another run in the same folder removes them first.
FILES = (
    *("table.md", "table.csv", JSON, "curves.png"),
    *(f"{study}.{ending}" for study in _STUDIES for ending in ("md", "csv", "png")),
)

_DETAILS = {
    "defense": "defense",
    "attack": "attack",
    "accuracy": "robust % [95% interval]",
    "attacked": "attacked",
    "broken": "broken",
    "median distance": "median distance",
    "mean distance": "mean distance",
    "unbroken, left out of distance": "left out",
    "forwards": "forwards",
    "backwards": "backwards",
    "seconds": "seconds",
}

# Samples named in a line on contradictions.
_SHOWN = 10

_DIGITS = {
    "attacked": 0,
    "broken": 0,
    "median distance": 3,
    "mean distance": 3,
    "left out": 0,
    "forwards": 1,
    "backwards": 1,
    "seconds": 1,
}


def wide(reports: Sequence[Report]) -> pd.DataFrame:
    """One row per defense, in %: natural, each attack, certified where some defense offers a
    certificate, best-attack with its interval, flags."""
    attacks = list(dict.fromkeys(label for report in reports for label in report.attacks))
    if all(report.mode == "cascade" for report in reports):
        attacks = []
    certified = [CERTIFIED] if any(CERTIFIED in report.keys for report in reports) else []
    rows = []
    for report in reports:
        best = report.accuracy(BEST)
        row: dict[str, str] = {"defense": report.name, NATURAL: f"{100 * report.natural:.1f}"}
        for label in [*attacks, *certified]:
            accuracy = report.accuracy(label)
            unknown = "error" if label in report.errors else "-"
            row[label] = f"{100 * accuracy.value:.1f}" if accuracy else unknown
        row[f"{BEST} [95% interval]"] = str(best or ("error" if report.failed else "-"))
        row["flags"] = ", ".join(report.flags) or "-"
        rows.append(row)
    return pd.DataFrame(rows)


def details(reports: Sequence[Report]) -> pd.DataFrame:
    """One row per defense and attack: see `Report.to_frame`."""
    return pd.DataFrame([row for report in reports for row in _rows(report)])


def _rows(report: Report) -> Iterator[dict[str, object]]:
    certified = [CERTIFIED] if CERTIFIED in report.keys else []
    for label in [NATURAL, *report.attacks, *certified, BEST]:
        accuracy = report.accuracy(label)
        row: dict[str, object] = {"defense": report.name, "attack": label}
        if accuracy:
            low, high = accuracy.interval
            row |= {"accuracy": accuracy.value, "low": low, "high": high}
        if label in report.frames and label != NATURAL:
            row |= work(report.frames[label])
        if label == CERTIFIED or "attacked" in row:
            row["seconds"] = report.seconds[label]
        if label in report.errors:
            row["error"] = report.errors[label]
        if label in report.inapplicable:
            row["does not apply"] = report.inapplicable[label]
        yield row


def caption(reports: Sequence[Report], spec: RunSpec | None) -> str:
    """What the numbers are over."""
    first = reports[0]
    norm = NORMS[first.threat.norm]
    labels = dict.fromkeys(label for report in reports for label in report.measured)
    attacks = ", ".join(labels) or "none yet"
    images = f"{first.total} {f'{spec.data} {spec.split} ' if spec else ''}images"
    text = f"Accuracy in % over all {images}, {norm} eps {first.threat.eps:g}. "
    text += on_settings(spec) if spec else ""
    text += (
        "A sample counts as robust if it is classified correctly and the attack of the column does "
        "not break it; best-attack: if no attack breaks it (worst case per sample over "
        f"{attacks}). Samples that are misclassified clean count as broken in every column and are "
        "not attacked."
    )
    if any(CERTIFIED in report.keys for report in reports):
        within = {"l2": "eps", "linf": "eps * sqrt(dimensions) in L2"}[first.threat.norm]
        text += (
            " certified: if it is classified correctly and the defense's own certificate proves "
            f"that nothing within {within} changes that."
        )
    return text + on_order(reports, "column")


def on_settings(spec: RunSpec) -> str:
    """What a caption says of settings that change what its words mean."""
    text = ""
    if not spec.bounded:
        text += "Perturbed images may leave [0, 1]. "
    if spec.labels == "predictions":
        text += (
            "Correct is, for each model, what it says of the clean image itself (robustness with "
            "respect to predictions). "
        )
    return text


def on_order(reports: Sequence[Report], place: str) -> str:
    """What a caption says of attacks that saw only what others left; `place` is where an attack has
    its accuracy."""
    if reports[0].mode == "cascade":
        return (
            " Cascade: each attack saw only what the ones before it left, so there is no "
            f"{place} per attack."
        )
    return "".join(
        f" {', '.join(series)} are a series: each worked only on what the ones before it left, and "
        f"its {place} is the accuracy after it and the ones before it."
        for series in _series(reports)
    )


def _series(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    """The labels of each series, whole."""
    after = {
        label: before
        for report in reports
        for label, before in report.after.items()
        if label in report.measured
    }
    inner = {label for before in after.values() for label in before}
    return [(*before, label) for label, before in after.items() if label not in inner]


def render(reports: Sequence[Report], spec: RunSpec | None) -> str:
    """The tables of some reports as Markdown, with caption, details, notes, errors and flags."""
    parts = [
        _markdown(wide(reports)),
        caption(reports, spec),
        "Work per attacked sample (mean passes; one forward can have several backwards), and "
        "distances over the samples that were broken (those left out were not):",
        _markdown(_printable(details(reports))),
    ]
    notes = [f"- {note}" for note in dict.fromkeys(n for report in reports for n in report.notes)]
    notes += [
        f"- {report.name}: {', '.join(labels)} {does} not apply: {why}"
        for report in reports
        for why, labels in _by_reason(report.inapplicable).items()
        for does in ["does" if len(labels) == 1 else "do"]
    ]
    notes += [
        f"- {report.name}: {label} failed: {message}"
        for report in reports
        for label, message in report.errors.items()
    ]
    notes += [f"- {line}" for line in contradictions(reports)]
    notes += [
        f"- {report.name}: {code}: {meaning}"
        for report in reports
        for code, meaning in report.flags.items()
    ]
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts) + "\n"


def contradictions(reports: Sequence[Report]) -> list[str]:
    """A line for each report of which a certificate is contradicted: by how many samples, which."""
    lines = []
    for report in reports:
        if count := len(report.contradictions):
            shown = ", ".join(map(str, report.contradictions[:_SHOWN]))
            lines.append(
                f"{report.name}: attacks misclassify {count} of {report.total} samples within the "
                f"radius certified for them: {shown}{', ...' if count > _SHOWN else ''}"
            )
    return lines


def _by_reason(inapplicable: dict[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for label, why in inapplicable.items():
        reasons.setdefault(why, []).append(label)
    return reasons


def plain(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """The rows of table.json."""
    return [
        {
            "defense": report.name,
            "natural": report.natural,
            "certified": None if np.isnan(report.certified) else report.certified,
            "contradictions": report.contradictions.tolist(),
            "per_attack": {k: None if np.isnan(v) else v for k, v in report.per_attack.items()},
            "best_attack": None if np.isnan(report.best_attack) else report.best_attack,
            "interval": list(best.interval) if (best := report.accuracy(BEST)) else None,
            "flags": report.flags,
            "errors": report.errors,
            "inapplicable": report.inapplicable,
            "after": {label: list(before) for label, before in report.after.items()},
            "notes": report.notes,
        }
        for report in reports
    ]


def write(folder: Path, reports: Sequence[Report], spec: RunSpec, extra: dict[str, Any]) -> None:
    """Write table.md, table.csv, table.json and, with minimal distances or certificates,
    curves.png. Raises UserError where the folder cannot be written."""
    frame = details(reports)
    write_text(folder / "table.md", render(reports, spec))
    write_text(folder / "table.csv", frame.to_csv(index=False))
    table = {
        "caption": caption(reports, spec),
        "rows": plain(reports),
        "details": json.loads(frame.to_json(orient="records")),
    }
    write_json(folder / JSON, table | extra)
    draw(folder / "curves.png", reports, spec.data)


def _printable(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame[~frame["attack"].isin([NATURAL, CERTIFIED, BEST])]
    if "accuracy" in frame:
        shares = (100 * frame[["accuracy", "low", "high"]]).to_numpy()
        text = [f"{value:.1f} [{low:.1f}, {high:.1f}]" for value, low, high in shares]
        frame = frame.assign(accuracy=["-" if "nan" in share else share for share in text])
    frame = frame.reindex(columns=list(_DETAILS))
    # Attacks that do not apply have no work.
    frame = frame[frame["attacked"].notna()].rename(columns=_DETAILS)
    for column, digits in _DIGITS.items():
        frame[column] = [
            "-" if pd.isna(value) else f"{value:.{digits}f}" for value in frame[column]
        ]
    return frame


def _markdown(frame: pd.DataFrame) -> str:
    from tabulate import tabulate

    names = [str(name) for name in frame.columns]
    align = ["left" if name in ("defense", "attack", "flags") else "right" for name in names]
    rows = frame.to_numpy().tolist()
    return tabulate(rows, names, tablefmt="github", disable_numparse=True, colalign=align)
