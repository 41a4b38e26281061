"""A guard: what behaves otherwise than before must say so by a new version.

Results are kept under keys that hold the declared versions of attacks, recipes, the judge and the
training loop (`benchmark/keys.py`). A change of behaviour without a new version would serve old
results for new ones. So the outcomes of each on small fixed inputs are stored in versions.json,
made in float64 and compared far above rounding. Where a test here fails and the change is meant:
raise `version` (or VERSION) where the line says, and store the outcomes anew with

    python -m tests.test_versions
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks import PGD
from attacks.strong import search
from attacks.wrappers import stages, transfer
from benchmark.judge.subject import Judgement, Subject
from benchmark.run import measuring
from defenses.networks.residual import ResNet
from defenses.nonexpansive.scalings import SCALINGS
from defenses.recipes.schedules import SCHEDULES
from tests.guarded import ENTRIES, current

STORE = Path(__file__).with_name("versions.json")


def _same(found: Any, stored: Any) -> bool:
    """Whether whole numbers and verdicts are equal, and other numbers are up to rounding."""
    if isinstance(stored, dict):
        return found.keys() == stored.keys() and all(_same(found[k], stored[k]) for k in stored)
    one, other = np.asarray(found), np.asarray(stored)
    if one.shape != other.shape:
        return False
    if "f" not in (one.dtype.kind, other.dtype.kind):
        return np.array_equal(one, other)
    return np.allclose(one.astype(float), other.astype(float), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_behaves_otherwise_has_another_version(entry: str) -> None:
    stored = json.loads(STORE.read_text()).get(entry)
    assert stored, f"{entry} has no stored outcome: run python -m tests.test_versions"
    found = current(entry)
    assert found["version"] == stored["version"], (
        f"the version of {entry} is new: store its outcomes with python -m tests.test_versions"
    )
    assert _same(found["outcome"], stored["outcome"]), (
        f"{entry} behaves otherwise than version {stored['version']} did: if that is meant, raise "
        "its version, and store its outcomes with python -m tests.test_versions"
    )


def test_whole_numbers_are_compared_exactly() -> None:
    assert _same({"forwards": [1000, 26]}, {"forwards": [1000, 26]})
    assert not _same({"forwards": [1001, 26]}, {"forwards": [1000, 26]})
    assert _same({"distance": [0.25, 1.0]}, {"distance": [0.250001, 1.0]})
    assert not _same({"distance": [0.25, 1.0]}, {"distance": [0.251, 1.0]})


def _judge_once(subject: Subject, points: Tensor, y: Tensor, *_: Any) -> Judgement:
    predicted = subject.model(points.to(subject.dtype)).argmax(1)
    return Judgement.of(predicted, predicted != y)


# What a change breaks, and the change: an attribute of an object, or an item of a table.
CHANGES: dict[str, tuple[str, Any, str, Any]] = {
    "steps": (
        "attack pgd",
        PGD,
        "_step",
        lambda self, problem, points, gradient, size, step=PGD._step: step(
            self, problem, points, gradient, 0.9 * size
        ),
    ),
    "queries": (
        "attack strong on misleading gradients",
        search.Search,
        "ask",
        lambda self, attack, which, starts=None: None,
    ),
    "stretching": (
        "attack transfer:cw",
        transfer,
        "_stretched",
        lambda problem, points: points,
    ),
    "stages": (
        "attack robin on stages",
        stages,
        "_second",
        lambda *given, second=stages._second: -second(*given),
    ),
    "networks": (
        "architecture resnet18",
        ResNet,
        "forward",
        lambda self, x, forward=ResNet.forward: 1.01 * forward(self, x),
    ),
    "scalings": ("scaling bound", SCALINGS, "bound", torch.zeros_like),
    "schedules": ("schedule two-steps", SCHEDULES, "two-steps", SCHEDULES["step"]),
    "twins": ("judge in two precisions", Subject, "judge", _judge_once),
    "radii": ("judge of certificates", measuring, "measure_radii", lambda *given: None),
}


@pytest.mark.parametrize(("entry", "owner", "name", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_noticed(
    entry: str, owner: Any, name: str, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(owner, dict):
        monkeypatch.setitem(owner, name, change)
    else:
        monkeypatch.setattr(owner, name, change)
    stored = json.loads(STORE.read_text())[entry]["outcome"]
    assert not _same(ENTRIES[entry].outcome(), stored)


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = {entry: current(entry) for entry in sys.argv[1:] or ENTRIES}
    kept = json.loads(STORE.read_text()) if STORE.exists() else {}
    both = {entry: (kept | made)[entry] for entry in ENTRIES if entry in kept | made}
    lines = ",\n".join(f" {json.dumps(entry)}: {json.dumps(both[entry])}" for entry in both)
    STORE.write_text(f"{{\n{lines}\n}}\n")
