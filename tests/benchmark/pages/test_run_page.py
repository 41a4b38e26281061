"""The page of a run says what its records say, and needs nothing else."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.columns import percent
from benchmark.judge.evaluator import Samples
from benchmark.pages.by_class import ByClass
from benchmark.pages.figures import figures
from benchmark.pages.gallery import MOST, gallery
from benchmark.pages.run_page import Shown, render_page
from benchmark.report.pictures.curves import lower, upper
from benchmark.report.report import Report
from benchmark.run.run_folder import read_run
from benchmark.run.run_samples import data_again
from tests.benchmark.pages.pages import make_page, make_run
from tests.conftest import Cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("pages") / "run")


@pytest.fixture(scope="module")
def reports(folder: Path) -> list[Report]:
    return read_run(folder)[2]


@pytest.fixture(scope="module")
def samples(folder: Path) -> Samples:
    spec, manifest, _ = read_run(folder)
    return data_again(folder, spec, manifest, None)[1]


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return make_page(folder)


def test_a_run_writes_the_page_that_its_records_give(folder: Path, page: str) -> None:
    assert (folder / "report.html").read_text() == page


def test_the_page_needs_nothing_else(page: str) -> None:
    without_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^"\s)>]+)', without_scripts)
    assert addresses
    assert all(address.startswith(("#", "data:image/")) for address in addresses)
    assert "default-src 'none'" in page


def test_texts_of_users_are_escaped(page: str) -> None:
    assert "plain &lt;i&gt;" in page
    assert "plain <i>" not in page


def test_the_table_has_the_accuracies_of_the_reports(page: str, reports: list[Report]) -> None:
    for report in reports:
        assert str(report.accuracy("best-attack")) in page
        assert percent(report.natural) in page
    assert percent(reports[1].certified) in page


def test_a_run_that_is_not_finished_is_shown_as_such(folder: Path, page: str) -> None:
    spec, manifest, reports = read_run(folder)
    reports[0].awaited = ["cw"]
    text = render_page(reports, Shown(spec, manifest))
    assert "not finished" not in page
    assert f"at most {percent(reports[0].best_attack)}" in text
    assert f'<td class="best">{reports[0].accuracy("best-attack")}' not in text
    assert "cw not begun" in text


def test_curves_end_at_what_the_table_says(reports: list[Report]) -> None:
    for report in reports:
        curve, eps = upper(report), np.array([0.0, report.threat.eps])
        assert curve is not None
        # A sample that is misclassified clean is lost at 0, one that is broken by eps.
        np.testing.assert_allclose(curve(eps), [report.natural, report.best_attack])
    proven = lower(reports[1])
    assert proven is not None
    assert proven(np.array([reports[1].threat.eps]))[0] == reports[1].certified
    assert lower(reports[0]) is None


def test_bounds_are_in_order_at_every_eps(reports: list[Report]) -> None:
    above, below = upper(reports[1]), lower(reports[1])
    assert above is not None
    assert below is not None
    eps = np.linspace(0, reports[1].threat.eps, 50)
    assert (below(eps) <= above(eps)).all()
    assert (np.diff(above(eps)) <= 0).all()


def test_pictures_have_their_numbers_as_text(reports: list[Report]) -> None:
    curves, trade_off = figures(reports)
    assert [row[0] for row in trade_off.numbers] == [report.name for report in reports]
    assert {row[0] for row in curves.numbers} == {report.name for report in reports}
    # The last number is that at the threat's eps.
    assert curves.numbers[0][-1] == percent(reports[0].best_attack)


def test_classes_sum_up_to_the_whole(reports: list[Report]) -> None:
    for report in reports:
        split = ByClass.of(report)
        assert split.count.sum() == report.total
        assert split.natural.sum() == pytest.approx(report.natural * report.total)
        assert split.best.sum() == pytest.approx(report.best_attack * report.total)
        broken = round((report.natural - report.best_attack) * report.total)
        assert sum(split.taken.values()) == broken
        assert all(label != taken for label, taken in split.taken)


def test_examples_are_the_images_that_they_are_called(
    reports: list[Report], samples: Samples
) -> None:
    shown = gallery(reports, samples, None)
    assert shown is not None
    assert len(shown.shown) <= MOST
    for example in shown.shown[:20]:
        kind, text = example.picture.split(",")
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        height, width = pixels.shape[0], pixels.shape[1] // 3
        (place,) = np.flatnonzero(samples.number == example.number)
        clean = samples.x[torch.tensor([place])][0, 0].numpy()
        assert kind == "data:image/png;base64"
        np.testing.assert_array_equal(pixels[:, :width], (clean * 255).round())
        assert (height, width) == clean.shape
        assert str(int(samples.y[place])) == example.label != example.predicted


def test_images_of_another_data_set_are_not_shown(reports: list[Report], samples: Samples) -> None:
    other = replace(samples, x=torch.rand(len(samples), 1, 8, 8))
    assert gallery(reports, other, None) is None


@pytest.mark.parametrize("shape", [(64,), (2, 8, 8), (1, 1, 64)])
def test_samples_that_are_no_images_are_not_shown(
    reports: list[Report], shape: tuple[int, ...]
) -> None:
    samples = Samples(torch.zeros(60, *shape), torch.zeros(60).long(), np.arange(60))
    assert gallery(reports, samples, None) is None


def test_the_report_is_written_without_the_data(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark.errors import UserError
    from benchmark.run import run_folder

    def none(*_: object) -> None:
        raise UserError("no such data")

    whole = (folder / "report.html").read_text()
    monkeypatch.setattr(run_folder, "load_dataset", none)
    assert cli("report", folder).status == 0
    page = (folder / "report.html").read_text()
    assert "--data-root" in page
    assert "data:image/png" not in page
    monkeypatch.undo()
    assert cli("report", folder).status == 0
    assert (folder / "report.html").read_text() == whole


def test_the_report_is_written_with_other_data_at_hand(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark.run import run_folder

    whole, load = (folder / "report.html").read_text(), run_folder.load_dataset

    def fewer(name: str, root: Path | None) -> object:
        return load("digits/pair=4-9", root)

    monkeypatch.setattr(run_folder, "load_dataset", fewer)
    assert cli("report", folder).status == 0
    assert "data:image/png" not in (folder / "report.html").read_text()
    monkeypatch.undo()
    assert cli("report", folder).status == 0
    assert (folder / "report.html").read_text() == whole


def test_a_file_is_no_folder_of_a_run(folder: Path, cli: Cli) -> None:
    ended = cli("report", folder / "spec.yaml")
    assert ended.status != 0
    assert "damaged" not in ended.err
