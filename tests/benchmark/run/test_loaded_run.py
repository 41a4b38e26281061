"""`load_run` and what notebooks show of it say what the folder says."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import benchmark
from benchmark.columns import percent
from benchmark.errors import UserError
from benchmark.run.loaded_run import LoadedRun, load_run
from tests.benchmark.pages.pages import make_run
from tests.conftest import Cli

mpl.use("agg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("loaded") / "run")


@pytest.fixture(scope="module")
def run(folder: Path) -> LoadedRun:
    return load_run(str(folder))


def test_it_has_what_the_folder_has(run: LoadedRun, folder: Path) -> None:
    rows = json.loads((folder / "table.json").read_text())["rows"]
    assert [report.name for report in run.reports] == [row["defense"] for row in rows]
    for row in rows:
        assert run[row["defense"]].best_attack == row["best_attack"]
    assert run.missing == []
    assert run.to_markdown() == (folder / "table.md").read_text()
    written = pd.read_csv(folder / "table.csv")
    np.testing.assert_allclose(run.to_frame()["accuracy"], written["accuracy"])


def test_it_shows_itself(run: LoadedRun) -> None:
    shown = run._repr_html_()
    for report in run.reports:
        assert percent(report.best_attack) in shown
        assert percent(report.best_attack) in repr(run)
    # Texts of users are escaped.
    assert "plain &lt;i&gt;" in shown
    assert "plain <i>" not in shown


def test_a_row_that_is_not_there_is_told(run: LoadedRun) -> None:
    with pytest.raises(UserError, match="has no row 'none'; it has "):
        run["none"]


def test_curves_end_at_what_the_table_says(run: LoadedRun) -> None:
    lines = {line.get_label(): line for line in run.plot_curve().get_lines()}
    for report in run.reports:
        ends = lines[report.name].get_ydata()
        assert ends[0] == pytest.approx(100 * report.natural)
        assert ends[-1] == pytest.approx(100 * report.best_attack)
        assert (np.diff(ends) <= 0).all()
        name = f"{report.name}, certified"
        assert (name in lines) == (report.certified == report.certified)
        if name in lines:
            assert lines[name].get_ydata()[-1] == pytest.approx(100 * report.certified)


def test_examples_are_those_of_the_records(run: LoadedRun) -> None:
    report = run.reports[0]
    figure = report.plot_examples(most=3)
    assert len(figure.axes) == 9
    assert report.origin is not None
    samples, _ = report.origin()
    for clean, changed, moved in np.reshape(figure.axes, (3, 3)):
        number = int(clean.get_title().partition("number ")[2].rstrip(")"))
        (place,) = np.flatnonzero(samples.number == number)
        image, point = (axes.get_images()[0].get_array() for axes in (clean, moved))
        np.testing.assert_allclose(image, samples.x[torch.tensor([place])][0, 0], atol=1e-6)
        distance = float(np.linalg.norm(np.asarray(point) - np.asarray(image)))
        label, shown = changed.get_title().rsplit(", ", 1)
        frame = report.frames[label].set_index("index")
        assert distance == pytest.approx(float(frame["distance"][place]), abs=1e-4)
        assert f"{distance:.3g}" == shown
        assert str(frame["predicted"][place]) in moved.get_title()


def test_examples_of_other_images_are_refused(folder: Path, run: LoadedRun) -> None:
    report = load_run(folder).reports[0]
    assert report.origin is not None
    samples, labels = report.origin()
    report.origin = lambda: (
        type(samples)(torch.zeros_like(samples.at(np.arange(len(samples))).x), samples.y,
                      samples.number),
        labels,
    )  # fmt: skip
    with pytest.raises(UserError, match="not that of the run"):
        report.plot_examples()


@pytest.mark.parametrize("eps", [3.0, torch.linspace(1.0, 2.0, 9).view(1, 3, 3)])
def test_a_report_of_evaluate_plots_itself_in_the_units_of_its_images(eps: Any) -> None:
    x = torch.rand(6, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    linear = nn.Linear(9, 2)
    with torch.no_grad():  # whether the mean is above a half
        linear.weight.copy_(torch.ones(2, 9) * torch.tensor([[-1.0], [1.0]]))
        linear.bias.copy_(torch.tensor([4.5, -4.5]))
    model = nn.Sequential(nn.Flatten(), linear).eval()
    report = benchmark.evaluate(
        model, 255 * x, model(x).argmax(1), norm="l2", eps=eps, scale=255, attacks=["pgd"]
    )
    assert report.best_attack < 1
    clean, _, moved = report.plot_examples(most=1).axes
    number = int(clean.get_title().partition("number ")[2].rstrip(")"))
    np.testing.assert_allclose(clean.get_images()[0].get_array(), x[number, 0], atol=1e-6)
    examples = report.adversarial["pgd"]
    (point,) = examples.points[examples.index == number]
    np.testing.assert_allclose(moved.get_images()[0].get_array(), point[0], atol=1e-6)
    assert report.plot_curve().get_lines()[0].get_ydata()[-1] == 100 * report.best_attack
    assert "best-attack" in str(report._repr_html_())


def test_what_cannot_be_drawn_is_told() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    x = torch.full((4, 1, 2, 2), 0.5)
    report = benchmark.evaluate(
        model, x, model(x).argmax(1), norm="linf", eps=1e-6, attacks=["pgd/steps=1"]
    )
    with pytest.raises(UserError, match="no attack broke anything"):
        report.plot_examples()
    flat = benchmark.evaluate(
        model, x.flatten(1), model(x).argmax(1), norm="linf", eps=1.0, attacks=["pgd/steps=1"]
    )
    with pytest.raises(UserError, match=r"samples of shape \(4,\) cannot be shown as images"):
        flat.plot_examples()


def test_runs_with_parts_name_them(tmp_path: Path, cli: Cli) -> None:
    words = ["--data", "digits", "--samples", 10, "--threat", "l2:0.5", "--threat", "linf:0.1"]
    ended = cli("run", *words, "--defense", "vanilla/epochs=1", "--attack", "pgd/steps=1",
                "--quiet", "--out", tmp_path / "run")  # fmt: skip
    assert ended.status == 0, ended.err
    with pytest.raises(UserError, match="name that of one, "):
        load_run(tmp_path / "run")
    part = next((tmp_path / "run" / "threats").iterdir())
    assert len(load_run(part).reports) == 1


def test_a_run_that_is_not_finished_says_so(folder: Path) -> None:
    run = load_run(folder)
    run.missing.append("plain pgd: not begun")
    assert "not finished" in repr(run)
    assert "not finished" in run._repr_html_()
