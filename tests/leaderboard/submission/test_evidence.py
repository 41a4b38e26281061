"""Evidence is small, and what it holds breaks the model within the threat, without tolerance."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import ThreatModel
from attacks.threat import Norm
from benchmark import Report, evaluate
from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples
from benchmark.judge.records import Block, MemoryCell
from benchmark.judge.subject import Terms
from benchmark.run.defense_replay import examine_twice
from benchmark.spec.components import NATURAL, SEARCH
from leaderboard.submission.evidence import pack, unpack

N, SHAPE = 40, (1, 28, 28)


class Mean(nn.Module):
    """Class 1 where the mean pixel is above a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        over = x.flatten(1).mean(1) - self.limit
        return torch.stack([-over, over], 1)


def _samples() -> Samples:
    """Images on the grid of 8 bits, whose mean is about 0.25."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 128, (N, *SHAPE), generator=generator) / 255
    return Samples(x, torch.zeros(N, dtype=torch.int64), np.arange(N))


def _report(samples: Samples, points: Tensor, threat: ThreatModel) -> Report:
    """As if an attack had found these points, which break every sample."""
    report = Report("model", threat, "table", N)
    labels, nothing = samples.y.numpy().copy(), np.zeros(N, dtype=np.int64)
    no, yes = np.zeros(N, dtype=bool), np.ones(N, dtype=bool)
    cells = {NATURAL: MemoryCell(), "attack": MemoryCell()}
    empty = points.numpy()[:0]
    cells[NATURAL].add(
        Block(
            np.arange(N),
            labels,
            labels.copy(),
            no,
            np.full(N, np.nan),
            nothing,
            nothing,
            no,
            0.0 * nothing,
            empty,
        )
    )
    distance = threat.distance(points, samples.x).numpy()
    # Two blocks, the later samples first: order is the evidence's own.
    for places in (np.arange(N // 2, N), np.arange(N // 2)):
        cells["attack"].add(
            Block(
                places, labels[places], labels[places] + 1, yes[places], distance[places],
                nothing[places] + 7, nothing[places] + 3, no[places],
                0.0 * nothing[places], points.numpy()[places],
            )
        )  # fmt: skip
    for label, cell in cells.items():
        report.add(label, "0" * 16, cell, None)
    return report


def _packed(model: nn.Module, points: Callable[[Samples], Tensor], threat: ThreatModel) -> bytes:
    samples = _samples()
    broken = points(samples)
    subject = examine_twice(model, samples.x, "cpu", Terms())
    assert bool(subject.judge(broken, samples.y).wrong.all())
    return pack(_report(samples, broken, threat), subject, samples)


def _unpacked(content: bytes, threat: ThreatModel) -> Block:
    samples = _samples()
    (block,) = unpack(content, [NATURAL, "attack"], samples, threat)["attack"].blocks()
    assert block.index.tolist() == list(range(N))
    assert (block.forwards == 7).all()
    assert (block.backwards == 3).all()
    return block


@pytest.mark.parametrize(("norm", "eps"), [("l2", 3.0), ("linf", 0.1)])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_examples_break_the_model_within_the_threat(norm: Norm, eps: float, noise: float) -> None:
    """Perturbations that use all of the budget, smooth and noisy ones."""
    threat = ThreatModel(norm, eps)

    def points(samples: Samples) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        push = 1 + noise * torch.randn(samples.x.shape, generator=generator)
        return threat.enforce(samples.x + eps * threat.ascent(push), samples.x)

    samples = _samples()
    limit = float(samples.x.flatten(1).mean(1).max()) + 1e-3
    model = Mean(limit)
    reached = points(samples).flatten(1).mean(1)
    assert bool((reached > limit).all())
    content = _packed(model, points, threat)
    block = _unpacked(content, threat)
    decoded = torch.from_numpy(block.adversarial)
    assert bool(
        examine_twice(model, samples.x, "cpu", Terms()).judge(decoded, samples.y).wrong.all()
    )
    distance = threat.distance(decoded, samples.x)
    assert bool((distance <= eps).all())
    assert bool((distance <= 1.02 * threat.distance(points(samples), samples.x)).all())
    assert torch.equal(decoded, threat.clamp(decoded))
    assert block.distance == pytest.approx(
        threat.distance(decoded, samples.x).numpy(), rel=0, abs=0
    )
    # A byte a pixel would be 784 an example.
    assert len(content) < 784 * N / 2


def test_an_example_that_no_rounding_keeps_is_kept_as_it_is() -> None:
    """A judge that sees an error in exactly the points that were found, and nowhere else."""
    threat, samples = ThreatModel("l2", 3.0), _samples()
    points = threat.enforce(samples.x + 0.1001, samples.x)
    known = {point.numpy().tobytes() for point in points}

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            same = torch.tensor([float(image.numpy().tobytes() in known) for image in x.float()])
            return torch.stack([1 - same, same], 1)

    content = pack(
        _report(samples, points, threat), examine_twice(Model(), samples.x, "cpu", Terms()), samples
    )
    assert np.array_equal(_unpacked(content, threat).adversarial, points.numpy())


def test_the_finest_and_the_largest_perturbations_come_back() -> None:
    threat = ThreatModel("linf", 1.0)
    x = torch.tensor([0.0, 1.0, 0.5]).view(1, 1, 1, 3).expand(N, 1, 1, 3).contiguous()
    target = torch.tensor([1.0, 0.0, 0.5 + 1 / (255 * 128)])
    samples = Samples(x, torch.zeros(N, dtype=torch.int64), np.arange(N))

    class Needle(nn.Module):
        """Class 1 near one point alone."""

        def forward(self, x: Tensor) -> Tensor:
            near = (x.flatten(1) - target.to(x)).abs().amax(1) < 0.4 / (255 * 128)
            return torch.stack([~near, near], 1).to(x.dtype)

    points = target.view(1, 1, 1, 3).expand(N, 1, 1, 3).contiguous()
    report = _report(samples, points, threat)
    content = pack(report, examine_twice(Needle(), samples.x, "cpu", Terms()), samples)
    (block,) = unpack(content, [NATURAL, "attack"], samples, threat)["attack"].blocks()
    assert np.abs(block.adversarial - points.numpy()).max() < 1e-7


def test_a_clean_sample_that_one_precision_misclassifies_is_no_error() -> None:
    """Its class in float32 is another, and its verdict, in both precisions, right."""
    threat, samples = ThreatModel("l2", 3.0), _samples()
    report = _report(samples, samples.x, threat)
    (block,) = report.cells[NATURAL].blocks()
    block.predicted[3] = 1
    content = pack(report, examine_twice(Mean(-1.0), samples.x, "cpu", Terms()), samples)
    (natural,) = unpack(content, [NATURAL], samples, threat)[NATURAL].blocks()
    assert not natural.broken.any()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive"])
def test_what_is_no_archive_is_damaged(content: bytes) -> None:
    with pytest.raises(UserError, match="the evidence is damaged"):
        unpack(content, [NATURAL], _samples(), ThreatModel("l2", 1.0))


@pytest.mark.parametrize(
    ("method", "attack"), [("crown", "pgd/steps=2"), ("branch", "square/steps=1")]
)
def test_what_bounds_proved_is_kept(method: str, attack: str) -> None:
    x = torch.linspace(0.05, 0.95, 20).view(20, 1, 1, 1).expand(20, 1, 2, 2).contiguous()
    samples = Samples(x, (x[:, 0, 0, 0] > 0.5).long(), np.arange(20))
    threat = ThreatModel("linf", 0.1)

    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(1, keepdim=True) - 0.5
            return torch.cat([-mean, mean], 1)

    report = evaluate(
        Threshold(), x, samples.y, norm="linf", eps=0.1, attacks=[attack], certify=method
    )
    content = pack(report, examine_twice(Threshold(), x, "cpu", Terms()), samples)
    cells = unpack(content, list(report.keys), samples, threat)
    (kept,) = cells[SEARCH].blocks()
    assert report.proved is not None
    found = report.frames[SEARCH]
    assert kept.index.tolist() == found["index"].tolist()
    assert kept.broken.tolist() == found["broken"].tolist()
    assert kept.broken.any() == (method == "branch")
    assert len(kept.adversarial) == kept.broken.sum() == report.searched
    assert kept.stage is not None
    assert kept.stage.tolist() == found["stage"].tolist()
    assert kept.bound is not None
    assert kept.bound.tolist() == report.proved.bound[kept.index].tolist()
    assert 10 <= (kept.bound > 0).sum() == (kept.stage == "crown").sum() < 20
