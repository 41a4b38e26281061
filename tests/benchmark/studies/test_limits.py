"""The study of data sets, against the functions that it shows and the command line."""

import math
from pathlib import Path

import pytest

from attacks.threat import ThreatModel
from benchmark.data.separation import inter_class_distance, log_volumes, oracle_radii
from benchmark.data.sets import load_dataset
from tests.benchmark.conftest import Cli, assert_written, refused

PLUGIN = """
import torch
from benchmark.data.dataset import Dataset, Split

x = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1, 1)
DATASETS = {
    "twice": lambda root: Dataset(
        "twice", ("a", "b"), (1, 1, 1), lambda part: Split(x, torch.tensor([0, 1, 1]))
    )
}
"""


def test_it_is_written_as_it_is_measured(cli: Cli, tmp_path: Path) -> None:
    words = ("digits", "digits/binarize", "--split", "test", "--radii", "1.5,1", "--eps", "1/4")
    records = assert_written(tmp_path, "data", cli("study", "data", *words, "--out", tmp_path))
    assert set(records["split"]) == {"test"}
    assert set(records["images"]) == {355}
    for name, rows in records.groupby("data"):
        test = load_dataset(str(name)).test
        radii = oracle_radii(test.x, test.y)
        values = {
            (row.measure, "" if math.isnan(row.at) else f"{row.at:g}"): row.value
            for row in rows.itertuples()
        }
        assert values == pytest.approx(
            {
                ("oracle radius above", "1"): (radii > 1).double().mean().item(),
                ("oracle radius above", "1.5"): (radii > 1.5).double().mean().item(),
                ("smallest oracle radius", ""): radii.min().item(),
                ("median oracle radius", ""): radii.median().item(),
                ("inter-class distance", ""): inter_class_distance(test.x, test.y),
                ("log volume", "0.25"): float(
                    log_volumes(test.x, ThreatModel("linf", 0.25)).mean()
                ),
                ("log volume in a corner", "0.25"): -2 * 64,
                ("log volume inside", "0.25"): -64,
            }
        )
    # All pixels of a binary image are in corners.
    table = (tmp_path / "data.md").read_text().splitlines()
    header = ["data", "images", "&gt; 1", "&gt; 1.5", "smallest", "median", "inter-class distance"]
    assert [cell.strip() for cell in table[0].split("|")[1:8]] == header
    assert [cell.strip() for cell in table[3].split("|")[-3:-1]] == ["-128.0", "-128.0 to -64.0"]


def test_without_eps_no_volume_is_shown(cli: Cli, tmp_path: Path) -> None:
    ended = cli("study", "data", "digits/pair=4-9", "--samples", 100, "--out", tmp_path)
    records = assert_written(tmp_path, "data", ended)
    assert set(records["images"]) == {100}
    assert set(records["split"]) == {"train"}
    assert not records["measure"].str.contains("volume").any()
    above = records[records["measure"] == "oracle radius above"]
    assert above["at"].tolist() == [1, 1.5, 2, 2.5, 3]
    assert above["value"].is_monotonic_decreasing
    assert "volume" not in ended.out


def test_an_image_with_two_labels_is_above_no_radius(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    words = ("twice", "--plugin", tmp_path / "mine.py", "--radii", "0,0.4")
    records = assert_written(tmp_path, "data", cli("study", "data", *words, "--out", tmp_path))
    # The third is half of 1 away from the first.
    assert records["value"].tolist()[:4] == pytest.approx([1 / 3, 1 / 3, 0, 0])


def test_one_label_alone_is_apart_from_nothing(cli: Cli, tmp_path: Path) -> None:
    words = ("digits", "--samples", 1, "--out", tmp_path)
    records = assert_written(tmp_path, "data", cli("study", "data", *words))
    assert records["value"].tolist() == [1.0] * 5 + [math.inf] * 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["digits", "--radii", "2,x"], "radii are numbers from 0 on, as in 2,2.5,3, not '2,x'"),
        (["digits", "--radii", "-1"], "radii are numbers from 0 on, as in 2,2.5,3, not '-1'"),
        (["digits", "--eps", "0"], "eps must be above 0 and finite, not 0.0"),
        (["digits", "--eps", ""], "'' is not a number or a fraction such as 8/255"),
        (
            ["digits", "digits/smoth=3"],
            "digits/smoth=3: unknown variant 'smoth': did you mean 'smooth'?",
        ),
        (["digits", "--samples", "5000"], "digits has 1442 train images, not 5000: lower samples"),
    ],
)
def test_what_makes_no_sense_is_refused(
    cli: Cli, tmp_path: Path, words: list[str], line: str
) -> None:
    refused(cli("study", "data", *words, "--out", tmp_path / "out"), line)
    assert not (tmp_path / "out").exists()
