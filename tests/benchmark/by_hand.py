"""Reports whose records are made by hand: which samples are misclassified, and which are broken."""

import numpy as np

from attacks import ThreatModel
from attacks.threat import Norm
from benchmark import Report
from benchmark.judge.records import Block, MemoryCell
from benchmark.spec.components import NATURAL

EPS = 0.5


def cell_of(total: int, places: list[int], wrong: dict[int, float]) -> MemoryCell:
    """Records of samples, some of which are misclassified at a distance."""
    index = np.array(places, dtype=np.int64)
    distance = np.array([wrong.get(place, np.nan) for place in places])
    ones, found = np.ones_like(index), ~np.isnan(distance)
    points = np.zeros((int(found.sum()), 2), dtype=np.float32)
    cell = MemoryCell()
    cell.add(
        Block(index, ones, np.where(found, 0, 1), distance <= EPS, distance,
              ones, ones, ~found & False, ones * 0.1, points)
    )  # fmt: skip
    return cell


def report_of(norm: Norm, total: int, clean: list[int], **broken: list[int]) -> Report:
    """A report of so many samples: those that are misclassified clean, and broken by attacks."""
    report = Report("m", ThreatModel(norm, EPS), "table", total)
    report.add(NATURAL, "k", cell_of(total, list(range(total)), dict.fromkeys(clean, 0.0)), None)
    for attack, places in broken.items():
        left = [place for place in range(total) if place not in clean]
        report.add(attack, attack, cell_of(total, left, dict.fromkeys(places, 0.4)), None)
    return report
