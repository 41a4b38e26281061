"""Model cards in the format of Hugging Face: metadata that machines read, and a section for people.

The metadata are a `model-index`, as huggingface_hub's `ModelCard` reads it: for each row, what it
was evaluated on, and its accuracies as numbers from 0 to 1.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmark.columns import escaped, rows_markdown, shown_in
from benchmark.errors import UserError, did_you_mean
from benchmark.report.captions import exported_caption, threat_name
from benchmark.report.report import Report
from benchmark.report.report_columns import detail_columns, lines, run_columns
from benchmark.report.tables import flag_lines, remarks
from benchmark.spec.components import BEST, CERTIFIED, NATURAL, SAVED, Component
from benchmark.spec.run_spec import RunSpec, make_spec
from benchmark.spec.source_names import is_source, noun_of, without_places

# The names of data sets on the hub of Hugging Face; others go by our names.
_ON_HUB = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "svhn": "ufldl-stanford/svhn",
}


def chosen(reports: Sequence[Report], row: str | None) -> list[Report]:
    """The reports on a row of a run, or on all of them. Raises UserError where there is none."""
    names = [report.name for report in reports]
    if row is not None and row not in names:
        raise UserError(f"the run has no row {row!r}: {did_you_mean(row, names, ', '.join(names))}")
    return [report for report in reports if row in (None, report.name)]


def model_card(
    reports: Sequence[Report], spec: RunSpec, run: Mapping[str, Any], url: str | None = None
) -> str:
    """A model card on the rows of a run, in Markdown, with its metadata before it.

    run  the manifest of the run.
    url  where readers find the run, for the metadata; None: these have no source.
    """
    index = {"model-index": [_entry(report, spec, url) for report in reports]}
    metadata = yaml.safe_dump(index, sort_keys=False, allow_unicode=True)
    return f"---\n{metadata}---\n\n{section(reports, spec, run)}"


def _entry(report: Report, spec: RunSpec, url: str | None) -> dict[str, Any]:
    """What a model-index says of one row. Attacks that failed or do not apply are left out."""
    noun = noun_of(spec.data)
    name = spec.data.partition("/")[0]
    data = without_places(spec.data)
    threat = {"norm": spec.norm, "eps": spec.eps}
    labels = [line.label for line in lines([report])]
    result = {
        "task": {
            "type": "tabular-classification" if noun == "rows" else "image-classification",
            "name": "Adversarial robustness",
        },
        "dataset": {
            "type": data if is_source(spec.data) else _ON_HUB.get(name, name),
            "name": data,
            "split": spec.split,
            "args": {"samples": report.total, "seed": spec.seed},
        },
        "metrics": [
            {
                "type": "accuracy",
                "value": accuracy.value,
                "name": _called(label, report),
                "args": ({} if label == NATURAL else threat)
                | {"interval": list(accuracy.interval)},
            }
            for label in labels
            if (accuracy := report.accuracy(label)) is not None
        ],
    }
    source = {"source": {"name": "bestattack", "url": url}} if url else {}
    return {"name": report.name, "results": [result | source]}


def _called(label: str, report: Report) -> str:
    """What metadata call an accuracy, with the threat that it is under."""
    if label == NATURAL:
        return "Natural accuracy"
    names = {BEST: "Best-attack accuracy", CERTIFIED: "Certified accuracy"}
    called = names.get(label, f"Accuracy under {label}")
    return f"{called} ({threat_name(report.threat)})"


def section(reports: Sequence[Report], spec: RunSpec, run: Mapping[str, Any]) -> str:
    """What a card says to people, in Markdown: numbers with intervals, what they are over, flags,
    and how to repeat them. `run` is the manifest of the run."""
    made = ", ".join(f"{name} {version}" for name, version in run["environment"].items())
    asked = make_spec(run["spec"])
    parts = [
        "## Robustness evaluation",
        rows_markdown("card", shown_in("card", detail_columns()), lines(reports)),
        escaped(exported_caption(reports, spec, run_columns(reports, "latex"), "row")),
        "\n".join(f"- {escaped(remark)}" for remark in remarks(reports) + flag_lines(reports)),
        f"Measured with {escaped(made)}. To repeat it, run `bestattack run spec.yaml` on this, in "
        "which files are named without their folders; `bestattack verify` then replays the "
        "adversarial examples.",
        f"```yaml\n{_portable(asked)}```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _portable(spec: RunSpec) -> str:
    """A spec in YAML, without what it leaves to chance and without the folders of files."""
    plain = spec.model_dump(mode="json") | {
        "data": without_places(spec.data),
        "defenses": [_written(component) for component in spec.defenses],
        "attacks": [_written(component) for component in spec.attacks],
        "plugins": [path.name for path in spec.plugins],
    }
    asked = {key: value for key, value in plain.items() if value not in (None, [])}
    return yaml.safe_dump(asked, sort_keys=False, allow_unicode=True)


def _written(component: Component) -> str | dict[str, Any]:
    """A component as a user writes it in a spec: a text where that says all."""
    options = {key: _without_folder(value) for key, value in component.options.items()}
    name = _without_folder(component.name)
    is_text = all(value is True or isinstance(value, str) for value in options.values())
    if component.given_label is None and is_text:
        return Component(name=name, options=options).label
    label = {} if component.given_label is None else {"label": component.given_label}
    return {**label, "name": name, **options}


def _without_folder(value: Any) -> Any:
    """The name of a file or of a saved model that is given by an absolute path; other values as
    they are."""
    if not isinstance(value, str):
        return value
    saved = SAVED if value.startswith(SAVED) else ""
    path = Path(value.removeprefix(SAVED))
    return f"{saved}{path.name}" if path.is_absolute() else value
