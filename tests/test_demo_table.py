"""The README shows what the demo prints, as it prints it now."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from attacks import ThreatModel
from benchmark.cli.demo_command import DEMO
from benchmark.data.choice import Choice
from benchmark.judge.records import Block, MemoryCell
from benchmark.report import tables
from benchmark.report.report import Report
from benchmark.run.run_folder import named, read_run
from benchmark.spec.components import NATURAL
from benchmark.spec.run_spec import make_spec
from benchmark.terminal import text

ROOT = Path(__file__).parents[1]
TOTAL = 355


def _without_ranks(told: str) -> str:
    """Without the paragraph on which row is the highest: it goes by single samples."""
    ranks = r"^\S+ has the highest.*?(?:\n\n|\Z)"
    return re.sub(ranks, "", told, flags=re.M | re.S).rstrip() + "\n"


def _shown() -> str:
    (block,) = re.findall(
        r"^```text\n(defense .*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S
    )
    return str(block)


def _cell(places: np.ndarray, broken: np.ndarray, distance: float | np.ndarray) -> MemoryCell:
    """Records of samples, of which some are misclassified at a distance; or their radii."""
    ones = np.ones_like(places)
    far = np.where(broken, distance, np.nan) if np.isscalar(distance) else distance
    cell, points = MemoryCell(), np.zeros((int((~np.isnan(far)).sum()), 1), np.float32)
    cell.add(
        Block(places, ones, np.where(broken, 0, 1), broken, far, ones, ones, broken & False,
              ones * 0.1, points)
    )  # fmt: skip
    return cell


def _report(name: str, natural: float, best: float, certified: float | None) -> Report:
    """A report with these accuracies in %, whose samples are chosen anyhow."""
    right, robust, proven = (
        round(TOTAL * (share or 0) / 100) for share in (natural, best, certified)
    )
    order, every = np.random.default_rng(list(name.encode())).permutation(TOTAL), np.arange(TOTAL)
    report = Report(name, ThreatModel("l2", 0.5), "table", TOTAL)
    report.choice = Choice("first", 0, TOTAL, [])
    report.add(NATURAL, "n", _cell(every, ~np.isin(every, order[:right]), 0.0), None)
    attacked = np.sort(order[:right])
    for label in ("PGD-20", "strong"):
        report.add(label, label, _cell(attacked, ~np.isin(attacked, order[:robust]), 0.3), None)
    if certified is not None:
        radii = np.isin(every, order[:proven]).astype(np.float64)
        report.certify("c", _cell(every, ~np.isin(every, order[:right]), radii), None)
    return report


def test_the_table_of_the_readme_is_laid_out_as_it_is_printed() -> None:
    rows = re.findall(r"^(\S+) +(\S+)  (\S+) \[.*?\]  +(\S+)$", _shown().partition("\n\n")[0], re.M)
    assert rows.pop(0)[0] == "defense"
    reports = [
        _report(name, float(natural), float(best), None if proven == "-" else float(proven))
        for name, natural, best, proven in rows
    ]
    spec = make_spec(yaml.safe_load(DEMO.read_text()))
    assert [report.name for report in reports] == [member.label for member in spec.defenses]
    assert _without_ranks(text(tables.page(reports, spec))) == _without_ranks(_shown())


def test_the_table_of_the_readme_is_that_of_the_demo() -> None:
    """Where the demo was run: on other machines its accuracies may differ by a few tenths."""
    if not (ROOT / "runs" / "demo" / "table.json").exists():
        pytest.skip("run `make demo` first")
    spec, manifest, reports = read_run(ROOT / "runs" / "demo")
    printed = _without_ranks(text(tables.page(reports, named(spec, manifest))))
    shown = _without_ranks(_shown())
    number = r"\d+\.\d"
    assert re.sub(number, "0", printed) == re.sub(number, "0", shown)
    both = zip(*(map(float, re.findall(number, told)) for told in (printed, shown)), strict=True)
    assert max(abs(one - other) for one, other in both) < 3
