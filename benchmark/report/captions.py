"""What captions say: of settings, of columns, and of attacks that saw only what others left."""

from collections.abc import Sequence

from attacks import ThreatModel
from benchmark.columns import Column, captions, eps_text
from benchmark.data.choice import Choice
from benchmark.report.columns.report_columns import run_columns
from benchmark.report.measurements import Measurements
from benchmark.spec.components import SEARCH
from benchmark.spec.run_spec import MAY_REJECT, RunSpec
from benchmark.spec.source_names import noun_of, without_places

# How norms are printed.
NORMS = {"l2": "L2", "linf": "L-infinity", "l1": "L1"}
# What captions call the ways in which images are chosen.
CHOSEN = {"first": "the first", "random": "at random", "stratified": "stratified by class"}

# How many classes a caption names.
_NAMED = 10


def may_reject_name(name: str) -> str:
    """What tables call a model where rejecting a perturbed image does not count as wrong."""
    return name + MAY_REJECT


def threat_name(threat: ThreatModel) -> str:
    """What tables and captions call a threat.

    >>> threat_name(ThreatModel("linf", 0.25))
    'L-infinity eps 0.25'
    >>> threat_name(ThreatModel("linf", 8 / 255))
    'L-infinity eps 8/255'
    """
    return f"{NORMS[threat.norm]} eps {eps_text(threat.eps)}"


def caption(reports: Sequence[Measurements], spec: RunSpec | None) -> str:
    """What the numbers of a run's table are over."""
    first = reports[0]
    return (
        f"Accuracy in % over {images(first, spec)}, {threat_name(first.threat)}. "
        + (on_settings(spec, first) if spec else "")
        + on_models(reports)
        + "A sample counts as robust if it is classified correctly and the attack of the column "
        f"does not break it; {' '.join(captions('run', run_columns(reports)))}"
        + on_order(reports, "column")
    )


def short_caption(reports: Sequence[Measurements], spec: RunSpec | None) -> str:
    """What the numbers of a run's table on a terminal are over, and what changes their meaning."""
    first = reports[0]
    return (
        f"Accuracy in % over {images(first, spec)}, {threat_name(first.threat)}. "
        + (on_settings(spec, first) if spec else "")
        + on_models(reports)
        + " ".join(captions("terminal", run_columns(reports, "terminal")))
    )


def exported_caption(
    reports: Sequence[Measurements],
    spec: RunSpec | None,
    columns: Sequence[Column[Measurements]],
    place: str = "column",
) -> str:
    """What the numbers of a run's table are over that is exported, with these columns in LaTeX;
    `place` is where an attack has its accuracy."""
    first, headings = reports[0], {column.heading("latex") for column in columns}
    has_attacks = any(not headings.isdisjoint(report.attacks) for report in reports)
    return (
        f"Accuracy in % over {images(first, spec)}, {threat_name(first.threat)}. "
        + (on_settings(spec, first) if spec else "")
        + on_models(reports)
        + (
            f"{place.capitalize()}s of attacks: the share that is classified correctly and that "
            "this attack does not break; "
            if has_attacks
            else ""
        )
        + " ".join(captions("latex", columns))
        + (on_order(reports, place) if has_attacks or first.mode == "cascade" else "")
    )


def images(report: Measurements, spec: RunSpec | None) -> str:
    """How a caption calls the images that a report is on: how many, of what, and how chosen."""
    what = "images"
    if spec:
        what = f"{without_places(spec.data)} {spec.split} {noun_of(spec.data)}"
    return chosen(report.total, report.choice, what, spec.seeds if spec else ())


def chosen(total: int, choice: Choice | None, what: str, seeds: Sequence[int] = ()) -> str:
    """How a caption calls so many of what there is, which were chosen, by each of several seeds
    where these are given."""
    if choice is None or total == choice.of:
        return f"all {total} {what}"
    if choice.choose == "first":
        return f"the first {total} of {choice.of} {what}"
    by = f"seeds {', '.join(map(str, seeds))}" if seeds else f"seed {choice.seed}"
    return f"{total} of {choice.of} {what} ({CHOSEN[choice.choose]}, {by})"


def is_drawn(report: Measurements) -> bool:
    """Whether the images of a report are a choice that the seed of its run drew."""
    choice = report.choice
    return choice is not None and choice.choose != "first" and report.total < choice.of


def on_missing(choice: Choice | None) -> str:
    """What a caption says of classes that no image is of."""
    missing = choice.missing if choice else []
    if not missing:
        return ""
    named = f"{', '.join(missing[:_NAMED])}{', ...' if len(missing) > _NAMED else ''}"
    return f"No image is of the class{'es' if len(missing) > 1 else ''} {named}. "


def on_settings(spec: RunSpec, report: Measurements | None) -> str:
    """What a caption says of settings that change what its words mean and, where all that it is on
    has the samples of one report, of a choice of them that lacks classes."""
    text = on_missing(report.choice) if report else ""
    if not spec.bounded:
        text += "Perturbed images may leave [0, 1]. "
    if spec.labels == "predictions":
        text += (
            "Correct is, for each model, what it says of the clean image itself (robustness with "
            "respect to predictions). "
        )
    return text


def on_models(reports: Sequence[Measurements]) -> str:
    """What a caption says of models whose accuracies mean something else than is usual."""
    text = "".join(
        f"{report.name} is evaluated in {report.precision}. "
        for report in reports
        if report.precision not in (None, "float32")
    )
    draws = {report.name: report.draws for report in reports if report.draws}
    if draws:
        text += (
            f"{', '.join(draws)}: randomised; each sample counts by the share of "
            f"{max(draws.values())} fresh draws in which it is classified correctly, at the point "
            "that other draws found worst, and intervals include the draws. "
        )
    return text


def on_order(reports: Sequence[Measurements], place: str) -> str:
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


def _series(reports: Sequence[Measurements]) -> list[tuple[str, ...]]:
    """The labels of each series, from its first attack to its last."""
    after = {
        label: before
        for report in reports
        for label, before in report.after.items()
        if label in report.measured and label != SEARCH
    }
    followed = {label for before in after.values() for label in before}
    return [(*before, label) for label, before in after.items() if label not in followed]
