"""The pictures of a task: curves and trade-off, and examples of each defense."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.judge.records import write
from benchmark.report.captions import NORMS
from benchmark.report.pictures.curves import lower, upper
from benchmark.report.report import Report
from benchmark.spec.components import NATURAL
from leaderboard.show.table import robust
from leaderboard.submission.submission import Row
from leaderboard.tasks import Task

# How many of a task's images are shown.
_SHOWN = 3

# At how many eps curves are drawn.
_POINTS = 101

# The styles of lines, for when there are more rows than colours.
_STYLES = ("-", "--", "-.")


def draw(task: Task, rows: Sequence[Row], folder: Path) -> None:
    """Draw a task's pictures into a folder: TASK.png and TASK-examples.png, none without rows.

    Raises UserError where they cannot be written.
    """
    if not rows:
        return
    rows = sorted(rows, key=lambda row: (-row.report.best_attack, row.record.row))
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curves(left, task, rows)
    _trade_off(right, task, rows)
    _save(figure, folder / f"{task.name}.png")
    _save(_examples(task, rows), folder / f"{task.name}-examples.png")


def _save(figure: Figure, path: Path) -> None:
    # The version of matplotlib is left out: it would change the file and not the picture.
    write(path, lambda file: figure.savefig(file, format="png", dpi=100, metadata={"Software": ""}))


def _curves(axes: Axes, task: Task, rows: Sequence[Row]) -> None:
    threat = task.spec.threat
    eps = np.linspace(0, threat.eps, _POINTS)
    for place, row in enumerate(rows):
        left, proven = upper(row.report), lower(row.report)
        style, colour = _STYLES[place // 10 % len(_STYLES)], f"C{place % 10}"
        if left is not None:
            axes.plot(eps, 100 * left(eps), style, color=colour, label=row.record.row)
        if proven is not None:
            axes.plot(eps, 100 * proven(eps), ":", color=colour, linewidth=0.9)
    axes.set(
        xlim=(0, threat.eps),
        ylim=(0, 100),
        xlabel=f"eps ({NORMS[threat.norm]})",
        ylabel="%",
        title="Left by the closest examples of all attacks; dotted: certified",
    )
    axes.legend(loc="upper right", fontsize=8)
    axes.grid(alpha=0.3)


def _trade_off(axes: Axes, task: Task, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        numbers = row.record.numbers
        natural, best = 100 * numbers.natural, 100 * numbers.best_attack
        low, high = (100 * share for share in numbers.interval)
        axes.errorbar(
            natural, best, yerr=[[best - low], [high - best]], fmt="o", color=f"C{place % 10}",
            capsize=3,
        )  # fmt: skip
        axes.annotate(
            row.record.row, (natural, best), xytext=(5, 4), textcoords="offset points", fontsize=8
        )
    axes.set(
        xlabel="natural accuracy (%)",
        ylabel="best-attack accuracy (%)",
        title="The trade-off, with 95% intervals",
    )
    axes.margins(x=0.12, y=0.1)
    axes.grid(alpha=0.3)


def shown(task: Task, rows: Sequence[Row]) -> list[int]:
    """The samples that are shown: those that most rows lose to an attack, each of another label."""
    lost = sum((robust(row.report, NATURAL) & ~robust(row.report)).astype(int) for row in rows)
    labels = task.samples.y.numpy()
    order = sorted(range(len(labels)), key=lambda i: (-int(np.asarray(lost)[i]), i))
    by_label: dict[int, int] = {}
    for i in order:
        by_label.setdefault(int(labels[i]), i)
    return sorted(list(by_label.values())[:_SHOWN])


def _examples(task: Task, rows: Sequence[Row]) -> Figure:
    """For some samples, a line for each defense: original, perturbation, adversarial image (figure
    5 of the paper of fractal classifiers)."""
    samples, x = shown(task, rows), task.samples.x
    figure = Figure(figsize=(2 + 4.2 * len(samples), 1.5 * len(rows) + 0.6), layout="constrained")
    grid = figure.subplots(len(rows), 3 * len(samples), squeeze=False)
    labels = task.dataset.labels
    for axes, row in zip(grid, rows, strict=True):
        for picture in axes:
            picture.set(xticks=[], yticks=[])
            picture.set_frame_on(False)
        axes[0].set_ylabel(row.record.row, rotation=0, ha="right", va="center", fontsize=9)
        for place, i in enumerate(samples):
            original, perturbation, adversarial = axes[3 * place : 3 * place + 3]
            clean = x[i]
            _show(original, clean)
            original.set_title(str(labels[int(task.samples.y[i])]), fontsize=8)
            example = closest_example(row.report, i)
            if example is None:
                adversarial.set_title("none found", fontsize=8)
                continue
            point, distance, predicted = example
            # Grey where nothing changed.
            _show(perturbation, 0.5 + (point - clean) / 2)
            perturbation.set_title(f"{distance:.2f}", fontsize=8)
            _show(adversarial, point)
            adversarial.set_title(str(labels[predicted]), fontsize=8)
    figure.suptitle(
        "Label and original; perturbation and its length; adversarial image and its class",
        fontsize=10,
    )
    return figure


def _show(axes: Axes, image: torch.Tensor) -> None:
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray", vmin=0, vmax=1)


def closest_example(report: Report, sample: int) -> tuple[torch.Tensor, float, int] | None:
    """The closest example of a sample (*shape), its distance, and the class that the model gives
    it; None where no attack broke it."""
    closest = report.closest(report.measured, broken=True)
    label = closest.label[sample]
    if not label:
        return None
    frame = report.frames[label].set_index("index")
    examples = report.examples(label, np.array([sample]))
    point = torch.from_numpy(examples.points[0])
    return point, float(closest.distance[sample]), int(frame["predicted"][sample])
