"""Verdicts do not depend on batch size, on the order of samples, or on an interruption."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, Attack, CarliniWagner, ThreatModel
from benchmark import Report, evaluate
from benchmark.data.sets import load_dataset
from benchmark.environment import resolve_device
from benchmark.judge.evaluator import Samples
from benchmark.judge.examination import examine
from benchmark.judge.records import FolderCell
from benchmark.judge.subject import Terms
from benchmark.run import assess
from tests.benchmark.small import measure_attack

N = 60
ATTACKS: dict[str, list[Attack]] = {
    "l2": [PGD(steps=10, restarts=2), CarliniWagner(steps=30, searches=3)],
    "linf": [PGD(steps=10, restarts=2, objective="margin")],
}
EPS = {"l2": 0.6, "linf": 0.1}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A convolutional net that is neither broken everywhere nor robust everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
        )
        data = load_dataset("digits").train
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(data.x), data.y).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    test = load_dataset("digits").test
    return test.x[:N], test.y[:N]


def _records(report: Report, index: np.ndarray) -> pd.DataFrame:
    """Records by each sample's number in its data set."""
    records = report.records.assign(index=lambda frame: index[frame["index"].to_numpy()])
    return records.sort_values(["attack", "index"], ignore_index=True)


@pytest.mark.parametrize(
    ("mode", "norm"),
    [
        ("table", "l2"),
        ("cascade", "linf"),
        pytest.param("table", "linf", marks=pytest.mark.slow),
        pytest.param("cascade", "l2", marks=pytest.mark.slow),
    ],
)
def test_batch_size_and_order_change_nothing(
    model: nn.Module, images: tuple[Tensor, Tensor], norm: str, mode: str
) -> None:
    x, y = images
    seen = []
    for block, order in (
        (N, np.arange(N)),
        (7, np.arange(N)),
        (1, np.arange(N)),
        (13, np.random.default_rng(0).permutation(N)),
    ):
        report = evaluate(
            model,
            x[order],
            y[order],
            norm=norm,
            eps=EPS[norm],
            attacks=ATTACKS[norm],
            mode=mode,
            precision="float64",
            block=block,
            index=order,
        )
        seen.append(_records(report, order))
        assert 0.05 < report.best_attack < 0.95
    for records in seen[1:]:
        exact = ["attack", "index", "label", "predicted", "broken", "forwards", "backwards"]
        pd.testing.assert_frame_equal(records[exact], seen[0][exact])
        # Sums in another order: the last bits of a distance may differ, nothing else.
        np.testing.assert_allclose(records["distance"], seen[0]["distance"], rtol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_interrupted_cell_ends_as_an_undisturbed_one(
    model: nn.Module, images: tuple[Tensor, Tensor], norm: str, tmp_path: Path
) -> None:
    x, y = images
    samples = Samples(x, y, np.arange(N))
    threat = ThreatModel(norm, EPS[norm])
    for attack in ATTACKS[norm]:
        name = type(attack).__name__
        whole, torn = FolderCell(tmp_path / f"{name}-a"), FolderCell(tmp_path / f"{name}-b")
        subject = examine(model, x, resolve_device("cpu"), Terms("float64"))
        measure_attack(subject, samples, np.arange(N), threat, attack, 5, whole, 8)
        blocks = 0

        def stop(*_: int) -> None:
            nonlocal blocks
            blocks += 1
            if blocks % 3 == 0:
                raise KeyboardInterrupt

        for block in (8, 5, 9):
            with pytest.raises(KeyboardInterrupt):
                measure_attack(subject, samples, np.arange(N), threat, attack, 5, torn, block, stop)
        measure_attack(subject, samples, np.arange(N), threat, attack, 5, torn, 8)
        frames = [
            pd.concat([block.frame() for block in cell.blocks()]).sort_values(
                "index", ignore_index=True
            )
            for cell in (whole, torn)
        ]
        assert len(frames[0]) == N
        exact = [name for name in frames[0] if name != "distance"]
        pd.testing.assert_frame_equal(frames[0][exact], frames[1][exact])
        np.testing.assert_allclose(frames[0]["distance"], frames[1]["distance"], rtol=1e-6)


def test_counts_are_the_passes_that_each_sample_took(
    model: nn.Module, images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summed over the samples, exactly the rows that went through the model and back."""
    monkeypatch.setattr(assess, "probe", lambda *_: set())
    x, y = images
    rows = {"forward": 0, "backward": 0}

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            rows["forward"] += len(x)
            logits: Tensor = self.inner(x)
            if logits.requires_grad:
                logits.register_hook(self.back)
            return logits

        def back(self, gradient: Tensor) -> None:
            rows["backward"] += len(gradient)

    # The evaluator's own: looks at the model, the clean images, and the judge's two forwards.
    evaluate(Counting(), x, y, eps=0.6, suite="none", precision="float64")
    own = dict(rows)
    for attack in ATTACKS["l2"]:
        before = dict(rows)
        report = evaluate(Counting(), x, y, eps=0.6, attacks=[attack], precision="float64")
        frame = report.records[report.records["attack"] != "natural"]
        spent = {way: rows[way] - before[way] - own[way] for way in rows}
        assert frame["backwards"].sum() == spent["backward"]
        # What is broken is pulled, in ten forwards, and judged again.
        judged = 2 * len(frame) + (10 + 2) * frame["distance"].notna().sum()
        assert frame["forwards"].sum() == spent["forward"] - judged
        assert frame["forwards"].max() <= attack.facts.passes
